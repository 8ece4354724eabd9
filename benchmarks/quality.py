"""Quality table: the ancestor, the default recipe, and the recipe without each of its parts, on the same real lines.

Run as `python -m benchmarks.quality --data FOLDER --work FOLDER`. Reuses what the work folder already contains; notes
in it record the command, the commit and the machine of each step. The result contains no image and no label.
"""

import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from benchmarks.machine import commit, hardware
from benchmarks.quality_table import table, with_table
from hwr_ray.cli import run_job
from hwr_ray.data.dataset import PreparedSets
from hwr_ray.data.label_list import language_model_texts
from hwr_ray.errors import UserError
from hwr_ray.evaluation.comparison import compare
from hwr_ray.recognition.bundle import Bundle, load_bundle
from hwr_ray.tuning.cost import multiply_adds, num_parameters
from hwr_ray.versions import versions

ROOT = Path(__file__).parents[1]
CANVAS = "48x320"
ANCESTOR = {"ancestor": "last_average", "ancestor, best epoch": "best_raw_epoch"}
"""Names of the ancestor's rows, and the keys of their scores in its result."""
FIGURES = ("cer", "cer_ci", "exact_match", "exact_match_ci", "calibration_error", "num_lines", "num_edits")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of the table."""

    name: str
    run: str
    """Name of the training run, which variants share if they differ only in decoding."""
    short: bool = True
    """Whether the run trains for --short-epochs rather than the default number of epochs."""
    canvas: str = CANVAS
    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ("--greedy",)
    composed: bool = False
    """Whether the run continues the default run with composed lines and without the label errors that it finds."""


DEFAULT_ROW, DEFAULT_RUN, SHORT_ROW = "default recipe, seed 1", "default-seed-1", "short, greedy"
SHIPPED_ROW = "continued with composed lines: the model that is shipped"
SEED_1 = ("--seed", "1")
COMPOSED = {
    "run": "composed",
    "short": False,
    "composed": True,
    "train": ("--epochs", "12", "--learning-rate", "1.5e-3", "--dropout", "0.3"),
}
COMPOSED_LINES = ("--lines", "9000", "--spaces", "0.4")
"""Arguments of jobs/recombine.py."""
PRECISIONS = (0.99, 0.95)
"""Values of --precision in jobs/transcribe.py at which to count the texts that need no review."""
VARIANTS = (
    Variant(name="seed 0, patience 30", run="patience-30", short=False, train=("--patience", "30"), evaluate=()),
    Variant(name=DEFAULT_ROW, run=DEFAULT_RUN, short=False, train=SEED_1, evaluate=()),
    Variant(
        name="the same, names of the label list known", run=DEFAULT_RUN, short=False, train=SEED_1, evaluate=("names",)
    ),
    Variant(name="the same, read greedily", run=DEFAULT_RUN, short=False, train=SEED_1),
    Variant(name=SHIPPED_ROW, **COMPOSED, evaluate=()),
    Variant(name="the same with votes of three sizes", **COMPOSED, evaluate=("--test-time-augmentation",)),
    Variant(name="continued with composed lines, read greedily", **COMPOSED),
    Variant(name=SHORT_ROW, run="short"),
    Variant(name="short, greedy, seed 1", run="short-seed-1", train=SEED_1),
    Variant(name="short, greedy, no augmentation", run="no-augmentation", train=("--no-augmentation",)),
    Variant(name="short, greedy, no average of weights", run="no-average", train=("--ema-decay", "0")),
    Variant(name="short, greedy, no shortcut head", run="no-shortcut", train=("--shortcut-weight", "0")),
    Variant(name="short, greedy, no residual blocks", run="no-residual", train=("--no-residual",)),
    Variant(name="short, greedy, no dropout", run="no-dropout", train=("--dropout", "0")),
    Variant(name="short, greedy, canvas 32x256", run="canvas-32x256", canvas="32x256"),
)


ROWS = [*ANCESTOR, *(variant.name for variant in VARIANTS)]
"""Names of the rows in the order of the table."""


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    data: str
    """Folder with the labelled lines, in the Kaggle layout, and all_train_labels.csv.gz."""
    work: str
    """Folder for prepared lines, runs and evaluations, outside the checkout. WORK/runs/NAME is the run NAME."""
    out: str = str(ROOT / "benchmarks/results/quality.json")
    """JSON file of the result, written after each row."""
    epochs: int | None = None
    """Epochs of the full recipe; by default those of jobs/train.py."""
    short_epochs: int = 6
    """Epochs of the short runs, such as those that leave out a part of the recipe."""
    num_workers: int = 2
    """Number of training workers."""
    only: tuple[str, ...] = ()
    """Runs to do now (`default`, `short`, `no-dropout`, ..., `ancestor`), by default all. The rows of other runs in the
    result stay unchanged."""


def measure(settings: QualitySettings) -> None:
    """Runs what is missing, writes the result and updates the table in the documentation."""
    work, data, out = Path(settings.work).resolve(), Path(settings.data).resolve(), Path(settings.out)
    page = ROOT / "docs/results.md"
    with_table(page.read_text(), "")  # fails now rather than after hours
    if work.is_relative_to(ROOT):
        raise UserError(f"{work} is inside the checkout, where no names and images may be: choose another --work")
    work.mkdir(parents=True, exist_ok=True)
    here = {"commit": commit(), "hardware": hardware(), "versions": versions()}
    if not settings.only or "ancestor" in settings.only:
        write(out, ancestor_rows(work, data, here))
    for variant in VARIANTS:
        if not settings.only or variant.run in settings.only:
            write(out, {variant.name: row_of(variant, settings, work, data, here)})
    page.write_text(with_table(page.read_text(), table(rows_of(out), ROWS)))
    print(settings.out)


def rows_of(out: Path) -> dict[str, Any]:
    """Returns the rows of a result; none if it does not exist yet."""
    return json.loads(out.read_text())["rows"] if out.is_file() else {}


def write(out: Path, rows: dict[str, Any]) -> None:
    """Adds rows to the result after reading it again, since other processes may add rows, too."""
    out.write_text(json.dumps({"rows": {**rows_of(out), **rows}}, indent=1) + "\n")


def ancestor_rows(work: Path, data: Path, here: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the ancestor's two rows: its averaged weights after the last epoch, and its best epoch, whose score is
    optimistic because these very lines choose it."""
    file = work / "ancestor.json"
    command = ("-m", "benchmarks.ancestor", "--data", str(data), "--out", str(file))
    run(*command, note=work / "notes/ancestor.json", here=here, done=ancestor_is_whole(file))
    result = json.loads(file.read_text())
    figures = {
        "commands": [result["command"]],
        "commit": result["commit"],
        "hardware": result["hardware"],
        "seed": result["settings"]["seed"],
        "epochs": len(result["epochs"]),
        "minutes": sum(row["seconds"] for row in result["epochs"]) / 60,
        "parameters": result["params"],
        "multiply_adds": result["multiply_adds_per_line"],
    }
    scores = {name: result["validation"][key] for name, key in ANCESTOR.items()}
    return {name: {**figures, **score} for name, score in scores.items()}


