"""Tests that training reaches the same result after the loss of workers, nodes, its driver or a checkpoint.

The tests kill at exact steps instead of waiting for the right moment: see latches.py.
"""

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import EASY_TEXTS, documented, draw_easy_lines, draw_lines, wait_for
from job_runs import (
    end_of,
    fit_decoders_here,
    meanwhile,
    mistake,
    named_below,
    read_until,
    run,
    run_apart,
    run_here,
    start,
)
from latches import Latch, training

from hwr_ray.cluster.connection import WORKER_VARIABLES
from hwr_ray.training.train import last_step

NUM_LINES, NUM_VALIDATION, BATCH_SIZE = 240, 9, 16
STEPS = NUM_LINES // BATCH_SIZE
MODEL = ["--batch-size", BATCH_SIZE, "--conv-widths", "8", "8", "16", "32", "--gru-size", "32"]
MODEL += ["--learning-rate", "1e-2", "--ema-decay", "0.9"]
RECIPE = [*MODEL, "--epochs", "3"]
"""Training flags of the runs with dropout and augmentation."""
LEARNING = [*MODEL, "--epochs", "6", "--no-augmentation", "--dropout", "0"]
HELD = "import hwr_ray.training.train, latches, pathlib\n"
HELD += "hwr_ray.training.train.train_loop_per_worker = latches.training({stops})"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("train-kills")


@pytest.fixture(scope="module")
def prepared(folder, draw_text, ray_cluster):
    drawn = draw_easy_lines(folder / "drawn", draw_text, train=NUM_LINES, validation=NUM_VALIDATION)
    run_here("prepare", "--data", drawn, "--out", folder / "prepared", "--canvas", "16", "64")
    return folder / "prepared"


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    hold_at(monkeypatch)
    fit_decoders_here(monkeypatch)


def hold_at(monkeypatch, *stops) -> None:
    """Makes the jobs of this process hold their training at some steps."""
    monkeypatch.setattr("hwr_ray.training.train.train_loop_per_worker", training(*stops))


def start_held(prepared, out, *stops):
    """Starts a training in its own process that is held at some steps."""
    stops = ", ".join(f"({step}, pathlib.Path({str(latch)!r}))" for step, latch in stops)
    return start("train", "--data", prepared, "--out", out, *RECIPE, prelude=HELD.format(stops=stops))


def history(out):
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def undisturbed(folder, prepared):
    """An uninterrupted run with dropout and augmentation."""
    with pytest.MonkeyPatch.context() as patch:
        hold_at(patch)
        run_here("train", "--data", prepared, "--out", folder / "undisturbed", *RECIPE)
    return folder / "undisturbed"


@pytest.fixture(scope="module")
def learned(folder, prepared):
    """An uninterrupted run that learns."""
    with pytest.MonkeyPatch.context() as patch:
        hold_at(patch)
        run_here("train", "--data", prepared, "--out", folder / "learned", *LEARNING)
    return folder / "learned"


def last_state(out):
    """Returns the newest checkpoint's weights, average and optimizer state, each as one flat tensor."""
    state = torch.load(max((out / "checkpoints").glob("*.pt")), weights_only=True)
    tensors = {name: torch.cat([value.flatten().double() for value in state[name].values()]) for name in PARTS}
    moments = [value for parameter in state["optimizer"]["state"].values() for value in parameter.values()]
    return {**tensors, "optimizer": torch.cat([value.flatten().double() for value in moments])}


PARTS = ("model", "ema")


def check_exact(out, undisturbed):
    """Checks that each epoch was trained once with the undisturbed run's metrics, up to the same final state."""
    rows, expected = history(out), history(undisturbed)
    assert [row["epoch"] for row in rows] == [row["epoch"] for row in expected] == [1, 2, 3]
    for row, other in zip(rows, expected, strict=True):
        for name in ("loss", "gradient_norm"):
            assert row[name] == pytest.approx(other[name], rel=1e-6), (row["epoch"], name)
        for name in ("step", "num_lines", "num_characters", "num_edits", "learning_rate"):
            assert row[name] == other[name], (row["epoch"], name)
    state, wanted = last_state(out), last_state(undisturbed)
    for name, numbers in wanted.items():
        torch.testing.assert_close(state[name], numbers, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: name + text)


