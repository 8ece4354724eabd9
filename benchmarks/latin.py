"""What a start from drawn mixed-case lines is worth: fine-tuning on the lines of another generator, by its start.

Run as `python -m benchmarks.latin --names FOLDER --work FOLDER`. It trains the bundle `latin` on drawn lines and real
names. Then it fine-tunes from it, from the shipped bundle and from nothing on the place names of benchmarks/places.py,
which are set in fonts. Reuses what the work folder already contains.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.machine import ROOT, commit, hardware
from benchmarks.quality import is_finished, run
from hwr_ray.cli import run_job
from hwr_ray.evaluation.comparison import compare
from hwr_ray.versions import versions

CANVAS = ("--canvas", "48", "384")
KEPT = ("--keep", "lowercase", "--max-length", "40")
STARTS = {"nothing": None, "shipped": "shipped", "latin": "latin/best"}
FIGURES = ("cer", "cer_ci", "exact_match", "exact_match_ci", "num_lines", "num_unknown_characters")


@dataclass(frozen=True, kw_only=True)
class LatinSettings:
    names: str
    """Folder with the labelled names, in the Kaggle layout."""
    work: str
    """Folder for lines and runs, outside the checkout."""
    out: str = str(ROOT / "benchmarks/results/latin.json")
    """JSON file of the result."""
    lines: int = 20_000
    """Number of drawn lines."""
    epochs: int = 5
    """Epochs of the bundle `latin`."""
    own_lines: int = 2000
    """Number of place names to fine-tune on."""
    own_epochs: int = 15
    """Epochs of each fine-tuning."""


def measure(settings: LatinSettings) -> None:
    """Runs what is missing and writes the result."""
    work = Path(settings.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    here = {"commit": commit(), "hardware": hardware(), "versions": versions()}
    made: dict[str, Any] = {}

    def make(name: str, *command: str, done: Path | bool) -> None:
        is_done = done if isinstance(done, bool) else done.exists()
        made[name] = run(*command, note=work / f"notes/{name}.json", here=here, done=is_done)

    drawn, names, places = work / "drawn", Path(settings.names).resolve(), work / "places"
    mixed = ("jobs/synthesize.py", "--style", "mixed", "--lines", str(settings.lines), "--out", str(drawn))
    make("drawn", *mixed, done=drawn)
    make("places", "-m", "benchmarks.places", "--out", str(places), done=places)
    taken = work / "own.csv"
    if not taken.exists():  # the first rows: the writers take turns
        rows = (places / "train/metadata.csv").read_text().splitlines(keepends=True)
        taken.write_text("".join(rows[: settings.own_lines + 1]))
    prepare = ("jobs/prepare.py", *CANVAS, *KEPT)
    sources = {
        "prepared-drawn": ("--data", str(drawn)),
        "prepared-names": ("--data", str(names)),
        "own": ("--labels", str(taken), "--images", str(places / "train")),
        "others": ("--labels", str(places / "test/metadata.csv"), "--split", "test"),
    }
    for name, source in sources.items():
        make(name, *prepare, *source, "--out", str(work / name), done=work / name)
    sets = (str(work / "prepared-drawn"), str(work / "prepared-names"))
    latin = ("--data", *sets, "--out", str(work / "latin"), "--init-from", "shipped", "--epochs", str(settings.epochs))
    make("latin", "jobs/train.py", *latin, done=is_finished(work / "latin"))
    rows = {}
    for start, bundle in STARTS.items():
        trained, evaluation = work / f"from-{start}", work / f"evaluation-{start}"
        path = str(work / bundle) if bundle and "/" in bundle else bundle
        train = ("--data", str(work / "own"), "--out", str(trained), "--epochs", str(settings.own_epochs))
        given = ("--init-from", path, "--learning-rate", "1e-3") if path else ()
        make(f"from-{start}", "jobs/train.py", *train, *given, done=is_finished(trained))
        evaluate = ("--data", str(work / "others"), "--split", "test", "--model", str(trained / "best"))
        make(f"evaluation-{start}", "jobs/evaluate.py", *evaluate, "--out", str(evaluation), done=evaluation)
        metrics = json.loads((evaluation / "metrics.json").read_text())
        rows[start] = {name: metrics[name] for name in FIGURES}
    predictions = {start: pq.read_table(work / f"evaluation-{start}/predictions").sort_by("id") for start in STARTS}
    for start in ("nothing", "shipped"):
        rows["latin"][f"minus_{start}"] = compare(predictions["latin"], predictions[start], seed=0)
    Path(settings.out).write_text(json.dumps({"rows": rows, "made": made}, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    run_job(LatinSettings, measure)