def ancestor_is_whole(file: Path) -> bool:
    """Returns whether the ancestor's result, which is written after each epoch, includes the last one."""
    result = json.loads(file.read_text()) if file.is_file() else {"settings": {"epochs": 1}, "epochs": []}
    return len(result["epochs"]) == result["settings"]["epochs"]


def row_of(variant: Variant, settings: QualitySettings, work: Path, data: Path, here: dict[str, Any]) -> dict[str, Any]:
    """Prepares, trains and evaluates a variant, unless that is done; returns its figures. Raises UserError if its run
    exists with another number of epochs."""
    labels = data / "all_train_labels.csv.gz"
    prepared, trained = work / f"prepared-{variant.canvas}", work / "runs" / variant.run
    height, width = variant.canvas.split("x")
    prepare = ("--data", str(data), "--out", str(prepared), "--canvas", height, width)

    def make(name: str, *command: str, done: bool) -> dict[str, Any] | None:
        return run(*command, note=work / f"notes/{name}.json", here=here, done=done)

    made = {"prepare": make(prepared.name, "jobs/prepare.py", *prepare, done=prepared.exists())}
    sets: tuple[str, ...] = (str(prepared),)
    given: tuple[str, ...] = ()
    if variant.composed:
        steps, composed, given = composed_steps(work, prepared, labels)
        made |= {name: make(name, *command, done=out.exists()) for name, (command, out) in steps.items()}
        sets += (composed,)
    epochs = None if "--epochs" in variant.train else settings.short_epochs if variant.short else settings.epochs
    length = () if epochs is None else ("--epochs", str(epochs))
    workers = ("--num-workers", str(settings.num_workers), "--label-list", str(labels))
    train = ("--data", *sets, "--out", str(trained), *given, *length, *variant.train, *workers)
    made["train"] = make(variant.run, "jobs/train.py", *train, done=is_finished(trained))
    bundle = load_bundle(str(trained / "best"))
    trained_epochs = bundle.training["recipe"]["epochs"]
    if epochs not in (None, trained_epochs):
        raise UserError(f"{trained} is a run of {trained_epochs} epochs, not {epochs}: choose another --work")
    evaluation = work / "evaluations" / folder_of(variant.name)
    reading = [w for word in variant.evaluate for w in known_names(word, work, prepared, labels)]
    paths = ("--data", str(prepared), "--model", str(trained / "best"), "--out", str(evaluation), "--overwrite")
    done = read_by(evaluation, bundle.model_id)
    made["evaluate"] = make(evaluation.name, "jobs/evaluate.py", *paths, *reading, done=done)
    metrics = json.loads((evaluation / "metrics.json").read_text())
    history = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    ink = torch.zeros(1, 1, bundle.canvas.height, bundle.canvas.width)
    return {
        "made": made,
        "recipe": bundle.training["recipe"],
        "decoder": bundle.training["decoder"],
        "seed": bundle.training["recipe"]["seed"],
        "epochs": len(history),
        "minutes": sum(row["seconds"] for row in history) / 60,
        "parameters": num_parameters(bundle.model),
        "multiply_adds": multiply_adds(bundle.model, ink),
        "model_id": bundle.model_id,
        **{name: metrics[name] for name in FIGURES},
        "review": reviewed(evaluation, bundle, greedy="--greedy" in variant.evaluate),
        "against_short": against(evaluation, work / "evaluations" / folder_of(SHORT_ROW)) if variant.short else None,
    }