def check_same(rows, expected):
    """Checks that each epoch was trained once on all lines, with the losses of one worker up to rounding errors, which
    grow with the steps."""
    assert [row["epoch"] for row in rows] == [row["epoch"] for row in expected]
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    assert {row["num_lines"] for row in rows} == {NUM_VALIDATION}
    # Observed: 6e-9, 3e-5, 1e-3. Adam takes a full step even for a gradient that is only rounding error.
    for row, other, rel in zip(rows, expected, (1e-4, 3e-3, 5e-2), strict=False):
        assert row["loss"] == pytest.approx(other["loss"], rel=rel)
        assert row["gradient_norm"] == pytest.approx(other["gradient_norm"], rel=10 * rel)
    assert rows[-1]["cer"] == pytest.approx(expected[-1]["cer"], abs=0.08)


def test_the_undisturbed_run_learns(learned):
    rows = history(learned)
    assert rows[-1]["cer"] < 0.3 < rows[0]["cer"]


def test_a_worker_killed_within_an_epoch_costs_no_result(folder, prepared, undisturbed, monkeypatch):
    out, latch, step = folder / "worker", Latch(folder / "worker-latch"), STEPS + 6

    def kill() -> None:
        wait_for(latch.is_reached)
        variables = Path(f"/proc/{latch.pid()}/environ").read_text().split("\0")
        os.kill(latch.pid(), signal.SIGKILL)
        assert {f"{name}={value}" for name, value in WORKER_VARIABLES.items()} <= set(variables)

    hold_at(monkeypatch, (step, latch.folder))
    with meanwhile(kill):
        _, err = run("train", "--data", prepared, "--out", out, *RECIPE)
    assert re.search(rf"resuming from checkpoint {step:010}-\w+.pt: epoch 2, after 6 of {STEPS} steps", err)
    check_exact(out, undisturbed)


