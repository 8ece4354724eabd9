"""Training that loses workers, nodes, its driver or a checkpoint, and ends as if nothing had been."""

import json
import os
import re
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import (
    EASY_TEXTS,
    REPORT_INTERVAL,
    documented,
    draw_easy_lines,
    draw_lines,
    mistake,
    named_below,
    run,
    start,
    wait_for,
)
from ray.cluster_utils import Cluster

from hwr_ray.cluster import ALLOCATOR
from hwr_ray.training import last_step

EPOCHS, NUM_VALIDATION = 8, 9
RECIPE = ["--epochs", EPOCHS, "--batch-size", "16", "--learning-rate", "1e-2", "--no-augmentation", "--dropout", "0"]
RECIPE += ["--conv-widths", "8", "8", "16", "32", "--gru-size", "32", "--average-decay", "0.9", "--patience", EPOCHS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("train-kills")


@pytest.fixture(scope="module")
def prepared(folder, draw_text, ray_cluster):
    drawn = draw_easy_lines(folder / "drawn", draw_text, train=240, validation=NUM_VALIDATION)
    run("prepare", "--data", drawn, "--out", folder / "prepared", "--canvas", "16", "64")
    return folder / "prepared"


def history(out):
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def undisturbed(folder, prepared):
    run("train", "--data", prepared, "--out", folder / "undisturbed", *RECIPE)
    return history(folder / "undisturbed")


def check_same(rows, undisturbed):
    """Every epoch once, all lines counted, and the same losses but for noise, which bfloat16 makes and steps add to."""
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    assert {row["num_lines"] for row in rows} == {NUM_VALIDATION}
    assert [row["step"] for row in rows] == [row["step"] for row in undisturbed]
    for row, expected in zip(rows, undisturbed, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=0.5, abs=0.2)
    for row, expected in list(zip(rows, undisturbed, strict=True))[:2]:
        assert row["loss"] == pytest.approx(expected["loss"], rel=0.1)
        assert row["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=0.3)
    assert rows[-1]["cer"] == pytest.approx(undisturbed[-1]["cer"], abs=0.08)


@contextmanager
def on_core(number):
    """What is started meanwhile keeps to one core: else the worker on each node would have threads for all of them."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(cores)[number]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def test_the_undisturbed_run_learns(undisturbed):
    assert undisturbed[-1]["cer"] < 0.3 < undisturbed[0]["cer"]


def test_a_worker_killed_within_an_epoch_costs_no_result(folder, prepared, undisturbed):
    out = folder / "worker"
    often = ["--num-workers", "2", "--checkpoint-minutes", "1e-6"]  # whenever the workers look up
    process = start("train", "--data", prepared, "--out", out, *RECIPE, *often)
    steps = undisturbed[0]["step"]
    wait_for(process, lambda: len(history(out)) >= 1)
    victims = named_below(os.getpid(), "RayTrainWorker")  # the session's cluster is this process's child
    assert len(victims) == 2
    for victim in victims:
        variables = Path(f"/proc/{victim}/environ").read_text().split("\0")
        assert {f"{name}={value}" for name, value in ALLOCATOR.items()} <= set(variables)
    # not at its end, where the next checkpoint might be that of the whole epoch
    wait_for(process, lambda: 0 < last_step(str(out)) % steps < steps / 2)
    os.kill(victims[1], signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found = re.findall(r"going on from checkpoint (\d+)", err)
    assert found and int(found[-1]) % steps  # within an epoch
    check_same(history(out), undisturbed)


def test_the_same_command_goes_on_after_ctrl_c_within_an_epoch_a_damaged_checkpoint_and_kill(
    folder, prepared, undisturbed
):
    out = folder / "stopped"
    command = ["train", "--data", prepared, "--out", out, *RECIPE]
    process = start(*command)
    wait_for(process, lambda: len(history(out)) >= 2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "to go on: python" in err.splitlines()[-1] and f"--out {out}" in err.splitlines()[-1]
    assert "Traceback" not in err
    before = history(out)
    assert last_step(str(out)) > before[-1]["step"]  # within an epoch, or at its end without the validation
    assert len(before) < EPOCHS
    assert (out / "curves.png").stat().st_size > 10_000
    newest = sorted((out / "checkpoints").glob("*.pt"))[-1]
    os.truncate(newest, newest.stat().st_size // 2)
    process = start(*command)
    awaited = {f"the checkpoint {newest} is damaged: going on from the one before"}
    awaited |= {f"going on from checkpoint {before[-1]['step']:010}"}
    for line in process.stderr:
        awaited -= {words for words in awaited if words in line}
        if not awaited:
            break
    assert not awaited
    wait_for(process, lambda: len(history(out)) > len(before))
    process.kill()
    process.communicate()
    killed = history(out)
    assert killed[: len(before)] == before and len(killed) < EPOCHS
    run(*command)
    assert history(out)[: len(killed)] == killed  # a line is written after its checkpoint
    check_same(history(out), undisturbed)
    message = mistake(*command, "--learning-rate", "1e-3")
    assert "learning_rate = 0.01, not 0.001" in message


def test_of_two_that_train_the_same_run_the_later_one_ends_it_and_the_other_says_so(
    folder, prepared, undisturbed, monkeypatch
):
    out = folder / "twice"
    command = ["train", "--data", prepared, "--out", out, *RECIPE]
    with monkeypatch.context() as patch:
        patch.setenv(REPORT_INTERVAL, "10")  # so that the later one has a minute to start
        first = start(*command)
    wait_for(first, lambda: len(history(out)) >= 1)
    run(*command)
    _, err = first.communicate(timeout=300)
    assert first.returncode == 2, err
    assert f"another process began to write {out} and took over" in err
    check_same(history(out), undisturbed)


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again_over_its_best(folder, prepared, undisturbed):
    out = folder / "gone"
    shutil.copytree(folder / "undisturbed", out)
    shutil.rmtree(out / "checkpoints")
    before = (out / "best/model.safetensors").read_bytes()
    message = mistake("train", "--data", prepared, "--out", out, *RECIPE)
    assert f"{out} has {EPOCHS} epochs and no whole checkpoint" in message
    assert (out / "best/model.safetensors").read_bytes() == before


def test_epochs_of_one_step_can_be_stopped_and_a_rate_that_diverges_is_told_in_a_sentence(folder, prepared):
    whole = ["--data", prepared, "--batch-size", "240", "--conv-widths", "4", "4", "8", "8", "--gru-size", "8"]
    process = start("train", *whole, "--out", folder / "whole", "--epochs", "3000", "--patience", "3000")
    wait_for(process, lambda: len(history(folder / "whole")) >= 3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130, err
    assert "to go on: python" in err.splitlines()[-1]
    diverging = ["--out", folder / "diverged", "--learning-rate", "1e30", "--epochs", "30"]
    _, err = run("train", *whole, *diverging, status=2)
    assert "is not finite: lower --learning-rate, and name another --out" in err and "Traceback" not in err


def test_a_node_lost_on_the_way_leaves_fewer_workers_and_the_same_result(folder, prepared, undisturbed, monkeypatch):
    size = {"num_cpus": 2, "object_store_memory": 100 << 20}
    with on_core(0):
        cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    try:
        with on_core(-1):
            node = cluster.add_node(**size)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")  # not a minute, for room on the lost node
        out = folder / "node"
        command = ["--data", prepared, "--out", out, *RECIPE, "--num-workers", "1:2", "--cpus-per-worker", "1.5"]
        process = start("train", *command)
        wait_for(process, lambda: history(out))
        assert named_below(node.all_processes["raylet"][0].process.pid, "RayTrainWorker")
        cluster.remove_node(node, allow_graceful=False)
        _, err = process.communicate(timeout=400)
    finally:
        cluster.shutdown()
    assert process.returncode == 0, err
    assert "on Ray: 2 nodes" in err and "going on from checkpoint" in err
    check_same(history(out), undisturbed)


def test_lines_that_are_streamed_to_two_workers_teach_as_well(folder, prepared, undisturbed):
    out, epochs = folder / "streamed", 6
    run("train", "--data", prepared, "--out", out, *RECIPE, "--epochs", epochs, "--stream", "--num-workers", "2")
    rows = history(out)
    assert [row["step"] for row in rows] == [row["step"] for row in undisturbed[:epochs]]
    assert {row["num_lines"] for row in rows} == {NUM_VALIDATION}
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]  # 0.44 of it remain as long as no letter is told from another


def test_a_bundle_learns_a_larger_charset_from_where_it_stands(folder, draw_text, prepared, undisturbed):
    more = folder / "more"
    csv, images = draw_lines(more, draw_text, [f"{text[:2]}O" for text in EASY_TEXTS * 6])
    own = ["--csv", csv, "--images", images, "--out", more / "own", "--canvas", "16", "64"]
    run("prepare", *own)
    bundle = folder / "undisturbed/best"
    settings = ["--epochs", "4", "--batch-size", "16", "--no-augmentation", "--dropout", "0", "--average-decay", "0.9"]
    settings += ["--learning-rate", "3e-3"]
    command = "jobs/train.py --data own --out tuned --init-from run/best --epochs 10 --learning-rate 1e-3"
    run(*documented(command, tuned="run", **{"run/best": bundle}), *settings, cwd=more)
    config = json.loads((more / "run/best/config.json").read_text())
    assert config["charset"] == "ABEO"
    assert config["architecture"]["conv_widths"] == [8, 8, 16, 32]
    # from random weights, 4 epochs of 8 steps read nothing
    assert min(row["cer"] for row in history(more / "run")) < 0.5
    message = mistake("train", "--data", more / "own", "--out", more / "run", *settings)
    assert "is a run with model.conv_widths" in message
    message = mistake("train", "--data", more / "own", "--out", more / "no", "--init-from", bundle, "--gru-size", "64")
    assert "--gru-size 64 is not the architecture of --init-from, which has 32" in message
