"""What the project is deployed with: clusters, Kubernetes, the image; what it costs."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest
import tyro
import yaml
from conftest import PAGES, ROOT, blocks, commands, free_port
from ray.autoscaler._private.util import prepare_config, validate_config

from benchmarks.measuring import descendants
from hwr_ray.train_settings import TrainSettings
from hwr_ray.transcription import TranscribeSettings
from hwr_ray.tuning import TuneSettings

CLUSTERS = ["cluster.yaml", "deploy/cluster-gcp.yaml", "deploy/cluster-on-premise.yaml"]
SETTINGS = {"train": TrainSettings, "tune": TuneSettings, "transcribe": TranscribeSettings}
MANIFESTS = {job: ROOT / f"deploy/kuberay/{job}.yaml" for job in SETTINGS}


def pinned() -> str:
    """The minor version of Ray in the one place where versions are set."""
    return re.search(r"ray\[.*\]==(\d+\.\d+)\.\*", (ROOT / "pyproject.toml").read_text())[1]


def manifest(job):
    return yaml.safe_load(MANIFESTS[job].read_text())


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_file_passes_rays_own_validation_and_opens_neither_dashboard_nor_cluster(name):
    config = yaml.safe_load((ROOT / name).read_text())
    validate_config(prepare_config(config))
    assert any("ray/auth_token" in path for path in config["file_mounts"])
    starts = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in starts
    assert "RAY_AUTH_MODE=token" in starts + " ".join(config.get("docker", {}).get("run_options", []))
    assert "--num-cpus=0" in starts or config["available_node_types"]["head"]["resources"] == {"CPU": 0}


def test_workers_come_with_a_job_and_leave_with_it_the_gpus_on_spot_machines():
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    workers = {name: node for name, node in config["available_node_types"].items() if name != "head"}
    assert {node["min_workers"] for node in workers.values()} == {0}
    assert config["idle_timeout_minutes"] > 0
    assert workers["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert all("SecurityGroupIds" in node["node_config"] for node in config["available_node_types"].values())


def test_the_image_and_an_upload_leave_out_what_git_leaves_out():
    """The README's own commands leave handwriting in folders here."""
    lines = {name: (ROOT / name).read_text().split() for name in (".gitignore", ".dockerignore")}
    ignored = {line.strip("/") for line in lines[".gitignore"]}  # Ray reads it for an upload
    assert {"run", "new_lines", "lines", "scans"} <= ignored
    found = [line for text in PAGES.values() for _, block in blocks(text, "sh") for line in commands(block)]
    outs = {out.replace("$fold", "0") for line in found for out in re.findall(r"--out ([^/ ]+)(?= |$)", line)}
    assert len(outs) > 10 and not [out for out in outs if not any(fnmatch(out, pattern) for pattern in ignored)]
    assert ignored <= {line.strip("/").removeprefix("**/") for line in lines[".dockerignore"]}


def test_every_version_of_ray_is_the_pinned_one():
    files = [*(ROOT / name for name in CLUSTERS), *MANIFESTS.values(), ROOT / "deploy/Dockerfile"]
    texts = {path.name: path.read_text() for path in files}
    found = {
        (name, version)
        for name, text in texts.items()
        for version in re.findall(r"rayproject/ray:([\d.]+)-|rayVersion: \"([\d.]+)\"", text)
        for version in version
        if version
    }
    assert {name for name, _ in found} == set(texts) - {"cluster-on-premise.yaml"}
    assert {version for _, version in found} == {f"{pinned()}.0"}
    project = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    tags = {tag for text in texts.values() for tag in re.findall(r"/hwr_ray:([\w.]+)", text)}
    assert tags == {project}


@pytest.mark.parametrize("job", SETTINGS)
def test_a_manifest_runs_its_job_with_flags_that_the_job_has_on_workers_that_hold_it(job):
    spec = manifest(job)["spec"]
    python, script, *flags = shlex.split(spec["entrypoint"])
    assert (python, Path(script).name) == ("python", f"{job}.py")
    assert script.startswith(re.search(r"^WORKDIR (.*)", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)[1])
    settings = tyro.cli(SETTINGS[job], args=flags, config=(tyro.conf.OmitArgPrefixes,))
    reading = getattr(settings, "reading", settings)
    assert reading.use_gpu and reading.wait_minutes
    assert settings.out.startswith("s3://")
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert workers["minReplicas"] == 0 and spec["rayClusterSpec"]["enableInTreeAutoscaling"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) == 1
    assert reading.cpus_per_worker + 1 <= int(limits["cpu"])
    most = reading.num_workers[1] if isinstance(reading.num_workers, tuple) else reading.num_workers
    assert most <= workers["maxReplicas"]


