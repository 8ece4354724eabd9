"""`ray job submit`, as the README gives it, to a cluster as its own commands start it, with a token."""

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
TOKEN = "a token of at least a few characters"  # noqa: S105 - of a head that lives for a test
EPOCHS = 4
HELD = "import hwr_ray.training.train, latches, pathlib, runpy, sys; sys.argv[0] = 'jobs/train.py'; "
HELD += "hwr_ray.training.train.train_loop_per_worker = latches.training((14, pathlib.Path({folder!r}))); "
HELD += "runpy.run_path(sys.argv[0], run_name='__main__')"
"""A training that is held in its third epoch, of six steps each."""
RECIPE = ["--epochs", EPOCHS, "--batch-size", "16", "--gru-size", "16", "--conv-widths", "8", "8", "16", "16"]
RECIPE += ["--patience", EPOCHS]


PORTS = {
    "head_start_ray_commands": ["dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port"],
    "worker_start_ray_commands": ["dashboard-agent-listen-port"],
}
"""Other Rays of this machine may hold the usual ones."""


class Head:
    """A head and a node with a token, started by the commands for machines of one's own, on this machine alone, without
    ssh, and without `ray stop`, which ends all of a user's Ray; and the command line of one who submits to it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.metrics_ports = folder, free_port(), [free_port(), free_port()]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        environment |= {"RAY_metrics_report_interval_ms": "1000", "RAY_worker_niceness": "0"}
        environment["PYTHONPATH"] = str(ROOT / "tests")  # for latches, which are not uploaded
        self.environment = {**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        config = yaml.safe_load((ROOT / "deploy/cluster-on-premise.yaml").read_text())
        alone = {**config, "provider": {**config["provider"], "head_ip": "127.0.0.1", "worker_ips": []}}
        (folder / "ray_bootstrap_config.yaml").write_text(json.dumps(prepare_config(alone)))
        (folder / "hwr_ray").mkdir()
        (folder / "hwr_ray/.venv").symlink_to(sys.prefix)
        (folder / ".ray").mkdir()
        (folder / ".ray/auth_token").write_text(TOKEN)
        # RAY_TMPDIR: else Ray would take it for this machine's running cluster.
        environment |= {"HOME": str(folder), "RAY_HEAD_IP": "127.0.0.1", "RAY_TMPDIR": str(folder)}
        said = ""
        more = {
            "head_start_ray_commands": "",
            "worker_start_ray_commands": "--num-cpus=4 --object-store-memory=200000000",
        }
        for (commands, ports), metrics_port in zip(PORTS.items(), self.metrics_ports, strict=True):
            stop, begin = config[commands]
            assert stop.endswith("ray stop")
            options = [f"--{name}={free_port()}" for name in ports]
            options += [
                "--num-gpus=0",
                f"--metrics-export-port={metrics_port}",
                more[commands],
            ]  # also where there are some
            command = ["bash", "-c", f"{begin.replace('6379', str(self.port))} {' '.join(options)}"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stdout + done.stderr
            said += done.stdout
        self.dashboard = re.search(r"127\.0\.0\.1:\d+", said.partition("http://")[2])[0]

    def get(self, url):
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})  # noqa: S310
        return urllib.request.urlopen(request, timeout=10).read().decode()  # noqa: S310

    def metrics(self, names, **labels):
        """The metrics of these names that have such labels, as Prometheus would read them, once they are all there."""
        deadline, found = time.monotonic() + 60, []
        while {name for name, _, _ in found} != names:
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
            text = "".join(self.get(f"http://127.0.0.1:{port}/metrics") for port in self.metrics_ports)
            samples = re.findall(r"^(\w+)\{(.*)\} (\S+)$", text, re.MULTILINE)
            told = [(name, dict(re.findall(r'(\w+)="(.*?)"', inner)), float(value)) for name, inner, value in samples]
            found = [sample for sample in told if sample[0] in names and labels.items() <= sample[1].items()]
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
        """What `ray job …` prints."""
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
    """Processes with that port on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if re.search(rf"\b{port}\b", path.read_text()):
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            continue
    return found


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
    said = head.submit("jobs/prepare.py", "--data", drawn, "--out", out, "--canvas", "16", "64")
    assert f"{out}\n" in said and "succeeded" in said
    return out


def history(out):
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


ASK = "import ray; ray.init({address!r}, log_to_driver=False)"
ASK += "; print(ray.__version__, sorted(node['Resources'].get('CPU', 0) for node in ray.nodes()))"


@pytest.fixture(scope="module")
def asked(head):
    """What a submitted program sees of the cluster, and where its code is."""
    return head.submit("-c", f"{ASK.format(address='auto')}; import hwr_ray; print(hwr_ray.__path__)")


def test_the_start_commands_for_machines_of_ones_own_make_a_cluster_that_asks_for_its_token(head, asked):
    """Its head takes jobs and runs none of their work."""
    assert f"{ray.__version__} [0, 4.0]\n" in asked
    ask = [sys.executable, "-c", ASK.format(address=f"127.0.0.1:{head.port}")]
    done = subprocess.run(ask, env={**head.environment, "RAY_AUTH_TOKEN": "another"}, capture_output=True)
    assert done.returncode


def test_without_the_token_nothing_can_be_submitted(head, folder):
    for token in ("", "another token"):
        said = head.submit("-c", f"open({str(folder / 'made')!r}, 'w')", status=1, RAY_AUTH_TOKEN=token)
        assert "token" in said.lower()
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
    said = head.submit("jobs/train.py", *settings)
    assert "going on from checkpoint" in said
    assert history(out)[: len(before)] == before and len(history(out)) == EPOCHS
    # One tidy log: what the job says, each line once, and nothing of Ray's own.
    told = re.findall(r"epoch (\d+)/", said.partition("going on from")[2].partition("\n")[2])
    assert told == [str(epoch) for epoch in range(len(before) + 1, EPOCHS + 1)]
    assert not re.findall(r".*\(\w+ pid=.*|.*issues/53727.*|Traceback", said)


def test_transcribing_and_its_metrics(head, prepared, folder):
    drawn, out = folder / "drawn/test_v2", folder / "transcripts"
    (drawn / "empty.png").write_bytes(b"")
    said = head.submit("jobs/transcribe.py", "--images", drawn, "--model", folder / "run/best", "--out", out)
    assert "20 of 21 images read" in said
    lines = head.metrics({"ray_hwr_ray_lines_total"}, stage="transcribe")
    assert {labels["outcome"]: value for _, labels, value in lines} == {"read": 20, "undecodable_image": 1}
    assert ds.dataset(sorted(out.glob("*.parquet"))).count_rows() == 21
    dashboard = json.loads((ROOT / "deploy/grafana.json").read_text())
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    names = set(re.findall(r"ray_hwr_ray_\w+", asked))
    assert names == {"ray_hwr_ray_lines_total", *(f"ray_hwr_ray_epoch_{name}" for name in EPOCH)}


def test_a_mistake_ends_the_submission_with_one_sentence_and_a_failure(head, prepared):
    said = head.submit("jobs/train.py", "--data", prepared, "--out", "run", status=1)
    assert "--out run would be lost" in said and "Traceback" not in said