def test_the_same_command_goes_on_after_ctrl_c_within_an_epoch_a_damaged_checkpoint_and_kill(
    folder, prepared, undisturbed
):
    out, first, second = folder / "stopped", Latch(folder / "first"), Latch(folder / "second")
    process = start_held(prepared, out, (STEPS + 4, first.folder))
    wait_for(first.is_reached, process)
    process.send_signal(signal.SIGINT)
    read_until(process, "stopping after a checkpoint")
    first.release()
    err = end_of(process)
    assert process.returncode == 130, err
    assert "to resume: python" in err.splitlines()[-1] and f"--out {out}" in err.splitlines()[-1]
    assert "Traceback" not in err
    before = history(out)
    assert len(before) == 1 and last_step(str(out)) == STEPS + 5  # including the step in progress
    assert (out / "curves.png").stat().st_size > 10_000

    newest = max((out / "checkpoints").glob("*.pt"))
    os.truncate(newest, newest.stat().st_size // 2)
    process = start_held(prepared, out, (2 * STEPS + 3, second.folder))
    damaged = f"the checkpoint {newest} is damaged: trying the previous one"
    read_until(process, damaged, f"resuming from checkpoint {STEPS + 4:010}")
    wait_for(second.is_reached, process)
    process.kill()
    process.communicate()
    killed = history(out)
    assert killed[:1] == before and len(killed) == 2

    command = ["train", "--data", prepared, "--out", out, *RECIPE]
    run_here(*command)
    assert history(out)[:2] == killed  # a row is written after its checkpoint
    check_exact(out, undisturbed)
    message = mistake(*command, "--learning-rate", "1e-3")
    assert "learning_rate = 0.01, not 0.001" in message


def test_of_two_that_train_the_same_run_the_later_one_ends_it_and_the_other_says_so(folder, prepared, undisturbed):
    out, latch = folder / "twice", Latch(folder / "twice-latch")
    first = start_held(prepared, out, (STEPS + 4, latch.folder))
    wait_for(latch.is_reached, first)
    run_here("train", "--data", prepared, "--out", out, *RECIPE)
    latch.release()
    err = end_of(first)
    assert first.returncode == 2, err
    assert f"another process took over {out}" in err
    check_exact(out, undisturbed)


def test_a_run_whose_checkpoints_are_gone_does_not_begin_again_over_its_best(folder, prepared, undisturbed):
    out = folder / "gone"
    shutil.copytree(undisturbed, out)
    shutil.rmtree(out / "checkpoints")
    before = (out / "best/model.safetensors").read_bytes()
    message = mistake("train", "--data", prepared, "--out", out, *RECIPE)
    assert f"{out} has 3 epochs but no intact checkpoint" in message
    assert (out / "best/model.safetensors").read_bytes() == before


def test_epochs_of_one_step_can_be_stopped_and_a_rate_that_diverges_is_told_in_a_sentence(folder, prepared):
    whole = ["--data", prepared, "--batch-size", NUM_LINES, "--conv-widths", "4", "4", "8", "8", "--gru-size", "8"]
    out = folder / "whole"

    def interrupt() -> None:
        wait_for(lambda: len(history(out)) >= 3)
        os.kill(os.getpid(), signal.SIGINT)  # the main thread waits for the job, which has thousands of epochs left

    with meanwhile(interrupt):
        _, err = run_here("train", *whole, "--out", out, "--epochs", "3000", "--patience", "3000", status=130)
    assert 3 <= len(history(out)) < 3000
    assert (out / "curves.png").exists()
    diverging = ["--out", folder / "diverged", "--learning-rate", "1e30", "--epochs", "30"]
    _, err = run_here("train", *whole, *diverging, status=2)
    assert "is not finite: lower --learning-rate and choose another --out" in err and "Traceback" not in err


def test_a_node_lost_on_the_way_leaves_fewer_workers_and_the_same_result(
    folder, prepared, learned, ray_cluster, second_node, monkeypatch
):
    out, latch = folder / "node", Latch(folder / "node-latch")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")  # instead of waiting a minute for the lost node
    raylet = second_node.all_processes["raylet"][0].process.pid

    def lose() -> None:
        wait_for(latch.is_reached)
        assert len(named_below(raylet, "RayTrainWorker")) == 1
        ray_cluster.remove_node(second_node, allow_graceful=False)

    hold_at(monkeypatch, (STEPS + 4, latch.folder))
    with meanwhile(lose):
        workers = ["--num-workers", "1:2", "--cpus-per-worker", "1.5"]
        _, err = run("train", "--data", prepared, "--out", out, *LEARNING, *workers)
    assert "on Ray: 2 nodes" in err
    assert re.findall(r"resuming from checkpoint 0*(\d+)", err) == [str(STEPS + 4)]
    check_same(history(out), history(learned))


def test_lines_that_are_streamed_to_two_workers_teach_as_well_and_as_many_are_validated(folder, prepared, learned):
    command = documented("jobs/train.py --data prepared --out run --num-workers 2", run="streamed")
    command += [*LEARNING, "--epochs", 5, "--stream", "--wandb-project", "tests"]
    stdout, _ = run_apart(*command, cwd=folder)
    assert stdout == f"{folder / 'streamed/best'}\n"
    rows = history(folder / "streamed")
    assert [row["step"] for row in rows] == [STEPS * epoch for epoch in range(1, 6)]
    for name in ("num_lines", "num_characters"):
        assert {row[name] for row in rows} == {history(learned)[0][name]}
    assert rows[-1]["loss"] < 0.4 * rows[0]["loss"]  # 0.44 of it remains until the model tells letters apart
    assert len(list((folder / "streamed/wandb").glob("offline-run-*"))) == 1  # rank 0's only


def test_a_bundle_learns_a_larger_charset_from_where_it_stands(folder, draw_text, prepared, learned):
    more = folder / "more"
    csv, images = draw_lines(more, draw_text, [f"{text[:2]}O" for text in EASY_TEXTS * 6])
    own = ["--labels", csv, "--images", images, "--out", more / "own", "--canvas", "16", "64"]
    run_here("prepare", *own)
    bundle = learned / "best"
    settings = ["--epochs", "4", "--batch-size", "16", "--no-augmentation", "--dropout", "0", "--ema-decay", "0.9"]
    settings += ["--learning-rate", "3e-3"]
    command = "jobs/train.py --data own --out tuned --init-from run/best --epochs 10 --learning-rate 1e-3"
    run_here(*documented(command, tuned="run", **{"run/best": bundle}), *settings, cwd=more)
    config = json.loads((more / "run/best/config.json").read_text())
    assert config["charset"] == "ABEO"
    assert config["architecture"]["conv_widths"] == [8, 8, 16, 32]
    # 4 epochs of 8 steps from random weights recognize nothing
    assert min(row["cer"] for row in history(more / "run")) < 0.5
    message = mistake("train", "--data", more / "own", "--out", more / "run", *settings)
    assert "is a run with model.conv_widths" in message
    message = mistake("train", "--data", more / "own", "--out", more / "no", "--init-from", bundle, "--gru-size", "64")
    assert "--gru-size 64 does not match the bundle of --init-from, which has 32" in message
