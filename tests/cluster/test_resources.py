"""Tests of the checks of a job's needs before it starts, with simulated clusters."""

from io import StringIO

import numpy as np
import pytest

from hwr_ray.cluster import resources as cluster
from hwr_ray.cluster.resources import (
    ClusterSettings,
    Needs,
    WorkerSettings,
    jobs_at_once,
    per_node,
    preflight,
    threads_among,
)
from hwr_ray.errors import UserError


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        (ClusterSettings, {"wait_minutes": -1}, "--wait-minutes must not be negative, not -1"),
        (WorkerSettings, {"wait_minutes": -1}, "--wait-minutes must not be negative, not -1"),
        (WorkerSettings, {"cpus_per_worker": 0}, "--cpus-per-worker must be positive, not 0"),
    ],
)
def test_settings_that_no_cluster_can_fulfil_are_refused(settings, arguments, message):
    with pytest.raises(UserError, match=message):
        settings(**arguments)


@pytest.fixture
def nodes(monkeypatch):
    """A function that simulates a cluster of nodes with these resources."""

    def simulate(*resources, busy_cpus=0):
        total = {key: sum(node.get(key, 0) for node in resources) for key in ("CPU", "GPU")}
        monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True, "Resources": r} for r in resources])
        monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: total)
        monkeypatch.setattr(cluster.ray, "available_resources", lambda: {**total, "CPU": total["CPU"] - busy_cpus})

    monkeypatch.setattr(cluster, "RELEASE_SECONDS", 0)
    return simulate


def test_two_half_workers_and_their_reader_fit_on_two_cpus(nodes):
    nodes({"CPU": 2})
    preflight(Needs(num_workers=2, cpus_per_worker=0.5, other_cpus=1))


@pytest.mark.parametrize(
    ("needs", "resources", "sentence"),
    [
        ({"num_workers": 3, "cpus_per_worker": 0.5}, [{"CPU": 2}], "needs 2.5 CPUs and the cluster has 2"),
        ({"num_workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 1}, [{"CPU": 8}], "needs 1 GPUs and .* has 0"),
        ({"num_workers": 1, "cpus_per_worker": 3}, [{"CPU": 2}] * 4, "hold 0 of the 1 workers"),
        (
            {"num_workers": 2, "cpus_per_worker": 1, "gpus_per_worker": 1},
            [{"CPU": 1, "GPU": 2}, {"CPU": 8}],
            "hold 1 of the 2 workers",
        ),
    ],
)
def test_a_job_that_can_never_start_is_refused_with_what_is_lacking(nodes, needs, resources, sentence):
    nodes(*resources)
    with pytest.raises(UserError, match=sentence):
        preflight(Needs(**needs, other_cpus=1))


def test_a_job_that_must_wait_for_another_says_so(nodes, caplog):
    nodes({"CPU": 4}, busy_cpus=3.5)
    preflight(Needs(num_workers=1, cpus_per_worker=1, other_cpus=1))
    assert "needs 2 CPUs and 0.5 are free" in caplog.text


def test_what_the_job_before_has_just_given_back_is_waited_for_without_a_word(nodes, caplog, monkeypatch):
    nodes({"CPU": 4})
    free = iter([0.5, 4, 4])
    monkeypatch.setattr(cluster.ray, "available_resources", lambda: {"CPU": next(free), "GPU": 0})
    preflight(Needs(num_workers=1, cpus_per_worker=1, other_cpus=1))
    assert not caplog.text


def test_processes_are_spread_over_the_nodes_and_an_idle_head_counts_for_none(nodes):
    nodes({"CPU": 8}, {"memory": 1})
    assert [per_node(n) for n in (1, 2, 3, 16)] == [1, 2, 3, 16]
    nodes({"CPU": 8}, {"CPU": 8})
    assert [per_node(n) for n in (1, 2, 3, 4)] == [1, 1, 2, 2]


def test_the_processes_of_a_node_share_the_cores_that_they_may_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert [threads_among(n) for n in (1, 2, 3, 16)] == [8, 4, 2, 1]
    # The CPU quota of a container in the kernel's format: 250 ms of CPU time in every 100 ms.
    quota = {"/sys/fs/cgroup/cpu.max": "250000 100000"}
    monkeypatch.setattr("os.path.exists", lambda path: path in quota)
    monkeypatch.setattr("builtins.open", lambda path, *_: StringIO(quota[path]))
    assert [threads_among(n) for n in (1, 2)] == [3, 1]


@pytest.mark.parametrize(
    ("cpus", "gpus", "needs", "expected"),
    [
        ([2], [0], {}, 1),  # 1 CPU besides the reader's, 0.75 per trial
        ([3], [0], {}, 2),
        ([4], [0], {}, 4),
        ([4], [0], {"num_workers": 2}, 2),
        ([1.5], [0], {}, 0),
        ([16], [0], {"cpus_per_worker": 0.1}, 16),  # a core per worker
        ([1, 1], [0, 0], {}, 0),  # the two parts of a trial could leave no whole CPU on any node
        ([2, 2], [0, 0], {}, 2),
        ([0, 8], [0, 2], {"gpus_per_worker": 1}, 2),
        ([8], [3], {"gpus_per_worker": 1, "num_workers": 2}, 1),
    ],
)
def test_as_many_jobs_fit_as_leave_a_cpu_for_reading(cpus, gpus, needs, expected):
    needs = Needs(**{"num_workers": 1, "cpus_per_worker": 0.5, "other_cpus": 0.25, **needs})
    assert jobs_at_once(cpus, gpus, needs) == expected


@pytest.mark.parametrize("seed", range(50))
def test_however_jobs_come_to_lie_a_whole_cpu_stays_free_on_some_node(seed):
    rng = np.random.default_rng(seed)
    cpus = rng.integers(1, 9, rng.integers(1, 5)).astype(float).tolist()
    needs = Needs(num_workers=int(rng.integers(1, 4)), cpus_per_worker=0.5, other_cpus=0.25)
    free, parts = list(cpus), [0.25, *[0.5] * needs.num_workers] * jobs_at_once(cpus, [0] * len(cpus), needs)
    for part in parts:  # the worst placement: each part on the node with the most free CPUs
        fitting = [node for node in range(len(free)) if free[node] >= part]
        node = max(fitting, key=lambda node: free[node])
        free[node] -= part
    assert max(free) >= 1