def test_the_manifests_differ_in_nothing_but_their_job():
    def rest(job):
        found = manifest(job)
        del found["spec"]["entrypoint"], found["metadata"]["name"]
        return found

    assert rest("train") == rest("tune") == rest("transcribe")


PORTS = {
    "head_start_ray_commands": ["dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port"],
    "worker_start_ray_commands": ["dashboard-agent-listen-port"],
}


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


@pytest.mark.ray
def test_the_start_commands_for_machines_of_ones_own_make_a_cluster(tmp_path, ray_folder):
    """On this machine alone, without ssh, and without `ray stop`, which ends all of a user's Ray."""
    config = yaml.safe_load((ROOT / "deploy/cluster-on-premise.yaml").read_text())
    (tmp_path / "hwr_ray").mkdir()
    (tmp_path / "hwr_ray/.venv").symlink_to(sys.prefix)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").write_text("a token of at least a few characters")
    alone = {**config, "provider": {**config["provider"], "head_ip": "127.0.0.1", "worker_ips": []}}
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps(prepare_config(alone)))
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_HEAD_IP": "127.0.0.1", "RAY_AUTH_MODE": "token"}
    environment["RAY_TMPDIR"] = str(ray_folder)  # else Ray would take it for this machine's running cluster

    def sh(command, **more):
        return subprocess.run(
            ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=120, **more
        )

    try:
        said = ""
        for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
            stop, begin = config[commands]
            assert stop.endswith("ray stop")
            # other Rays of this machine may hold the usual ports
            ports = " ".join(f"--{name}={free_port()}" for name in PORTS[commands])
            done = sh(f"{begin.replace('6379', str(port))} {ports}")
            assert done.returncode == 0, done.stdout + done.stderr
            said += done.stdout
        ask = f"import ray; ray.init('127.0.0.1:{port}', log_to_driver=False)"
        ask += "; print(sorted(node['Resources'].get('CPU', 0) for node in ray.nodes()))"
        done = sh(f"{sys.executable} -c {shlex.quote(ask)}")
        assert re.fullmatch(r"\[0, [1-9][\d.]*\]", done.stdout.splitlines()[-1]), done.stdout + done.stderr
        environment["RAY_API_SERVER_ADDRESS"] = re.search(r"http://127\.0\.0\.1:\d+", said)[0]
        deadline = time.monotonic() + 90  # the head takes jobs a while after it is up
        while (
            done := sh("~/hwr_ray/.venv/bin/ray job submit -- python -c 'import ray; print(ray.__version__)'")
        ).returncode:
            assert time.monotonic() < deadline, done.stdout + done.stderr
        assert f"{pinned()}.0\n" in done.stdout, done.stdout + done.stderr
        environment["RAY_AUTH_TOKEN"] = "another"  # noqa: S105
        assert sh(f"{sys.executable} -c {shlex.quote(ask)}").returncode
    finally:
        while pids := started_with(port):
            for pid in {child for parent in pids for child in descendants(parent)}:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.2)


def test_the_costs_of_transcribing_follow_from_what_was_measured():
    measured = json.loads((ROOT / "benchmarks/results/transcribe.json").read_text())
    per_core = measured["figures"]["job"]["images_per_second"] / measured["hardware"]["cores_used"]
    text = (ROOT / "docs/operations.md").read_text()
    assert f"{per_core * 2:,.0f} image files a second" in text
    table = re.search(r"<!-- costs:begin -->(.*)<!-- costs:end -->", text, re.DOTALL)[1]
    rows = [
        [cell.strip(" $").replace(",", "") for cell in line.split("|")[1:-1]] for line in table.splitlines()[3:] if line
    ]
    assert [int(row[0]) for row in rows] == [10**6, 10**7, 10**8]
    for images, *told in rows:
        hours = int(images) / per_core / 3600
        expected = [hours, hours / (4 * 16), 0.05 * hours, 0.0004 * int(images) / 1000]
        for value, truth in zip(told, expected, strict=True):
            digits = len(value.partition(".")[2])
            assert float(value) == pytest.approx(truth, abs=0.51 * 10**-digits)
