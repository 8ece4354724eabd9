"""Tests that imports load little and have no side effects. pyproject.toml has the contract of the packages' order."""

import ast
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "hwr_ray").rglob("*.py")
    if path.stem != "__init__"
)
MOST_MODULES, MOST_LINES = 12, 300
"""Maximum number of modules of a package, and of lines of a module."""


def test_no_module_is_named_for_having_no_home():
    names = {part for module in MODULES for part in module.replace(".", "_").split("_")}
    assert not names & {"util", "utils", "common", "helper", "helpers", "manager", "misc"}


def test_packages_and_modules_are_small():
    for folder in (ROOT / "hwr_ray").rglob("**/"):
        modules = list(folder.glob("*.py"))
        assert len(modules) <= MOST_MODULES + 1, folder  # with __init__
        for module in modules:
            assert len(module.read_text().splitlines()) <= MOST_LINES, module


@pytest.mark.slow
def test_what_importing_loads_and_that_it_does_nothing(tmp_path):
    """Modules that start jobs, or read and write rows, load no torch, including those that Ray Train's controller and
    the trials of a sweep import. Only inference loads OpenVINO, and only a tracked run loads wandb."""
    modules = ["transcription.transcripts", "data.prepare", "transcription.transcribe", "evaluation.evaluate"]
    modules += ["training.train", "training.trainer", "tuning.sweep"]
    code = f"""
import importlib, logging, sys
import hwr_ray
assert hwr_ray.__version__ and not {{"numpy", "torch", "ray"}} & set(sys.modules)
for module in {modules}:
    importlib.import_module(f"hwr_ray.{{module}}")
    assert not {{"torch", "openvino", "numba"}} & set(sys.modules), module
import hwr_ray.training.loop, hwr_ray.recognition.recognizer, hwr_ray.training.train, hwr_ray.tuning.tune
assert not {{"openvino", "wandb"}} & set(sys.modules)
for module in {MODULES}:
    importlib.import_module(module)
import ray
assert not ray.is_initialized()
assert not logging.getLogger().handlers
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert not list(tmp_path.iterdir())


def test_every_package_that_is_imported_is_declared():
    owners = packages_distributions()
    declared = {canonicalize_name(Requirement(line).name) for line in requires("hwr_ray") or []}
    for module in MODULES:
        path = (ROOT / module.replace(".", "/")).with_suffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in {name.split(".")[0] for name in names} - {"hwr_ray"} - sys.stdlib_module_names:
                assert declared & set(map(canonicalize_name, owners.get(name, [name]))), f"{path} imports {name}"
