"""Tests of how a job connects to a cluster and receives rows from it."""

import logging
import time

import pyarrow as pa
import pytest
import ray.data
from ray.data._internal.datasource_v2.formats.parquet.footer_file_indexer import FooterFileIndexer
from ray.exceptions import AuthenticationError

from hwr_ray.cluster import connection as cluster
from hwr_ray.cluster.connection import (
    WORKER_VARIABLES,
    configure_data,
    rows_of,
)
from hwr_ray.errors import UserError


@pytest.mark.parametrize("error", [ConnectionError("no answer\nat all"), AuthenticationError("no token")])
def test_a_cluster_that_does_not_let_a_job_in_is_told_in_a_sentence(monkeypatch, error):
    def refuse(**_):
        raise error

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "find_ray", lambda: "head:6379")
    monkeypatch.setattr(cluster.ray, "init", refuse)
    with pytest.raises(UserError, match=r"can't be joined \(no (answer|token).*\): check that it runs"):
        cluster.connect()


@pytest.fixture
def started(monkeypatch):
    """The arguments with which `connect` calls `ray.init`. The call fails, so `connect` raises UserError."""
    arguments = {}

    def init(**settings):
        arguments.update(settings)
        raise ConnectionError("stopped by the test")

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", init)
    return arguments


def test_workers_keep_what_they_free_unless_who_submitted_the_job_said_otherwise(started, monkeypatch):
    monkeypatch.setattr(cluster, "find_ray", lambda: "head:6379")
    monkeypatch.setattr(cluster, "submitted_environment", lambda: {"env_vars": {"MALLOC_TRIM_THRESHOLD_": "1"}})
    with pytest.raises(UserError):
        cluster.connect()
    variables = started["runtime_env"]["env_vars"]
    missing = "MALLOC_TRIM_THRESHOLD_"
    assert WORKER_VARIABLES.items() - variables.items() == {(missing, WORKER_VARIABLES[missing])}


def test_a_ray_of_its_own_inherits_the_jobs_environment_and_is_told_no_key(started, monkeypatch):
    monkeypatch.setattr(cluster, "find_ray", lambda: None)
    monkeypatch.setattr(cluster.os, "environ", environment := {"AWS_SECRET_ACCESS_KEY": "planted", "HOME": "/"})
    with pytest.raises(UserError):
        cluster.connect()
    assert started["address"] == "local" and "planted" not in str(started)
    assert WORKER_VARIABLES.items() <= environment.items()


def test_a_ray_that_does_not_start_in_time_is_told_in_a_sentence(monkeypatch):
    def init(**_):
        raise Exception("The current node timed out during startup. This could happen ...")

    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "find_ray", lambda: None)
    monkeypatch.setattr(cluster.ray, "init", init)
    with pytest.raises(UserError, match="Ray did not start within 30 s; this machine may be overloaded"):
        cluster.connect()


def test_one_process_reads_the_footers_of_a_data_set_and_not_32(monkeypatch):
    monkeypatch.delenv("RAY_DATA_PARQUET_FOOTER_NUM_ACTORS", raising=False)
    assert FooterFileIndexer(ignore_missing_paths=False)._num_actors == 32  # otherwise Ray has changed
    configure_data()
    assert FooterFileIndexer(ignore_missing_paths=False)._num_actors == 1


def test_what_another_program_hears_of_ray_data_stays_as_it_was(monkeypatch):
    records = []
    listener = logging.Handler()
    listener.emit = records.append
    monkeypatch.setattr(logging.getLogger("ray.data"), "handlers", [listener])
    configure_data()
    logging.getLogger("ray.data").error("a user error, which is also raised")
    assert len(records) == 1


@pytest.mark.usefixtures("ray_cluster")
def test_a_row_comes_although_the_next_is_not_there(tmp_path):
    def wait_for_previous_row(table):
        (number,) = table["number"].to_pylist()
        end = time.monotonic() + 60
        while number and not (tmp_path / str(number - 1)).exists() and time.monotonic() < end:
            time.sleep(0.01)
        return table.append_column("is_late", pa.array([time.monotonic() > end]))

    tables = [pa.table({"number": [number]}) for number in range(3)]
    late = []
    for row in rows_of(ray.data.from_arrow(tables).map_batches(wait_for_previous_row, batch_format="pyarrow")):
        (tmp_path / str(row["number"])).touch()
        late.append(row["is_late"])
    assert late == [False] * 3
