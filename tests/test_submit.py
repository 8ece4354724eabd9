"""Tests `ray job submit`, as in the README, on a cluster with a token, started by the commands of its cluster file."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import pyarrow.dataset as ds
import pytest
import ray
import yaml
from conftest import ROOT, draw_easy_lines, free_port, wait_for
from latches import Latch
from ray.autoscaler._private.util import prepare_config

from benchmarks.measuring import descendants
from hwr_ray.cluster.monitoring import EPOCH

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
TOKEN = "a token of at least a few characters"  # noqa: S105 - for a head that exists only during a test
EPOCHS = 4
HELD = "import hwr_ray.training.train, latches, pathlib, runpy, sys; sys.argv[0] = 'jobs/train.py'; "
HELD += "hwr_ray.training.train.train_loop_per_worker = latches.training((14, pathlib.Path({folder!r}))); "
HELD += "runpy.run_path(sys.argv[0], run_name='__main__')"
"""Program that holds a training in its third epoch, of six steps each."""
RECIPE = ["--epochs", EPOCHS, "--batch-size", "16", "--gru-size", "16", "--conv-widths", "8", "8", "16", "16"]
RECIPE += ["--patience", EPOCHS]


PORTS = {
    "head_start_ray_commands": ["dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port"],
    "worker_start_ray_commands": ["dashboard-agent-listen-port"],
}
"""Port options to set to free ports, because other Ray instances on this machine may use the default ones."""


class Head:
    """A head and a worker node with a token, and the command line of a user who submits jobs to them.

    The commands of deploy/cluster-on-premise.yaml start both on this machine, without ssh, and without `ray stop`,
    which would end all Ray processes of the user.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.metrics_ports = folder, free_port(), [free_port(), free_port()]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        environment |= {"RAY_metrics_report_interval_ms": "1000", "RAY_worker_niceness": "0"}
        environment["PYTHONPATH"] = str(ROOT / "tests")  # for latches.py, which is not uploaded
        self.environment = {**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        config = yaml.safe_load((ROOT / "deploy/cluster-on-premise.yaml").read_text())
        local = {**config, "provider": {**config["provider"], "head_ip": "127.0.0.1", "worker_ips": []}}
        (folder / "ray_bootstrap_config.yaml").write_text(json.dumps(prepare_config(local)))
        (folder / "hwr_ray").mkdir()
        (folder / "hwr_ray/.venv").symlink_to(sys.prefix)
        (folder / ".ray").mkdir()
        (folder / ".ray/auth_token").write_text(TOKEN)
        # RAY_TMPDIR: otherwise Ray would take it for this machine's running cluster.
        environment |= {"HOME": str(folder), "RAY_HEAD_IP": "127.0.0.1", "RAY_TMPDIR": str(folder)}
        output = ""
        node_options = {
            "head_start_ray_commands": "",
            "worker_start_ray_commands": "--num-cpus=4 --object-store-memory=200000000",
        }
        for (commands, ports), metrics_port in zip(PORTS.items(), self.metrics_ports, strict=True):
            stop, begin = config[commands]
            assert stop.endswith("ray stop")
            options = [f"--{name}={free_port()}" for name in ports]
            options += [
                "--num-gpus=0",  # even if the machine has GPUs
                f"--metrics-export-port={metrics_port}",
                node_options[commands],
            ]
            command = ["bash", "-c", f"{begin.replace('6379', str(self.port))} {' '.join(options)}"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stdout + done.stderr
            output += done.stdout
        self.dashboard = re.search(r"127\.0\.0\.1:\d+", output.partition("http://")[2])[0]

    def get(self, url):
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})  # noqa: S310
        return urllib.request.urlopen(request, timeout=10).read().decode()  # noqa: S310

    def metrics(self, names, **labels):
        """Waits for the metrics with these names and labels and returns them as Prometheus would read them."""
        deadline, found = time.monotonic() + 60, []
        while {name for name, _, _ in found} != names:
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
            text = "".join(self.get(f"http://127.0.0.1:{port}/metrics") for port in self.metrics_ports)
            samples = re.findall(r"^(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE)
            parsed = [(name, dict(re.findall(r'(\w+)="(.*?)"', inner)), float(value)) for name, inner, value in samples]
            found = [sample for sample in parsed if sample[0] in names and labels.items() <= sample[1].items()]
        return found

    def wait(self):
        deadline = time.monotonic() + 120
        while True:
            assert time.monotonic() < deadline
            try:
                self.get(f"http://{self.dashboard}/api/jobs/")
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
            else:
                return

    def ray_job(self, *words, status=0, **environment):
        """Runs `ray job …` and returns its output."""
        command = [*RAY, "job", words[0], "--address", f"http://{self.dashboard}", *map(str, words[1:])]
        done = subprocess.run(
            command,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=400,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def submit(self, *words, status=0, options=(), **environment):
        command = ["--working-dir", ROOT, *options, "--", "python", *words]
        return self.ray_job("submit", *command, status=status, **environment)

    def close(self):
        while pids := started_with(self.port):
            for pid in {child for parent in pids for child in descendants(parent)}:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)


def started_with(port: int) -> list[int]:
    """Returns the ids of processes with this port on their command line."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if re.search(rf"\b{port}\b", path.read_text()):
                pids.append(int(path.parent.name))
        except OSError:  # the process has ended
            continue
    return pids


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("submit")


@pytest.fixture(scope="module")
def head(ray_folder):
    started = Head(ray_folder)
    try:
        started.wait()
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def prepared(head, folder, draw_text):
    drawn = draw_easy_lines(folder / "drawn", draw_text, train=96, validation=16, test=20)
    out = folder / "prepared"
    output = head.submit("jobs/prepare.py", "--data", drawn, "--out", out, "--canvas", "16", "64")
    assert f"{out}\n" in output and "succeeded" in output
    return out


def history(out):
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


ASK = "import ray; ray.init({address!r}, log_to_driver=False)"
ASK += "; print(ray.__version__, sorted(node['Resources'].get('CPU', 0) for node in ray.nodes()))"


@pytest.fixture(scope="module")
def asked(head):
    """Output of a submitted program: the nodes that it sees and the path of its code."""
    return head.submit("-c", f"{ASK.format(address='auto')}; import hwr_ray; print(hwr_ray.__path__)")


def test_the_start_commands_for_machines_of_ones_own_make_a_cluster_that_asks_for_its_token(head, asked):
    """The head accepts jobs, but runs none of their tasks."""
    assert f"{ray.__version__} [0, 4.0]\n" in asked
    ask = [sys.executable, "-c", ASK.format(address=f"127.0.0.1:{head.port}")]
    done = subprocess.run(ask, env={**head.environment, "RAY_AUTH_TOKEN": "another"}, capture_output=True)
    assert done.returncode


def test_without_the_token_nothing_can_be_submitted(head, folder):
    for token in ("", "another token"):
        output = head.submit("-c", f"open({str(folder / 'made')!r}, 'w')", status=1, RAY_AUTH_TOKEN=token)
        assert "token" in output.lower()
    assert not (folder / "made").exists()


def test_what_is_uploaded_is_little_and_the_code_that_runs(head, asked):
    uploaded = [
        path for path in (head.folder / "ray").rglob("working_dir_files/_ray_pkg_*/") if "latest" not in str(path)
    ]
    (package,) = uploaded
    files = [path.relative_to(package) for path in package.rglob("*") if path.is_file()]
    assert Path("hwr_ray/transcription/transcribe.py") in files and Path("jobs/train.py") in files
    assert not {path.parts[0] for path in files} & {".git", ".venv", "tests", "quickstart"}
    assert sum((package / path).stat().st_size for path in files) < 8 << 20
    assert str(package.name) in asked


def test_a_stopped_training_goes_on_when_it_is_submitted_again_and_shows_its_figures(head, prepared, folder):
    out = folder / "run"
    settings, latch = ["--data", prepared, "--out", out, *RECIPE], Latch(folder / "latch")
    held = ["-c", HELD.format(folder=str(latch.folder)), *settings]
    head.submit(*held, options=["--submission-id", "first", "--no-wait"])
    wait_for(latch.is_reached)
    names = {f"ray_hwr_ray_epoch_{name}" for name in EPOCH}
    figures = {name: value for name, _, value in head.metrics(names, run=str(out))}
    head.ray_job("stop", "first")
    assert "was stopped" in head.ray_job("status", "first")
    before = history(out)
    assert len(before) == 2
    assert figures["ray_hwr_ray_epoch_cer"] in [row["cer"] for row in before]
    output = head.submit("jobs/train.py", *settings)
    assert "resuming from checkpoint" in output
    assert history(out)[: len(before)] == before and len(history(out)) == EPOCHS
    # The log has each line of the job once, and none of Ray's own.
    epochs = re.findall(r"epoch (\d+)/", output.partition("resuming from")[2].partition("\n")[2])
    assert epochs == [str(epoch) for epoch in range(len(before) + 1, EPOCHS + 1)]
    assert not re.findall(r".*\(\w+ pid=.*|.*issues/53727.*|Traceback", output)


def test_transcribing_and_its_metrics(head, prepared, folder):
    drawn, out = folder / "drawn/test_v2", folder / "transcripts"
    (drawn / "empty.png").write_bytes(b"")
    output = head.submit("jobs/transcribe.py", "--images", drawn, "--model", folder / "run/best", "--out", out)
    assert "20 of 21 images transcribed" in output
    lines = head.metrics({"ray_hwr_ray_lines_total"}, stage="transcribe")
    assert {labels["outcome"]: value for _, labels, value in lines} == {"read": 20, "undecodable_image": 1}
    assert ds.dataset(sorted(out.glob("*.parquet"))).count_rows() == 21
    dashboard = json.loads((ROOT / "deploy/grafana.json").read_text())
    queries = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    names = set(re.findall(r"ray_hwr_ray_\w+", queries))
    assert names == {"ray_hwr_ray_lines_total", *(f"ray_hwr_ray_epoch_{name}" for name in EPOCH)}


def test_a_mistake_ends_the_submission_with_one_sentence_and_a_failure(head, prepared):
    output = head.submit("jobs/train.py", "--data", prepared, "--out", "run", status=1)
    assert "--out run would be lost" in output and "Traceback" not in output
