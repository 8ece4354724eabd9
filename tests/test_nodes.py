"""Tests every job from bucket to bucket on nodes that share only an object store, and the errors for unshared paths.

The driver's node, the head, runs no tasks.
"""

import json

import pyarrow.dataset as ds
import pytest
import ray
from conftest import NODE, draw_easy_lines, keys, new_cluster, started
from job_runs import end_of, mistake, read_until, run, run_here, start

from hwr_ray.cluster.connection import connect
from hwr_ray.files import storage
from hwr_ray.transcription.partitions import read_parquet

EPOCHS, STEPS = 2, 6
RECIPE = ["--epochs", EPOCHS, "--batch-size", "16", "--gru-size", "16", "--conv-widths", "8", "8", "16", "16"]


@pytest.fixture(scope="module")
def nodes(ray_cluster, bucket):
    """A cluster of a head without CPUs and two nodes, which replaces the cluster of the session."""
    ray.shutdown()
    with new_cluster(num_cpus=0) as cluster:
        for _ in range(2):
            started(cluster.add_node, **NODE)
        yield cluster
    connect()


@pytest.fixture(scope="module")
def prepared(nodes, bucket, tmp_path_factory, draw_text):
    drawn = draw_easy_lines(tmp_path_factory.mktemp("drawn"), draw_text, train=16 * STEPS, validation=16, test=20)
    for path in sorted(drawn.rglob("*.*")):
        bucket.upload_file(str(path), "bucket", f"drawn/{path.relative_to(drawn)}")
    out, err = run("prepare", "--data", "s3://bucket/drawn", "--out", "s3://bucket/prepared", "--canvas", "16", "64")
    assert "3 nodes, 4 CPUs" in err
    return out.strip()


@pytest.fixture(scope="module")
def trained(prepared):
    # A node holds one worker of 1.5 CPUs, so the two run on different nodes.
    settings = ["--num-workers", "2", "--cpus-per-worker", "1.5"]
    out, _ = run("train", "--data", prepared, "--out", "s3://bucket/run", *RECIPE, *settings)
    return out.strip()


def test_rows_are_prepared_from_bucket_to_bucket(prepared, bucket):
    assert prepared == "s3://bucket/prepared"
    metadata = storage.read_json("s3://bucket/prepared/dataset.json")
    assert {name: figures["prepared"] for name, figures in metadata["splits"].items()} == {
        "train": 16 * STEPS,
        "validation": 16,
        "test": 20,
    }
    assert {"prepared/dataset.json", "prepared/report.html"} <= set(keys(bucket, "prepared"))
    assert not [key for key in keys(bucket, "") if ".partial-" in key]


def test_two_workers_on_different_nodes_train_into_a_bucket_and_go_on_from_there(prepared, trained, bucket):
    assert trained == "s3://bucket/run/best"
    rows = storage.read_bytes("s3://bucket/run/metrics.jsonl").decode().splitlines()
    assert [json.loads(row)["num_lines"] for row in rows] == [16] * EPOCHS
    assert {"run/curves.png", "run/best/model.safetensors"} <= set(keys(bucket, "run"))
    again = ["--num-workers", "1", "--cpus-per-worker", "0.5"]
    _, err = run_here("train", "--data", prepared, "--out", "s3://bucket/run", *RECIPE, *again)
    assert f"resuming from checkpoint {EPOCHS * STEPS:010}" in err  # nothing is left to do


def test_an_evaluation_counts_every_line_of_a_split(prepared, trained):
    run("evaluate", "--data", prepared, "--model", trained, "--split", "test", "--out", "s3://bucket/evaluation")
    metrics = storage.read_json("s3://bucket/evaluation/metrics.json")
    assert metrics["num_lines"] == 20
    filesystem, folder = storage.locate("s3://bucket/evaluation/predictions")
    assert ds.dataset(folder, filesystem=filesystem).count_rows() == 20


def test_a_sweep_leaves_its_trials_and_the_chosen_bundle_in_a_bucket(prepared, bucket):
    space = ["--space", "scale=0.25", "gru_size=16,32", "batch_size=16", "learning_rate=1e-2", "dropout=0"]
    run("tune", "--data", prepared, "--out", "s3://bucket/sweep", "--trials", "1", "--epochs", "1", *space)
    found = keys(bucket, "sweep")
    assert {"sweep/trials.csv", "sweep/report.html", "sweep/best/model.safetensors"} <= set(found)
    assert sum(key.endswith("/trial.json") for key in found) == 1


def test_images_are_transcribed_from_bucket_to_bucket(trained, bucket):
    run("transcribe", "--images", "s3://bucket/drawn/test_v2", "--model", trained, "--out", "s3://bucket/transcripts")
    (name,) = [key for key in keys(bucket, "transcripts") if key.endswith(".parquet")]
    table = read_parquet(f"s3://bucket/{name}")
    assert sorted(table["path"].to_pylist()) == sorted(f"test/{n}.png" for n in range(20))
    assert table["error"].null_count == 20


def test_a_path_that_not_every_node_sees_is_refused_by_its_name(prepared, trained, tmp_path, draw_text):
    draw_easy_lines(tmp_path, draw_text, train=20)
    # All nodes run on one machine and see the same files, except for this folder, which differs between processes.
    unshared = "/proc/self/cwd"
    commands = [
        ["prepare", "--data", tmp_path, "--out", f"{unshared}/prepared"],
        ["train", "--data", prepared, "--out", f"{unshared}/run", *RECIPE],
        ["tune", "--data", prepared, "--out", f"{unshared}/sweep"],
        ["evaluate", "--data", prepared, "--model", trained, "--out", f"{unshared}/evaluation"],
        ["transcribe", "--images", tmp_path / "train_v2", "--model", trained, "--out", f"{unshared}/transcripts"],
    ]
    for command in commands:
        message = mistake(*command, cwd=tmp_path)
        assert "does not see /proc/self/cwd/" in message and "that all nodes share" in message


def test_a_job_that_lacks_cpus_is_refused_or_waits_for_a_node_as_it_is_told(nodes, trained):
    command = ["transcribe", "--images", "s3://bucket/drawn/test_v2", "--model", trained, "--num-workers", "10"]
    refused, waiting = [*command, "--out", "s3://bucket/refused"], [*command, "--out", "s3://bucket/waited"]
    waiting += ["--wait-minutes", "5"]
    for command in (refused, [*refused, "--wait-minutes", "0.05"]):
        assert "needs 4.5 CPUs and the cluster has 4" in mistake(*command)
    process = start(*waiting)
    log = read_until(process, "waiting for nodes")
    assert "needs 4.5 CPUs and the cluster has 4" in log.splitlines()[-1]
    node = started(nodes.add_node, **NODE)
    err = end_of(process)
    nodes.remove_node(node)
    assert process.returncode == 0, err
    assert storage.read_json("s3://bucket/waited/_run.json")["num_images"] == 20