def composed_steps(
    work: Path, prepared: Path, labels: Path
) -> tuple[dict[str, tuple[tuple[str, ...], Path]], str, tuple[str, ...]]:
    """Returns what a run with composed lines needs: commands with their outputs by name, the composed data set, and the
    arguments of jobs/train.py."""
    start = str(work / "runs" / DEFAULT_RUN / "best")
    lines, composed, errors = (work / name for name in ("recombined", "prepared-composed", "label-errors"))
    model = ("--data", str(prepared), "--model", start)
    recombine = ("jobs/recombine.py", *model, "--out", str(lines), "--label-list", str(labels), *COMPOSED_LINES)
    prepare = ("jobs/prepare.py", "--labels", str(lines / "train.parquet"), "--split", "train", "--out", str(composed))
    find = ("jobs/evaluate.py", "--data", str(prepared), "--out", str(errors), "--label-errors", start)
    steps = {
        "recombine": (recombine, lines),
        "prepare-composed": (prepare, composed),
        "label-errors": (find, errors),
    }
    given = ("--init-from", start, "--label-errors", str(errors / "label_errors.parquet"))
    return steps, str(composed), given


def folder_of(name: str) -> str:
    """Returns the folder name of a row."""
    return re.sub(r"\W+", "-", name)


def predictions_of(evaluation: Path) -> pa.Table:
    """Returns the predictions of an evaluation, sorted by id."""
    return pq.read_table(evaluation / "predictions").sort_by("id")


def reviewed(evaluation: Path, bundle: Bundle, *, greedy: bool) -> dict[str, dict[str, int]]:
    """Returns how many texts need no review at each of PRECISIONS, and how many of these are correct, on the lines to
    which the calibration was fitted."""
    calibration = bundle.decoding.greedy_calibration if greedy else bundle.decoding.beam_calibration
    table, counts = predictions_of(evaluation), {}
    for precision in PRECISIONS if calibration else ():
        passing = table.filter(pc.greater_equal(table["confidence"], calibration.review_threshold(precision)[0]))
        counts[f"{precision:g}"] = {
            "passed": len(passing),
            "right": pc.sum(pc.equal(passing["num_edits"], 0)).as_py() or 0,
        }
    return counts


def against(evaluation: Path, other: Path) -> dict[str, Any] | None:
    """Returns the CER minus that of another evaluation of the same lines, with its 95 % interval (paired bootstrap);
    None if the other one does not exist or is the same."""
    if evaluation == other or not (other / "metrics.json").is_file():
        return None
    comparison = compare(predictions_of(evaluation), predictions_of(other), seed=0)
    return {name: comparison[name] for name in ("cer", "cer_ci")}


def is_finished(trained: Path) -> bool:
    """Returns whether a run is complete: `best` exists after the first epoch, its decoder's figures after the last."""
    config = trained / "best/config.json"
    return config.is_file() and "decoder" in json.loads(config.read_text())["training"]


def read_by(evaluation: Path, model_id: str) -> bool:
    """Returns whether an evaluation exists and is of this very bundle, whatever votes beside it."""
    file = evaluation / "metrics.json"
    return file.is_file() and json.loads(file.read_text())["model_id"].partition("+")[0] == model_id


def known_names(word: str, work: Path, prepared: Path, labels: Path) -> list[str]:
    """Returns arguments of evaluate. `names` means --lexicon with the cleaned label list, which stays in `work`."""
    if word != "names":
        return [word]
    file = work / "names.csv"
    counts: Counter[str] = language_model_texts(PreparedSets((str(prepared),)), str(labels))
    file.write_text("".join(f"{name},{count}\n" for name, count in counts.items()))
    return ["--lexicon", str(file)]


def run(*command: str, note: Path, here: dict[str, Any], done: bool) -> dict[str, Any] | None:
    """Runs a job or module from the root, unless it is done, and notes its command with `here`, its environment.

    Returns the note, None if there is none.
    """
    if not done:
        made = {"command": shlex.join(["python", *command]), **here}
        print(made["command"], file=sys.stderr, flush=True)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(made))
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    return json.loads(note.read_text()) if note.is_file() else None


if __name__ == "__main__":
    run_job(QualitySettings, measure)
