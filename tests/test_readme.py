"""What the README and the Makefile say is so. tests/test_jobs.py runs the README's commands."""

import re
import subprocess
from pathlib import Path

import pytest
import tyro

from hwr_ray.cleaning import REASONS
from hwr_ray.demo import DemoSettings
from hwr_ray.evaluation import EvaluateSettings
from hwr_ray.export import ExportSettings
from hwr_ray.kaggle import FetchSettings
from hwr_ray.preparation import PrepareSettings
from hwr_ray.slices import SEPARATORS, SLICES
from hwr_ray.suspects import SUSPECTS
from hwr_ray.synthesis import SynthesisSettings
from hwr_ray.train_settings import TrainSettings
from hwr_ray.transcription import TranscribeSettings
from hwr_ray.transcripts import TRANSCRIPTS
from hwr_ray.tuning import TuneSettings

ROOT = Path(__file__).parents[1]
README, OPERATIONS = ((ROOT / name).read_text() for name in ("README.md", "docs/operations.md"))
SETTINGS = {
    "synthesize": SynthesisSettings,
    "prepare": PrepareSettings,
    "train": TrainSettings,
    "evaluate": EvaluateSettings,
    "transcribe": TranscribeSettings,
    "tune": TuneSettings,
    "export": ExportSettings,
    "demo": DemoSettings,
    "fetch_kaggle": FetchSettings,
}


def quickstart_recipe():
    listing = subprocess.run(["make", "-n", "quickstart"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listing.stdout


def job_commands(text):
    """(job, arguments) of each command line that runs a job."""
    found = re.findall(r"python jobs/(\w+)\.py ([^#…\n`]+)", text.replace("$fold", "0").replace("\\\n", ""))
    return [(job, arguments.split()) for job, arguments in found]


@pytest.mark.parametrize(
    ("text", "jobs"),
    [
        (README, {"prepare", "train", "tune", "evaluate", "transcribe", "fetch_kaggle", "demo"}),
        (quickstart_recipe(), {"synthesize", "prepare", "train", "evaluate", "transcribe"}),
        (OPERATIONS, {"train", "transcribe"}),
    ],
    ids=["README", "make quickstart", "operations"],
)
def test_every_command_is_one_that_its_job_understands(text, jobs):
    commands = [(job, arguments) for job, arguments in job_commands(text) if len(arguments) > 1]
    assert {job for job, _ in commands} == jobs
    for job, arguments in commands:
        assert tyro.cli(SETTINGS[job], args=arguments, config=(tyro.conf.OmitArgPrefixes,))


def test_every_make_target_that_is_named_is_there():
    targets = set(re.findall(r"`?make (\w+)", README))
    assert targets >= {"quickstart", "test", "check", "bench"}
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_the_file_tree_lists_every_module_once():
    listed = re.findall(r"^  (\w+\.py) ", README, flags=re.MULTILINE)
    assert sorted(listed) == sorted(p.name for p in (ROOT / "hwr_ray").glob("*.py") if p.name != "__init__.py")


def test_the_reasons_the_slices_and_the_columns_of_transcripts_and_suspects_are_all_told():
    for name in [*REASONS, *SLICES, *SEPARATORS, *TRANSCRIPTS.names, *SUSPECTS.names]:
        assert f"`{name}`" in README


def test_every_file_of_results_that_is_named_is_there():
    files = re.findall(r"benchmarks/results/[\w.-]+", README + OPERATIONS)
    assert files
    for file in files:
        assert (ROOT / file).is_file(), file
