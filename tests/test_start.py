"""Tests of how a job starts in an adverse environment, and how it ends if it is stopped while it starts."""

import shutil
import signal
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from conftest import new_tiny_bundle, wait_for
from job_runs import named_below, start

from hwr_ray.images.lines import encode_png
from hwr_ray.recognition.bundle import save_bundle


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, draw_text):
    """Command-line arguments for two images and a bundle."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "images").mkdir()
    for text in ("A", "B"):
        (folder / f"images/{text}.png").write_bytes(encode_png(draw_text(text)))
    save_bundle(new_tiny_bundle(), str(folder / "bundle"))
    return ["--images", folder / "images", "--model", folder / "bundle", "--num-workers", 1]


@pytest.fixture
def own_ray(monkeypatch):
    """Removes the Ray that a job would join; a test may leave its own address."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


def test_a_dead_heads_address_a_long_temporary_folder_and_a_narrow_encoding_stop_no_job(
    arguments, own_ray, tmp_path, monkeypatch
):
    long = tmp_path / ("x" * 60)
    (long / "ray").mkdir(parents=True)
    with socket.socket() as bound:  # nothing listens there
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        (long / "ray/ray_current_cluster").write_text(address)
        monkeypatch.setenv("TMPDIR", str(long))
        monkeypatch.delenv("RAY_TMPDIR", raising=False)
        monkeypatch.setenv("PYTHONIOENCODING", "ascii")
        out = tmp_path / "é"
        process = start("transcribe", *arguments, "--out", out)
        stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert stdout == f"{tmp_path}/\\xe9\n"
    assert pd.read_parquet(out).error.isna().tolist() == [True, True]
    assert f"no Ray answers at {address}, the address in {long}/ray/ray_current_cluster" in stderr
    assert f"Ray keeps its files in /tmp/ray, not in {long}/ray: its path is too long" in stderr
    assert "on Ray: 1 nodes" in stderr
    # Only the job's own log lines.
    assert not [line for line in stderr.splitlines() if not line[:8].replace(":", "").isdigit()]


def test_an_address_where_no_ray_answers_is_a_mistake_told_at_once(arguments, own_ray, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, never responds, like a stopped head
        monkeypatch.setenv("RAY_ADDRESS", address := f"127.0.0.1:{silent.getsockname()[1]}")
        process = start("transcribe", *arguments, "--out", tmp_path / "out")
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == 2
    assert f"no Ray answers at RAY_ADDRESS={address}: start it there, or set" in stderr.splitlines()[-1]
    assert "Traceback" not in stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sent", "latch"),
    [
        (signal.SIGINT, "import ray"),
        (signal.SIGTERM, "gcs_server"),
        (signal.SIGINT, "raylet/raylet"),
        (signal.SIGTERM, "PartitionReader"),
    ],
)
def test_a_job_that_is_told_to_stop_while_it_starts_ends_with_all_its_processes(
    arguments, own_ray, tmp_path, monkeypatch, sent, latch
):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    folder = tempfile.mkdtemp(prefix="hwr-")  # a short path, which is on the command line of all of Ray's processes
    monkeypatch.setenv("RAY_TMPDIR", folder)
    process = start("transcribe", *arguments, "--out", tmp_path / "out")
    if latch == "import ray":
        maps = Path(f"/proc/{process.pid}/maps")
        wait_for(lambda: "_raylet.so" in maps.read_text(), process)
    else:
        wait_for(lambda: named_below(process.pid, latch), process)
        assert processes_of(folder)
    process.send_signal(sent)
    process.communicate(timeout=100)
    # The job ends by its own handler, by Ray's, or by the signal's default action before Python has a handler.
    assert process.returncode in (128 + sent, sent, -sent)
    deadline = time.monotonic() + 100
    while running := processes_of(folder):
        assert time.monotonic() < deadline, running
        time.sleep(0.05)
    shutil.rmtree(folder)


def processes_of(folder: str) -> list[str]:
    """Returns the command lines of the processes of the Ray that keeps its files in a folder."""
    command_lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the process has ended
            command_lines.append(path.read_text())
    return [line for line in command_lines if folder in line]
