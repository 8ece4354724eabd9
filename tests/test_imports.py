"""Imports point one way, from the pure to the distributed, and importing does nothing."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {path.stem: path for path in (ROOT / "hwr_ray").glob("*.py") if path.stem != "__init__"}
JOBS = {path.stem: path for path in (ROOT / "jobs").glob("*.py")}

LEVELS = {
    # texts and numbers
    **dict.fromkeys(["errors", "codec", "metrics", "calibration", "provenance", "front"], 0),
    # files, pictures, labels, the network
    **dict.fromkeys(
        [
            "storage",
            "checkpoints",
            "csv_files",
            "resuming",
            "progress",
            "line_images",
            "cleaning",
            "architecture",
            "history",
            "ray_address",
            "model",
            "augmentation",
            "glyphs",
            "forms",
            "slices",
            "folds",
        ],
        1,
    ),
    **dict.fromkeys(["language_model", "text_prior", "synced_norm", "train_settings", "submission", "comparison"], 1),
    # what CTC's frames spell
    **dict.fromkeys(["alignment", "prefix_beam", "beam_search", "decoding"], 2),
    # what is stored: bundles and data sets
    **dict.fromkeys(["labels", "tally", "line_reading", "inputs", "parts", "prepared", "synthesis"], 2),
    **dict.fromkeys(["bundle", "bundle_config", "label_list"], 2),
    **dict.fromkeys(["trials", "trials_view"], 2),
    # the recognizer and the work of one process
    **dict.fromkeys(
        [
            "network",
            "recognizer",
            "tracking",
            "monitoring",
            "cluster",
            "board",
            "fine_tuning",
            "lookout",
            "run",
            "ingest",
            "optimization",
            "train_loop",
            "batch_reading",
            "transcripts",
            "decoder_fitting",
            "cost",
            "search_space",
        ],
        3,
    ),
    # whole jobs and their reports
    **dict.fromkeys(
        [
            "pages",
            "reports",
            "preparation",
            "trainer",
            "training",
            "tuning",
            "evaluation",
            "suspects",
            "transcription",
            "export",
            "demo",
            "kaggle",
        ],
        4,
    ),
    **dict.fromkeys(["sweep", "sweep_report", "curves"], 4),
    # the command line
    "job": 5,
}
"""A module imports modules of its own level or lower ones. A new module needs a level here."""

SHARED = {"numpy": 0, "pyarrow": 1, "torch": 1, "pandas": 1}
"""Packages for all modules from a level on."""

HOMES = {
    "ray": {
        "cluster",
        "prepared",
        "batch_reading",
        "board",
        "lookout",
        "ray_address",
        "trainer",
        "run",
        "ingest",
        "train_loop",
        "preparation",
        "training",
        "tuning",
        "evaluation",
    }
    | {"transcription", "sweep", "monitoring"},
    "cv2": {"line_images", "line_reading", "glyphs", "forms", "synthesis", "demo"},
    "PIL": {"line_images", "forms"},
    "editdistance": {"metrics"},
    "fsspec": {"storage"},
    "safetensors": {"bundle", "bundle_config"},
    "wandb": {"tracking"},
    "faker": {"synthesis"},
    "matplotlib": {"forms", "pages", "reports", "sweep_report", "curves"},
    "optuna": {"search_space", "sweep_report"},
    "scipy": {"sweep_report"},
    "rich": {"trials_view"},
    "jinja2": {"pages"},
    "tyro": {"job", "train_settings"},
    "numba": {"alignment"},
    "openvino": {"network"},
    "onnxruntime": {"export"},
    "kagglehub": {"kaggle"},
    "gradio": {"demo"},
    "requests": {"kaggle"},
    "grpc": {"ray_address"},
}
"""Packages that only these modules import."""


def imported(path: Path) -> set[str]:
    """Dotted names of what a file imports, at its top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(path: Path) -> set[str]:
    """Modules of hwr_ray that a file imports."""
    return {name.split(".")[1] for name in imported(path) if name.startswith("hwr_ray.")}


def foreign(path: Path) -> set[str]:
    """Packages that a file imports, beyond the standard library and hwr_ray."""
    packages = {name.split(".")[0] for name in imported(path)}
    return packages - {"hwr_ray"} - sys.stdlib_module_names


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_no_module_of_a_higher_level(module):
    assert module in LEVELS, f"say in LEVELS where {module} belongs"
    higher = {name for name in own(MODULES[module]) if LEVELS[name] > LEVELS[module]}
    assert not higher


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_the_packages_of_its_level_or_its_own(module):
    allowed = {package for package, level in SHARED.items() if LEVELS[module] >= level}
    allowed |= {package for package, homes in HOMES.items() if module in homes}
    assert foreign(MODULES[module]) <= allowed


def test_modules_form_no_cycle():
    TopologicalSorter({module: own(path) for module, path in MODULES.items()}).prepare()


def test_no_module_is_named_for_having_no_home():
    names = {part for module in (*MODULES, *JOBS) for part in module.split("_")}
    assert not names & {"util", "utils", "common", "helper", "helpers", "manager", "misc"}


@pytest.mark.parametrize("job", JOBS)
def test_a_job_imports_only_hwr_ray(job):
    assert not foreign(JOBS[job])
    assert own(JOBS[job]) <= set(MODULES)


def test_the_recognizer_knows_no_ray():
    reached, new = set(), {"recognizer"}
    while new:
        reached |= new
        new = {name for module in new for name in own(MODULES[module])} - reached
    assert not reached & HOMES["ray"]


@pytest.mark.slow
def test_what_starts_jobs_and_reads_and_writes_rows_needs_no_torch():
    """Of training also what comes to Ray Train's controller and to a sweep's trials."""
    modules = ["transcripts", "preparation", "transcription", "evaluation", "training", "trainer", "sweep"]
    code = f"""
import importlib, sys
for module in {modules}:
    importlib.import_module(f"hwr_ray.{{module}}")
    assert not {{"torch", "openvino", "numba"}} & set(sys.modules), module
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_nothing_but_reading_loads_openvino_a_run_that_nobody_follows_no_wandb_and_importing_has_no_effect(tmp_path):
    code = f"""
import importlib, logging, sys
import hwr_ray.train_loop, hwr_ray.recognizer, hwr_ray.training, hwr_ray.tuning
assert not {{"openvino", "wandb"}} & set(sys.modules)
for module in {sorted(MODULES)}:
    importlib.import_module(f"hwr_ray.{{module}}")
import ray
assert not ray.is_initialized()
assert not logging.getLogger().handlers
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert not list(tmp_path.iterdir())
