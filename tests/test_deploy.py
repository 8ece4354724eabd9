"""Tests the deployment files: cluster configurations, Kubernetes manifests, the image, and the documented costs."""

import json
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest
import tyro
import yaml
from conftest import PAGES, ROOT, blocks, commands
from ray.autoscaler._private.util import prepare_config, validate_config

from hwr_ray.training.settings import TrainSettings
from hwr_ray.transcription.settings import TranscribeSettings
from hwr_ray.tuning.tune import TuneSettings

CLUSTERS = ["cluster.yaml", "deploy/cluster-gcp.yaml", "deploy/cluster-on-premise.yaml"]
SETTINGS = {"train": TrainSettings, "tune": TuneSettings, "transcribe": TranscribeSettings}
MANIFESTS = {job: ROOT / f"deploy/kuberay/{job}.yaml" for job in SETTINGS}


def pinned() -> str:
    """Returns the minor version of Ray that pyproject.toml pins."""
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
    """The commands in the README write handwriting to folders of the checkout."""
    lines = {name: (ROOT / name).read_text().split() for name in (".gitignore", ".dockerignore")}
    ignored = {line.strip("/") for line in lines[".gitignore"]}  # Ray applies .gitignore to uploads
    assert {"run", "new_lines", "lines", "scans"} <= ignored
    lines_run = [line for text in PAGES.values() for _, block in blocks(text, "sh") for line in commands(block)]
    outs = {out.replace("$fold", "0") for line in lines_run for out in re.findall(r"--out ([^/ ]+)(?= |$)", line)}
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
    assert reading.workers.use_gpu and reading.workers.wait_minutes
    assert settings.out.startswith("s3://")
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert workers["minReplicas"] == 0 and spec["rayClusterSpec"]["enableInTreeAutoscaling"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) == 1
    assert reading.workers.cpus_per_worker + 1 <= int(limits["cpu"])
    most = reading.num_workers[1] if isinstance(reading.num_workers, tuple) else reading.num_workers
    assert most <= workers["maxReplicas"]


def test_the_manifests_differ_in_nothing_but_their_job():
    def rest(job):
        content = manifest(job)
        del content["spec"]["entrypoint"], content["metadata"]["name"]
        return content

    assert rest("train") == rest("tune") == rest("transcribe")


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
    for images, *documented in rows:
        hours = int(images) / per_core / 3600
        expected = [hours, hours / (4 * 16), 0.05 * hours, 0.0004 * int(images) / 1000]
        for value, target in zip(documented, expected, strict=True):
            digits = len(value.partition(".")[2])
            assert float(value) == pytest.approx(target, abs=0.51 * 10**-digits)
