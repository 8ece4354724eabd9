"""The quality table: the ancestor, the default recipe, and each of its ingredients left out, on the same real lines.

Run as `python -m benchmarks.quality --data FOLDER --work FOLDER`. What is in the work folder is not run again: beside
it lie notes of the command, the commit and the machine that made it. Neither an image nor a label lands in the result.
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
from hwr_ray.cli import run_job
from hwr_ray.data.dataset import Prepared
from hwr_ray.data.label_list import language_model_texts
from hwr_ray.errors import UserError
from hwr_ray.evaluation.comparison import compare
from hwr_ray.recognition.bundle import Bundle, load_bundle
from hwr_ray.tuning.cost import multiply_adds, num_parameters
from hwr_ray.versions import versions

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- quality:begin -->\n", "<!-- quality:end -->\n"
CANVAS = "48x320"
ANCESTOR = {"ancestor": "last_average", "ancestor, best epoch": "best_raw_epoch"}
"""Names of its rows, and its result's names of their scores."""
FIGURES = ("cer", "cer_ci", "exact_match", "exact_match_ci", "calibration_error", "num_lines", "num_edits")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A row of the table."""

    name: str
    run: str
    """The training run, shared by the variants that differ in reading alone."""
    short: bool = True
    """Trained with --short-epochs, not with the default number."""
    canvas: str = CANVAS
    train: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ("--greedy",)


SHIPPED_ROW, SHORT_ROW = "default recipe, seed 1: the model that is shipped", "short, greedy"
SEED_1 = ("--seed", "1")
PRECISIONS = (0.99, 0.95)
"""Of --precision in jobs/transcribe.py, at which is counted what passes."""
VARIANTS = (
    Variant(name="seed 0, patience 30", run="patience-30", short=False, train=("--patience", "30"), evaluate=()),
    Variant(name=SHIPPED_ROW, run="default-seed-1", short=False, train=SEED_1, evaluate=()),
    Variant(
        name="the same, names of the label list known",
        run="default-seed-1",
        short=False,
        train=SEED_1,
        evaluate=("names",),
    ),
    Variant(name="the same, read greedily", run="default-seed-1", short=False, train=SEED_1),
    Variant(name=SHORT_ROW, run="short"),
    Variant(name="short, greedy, seed 1", run="short-seed-1", train=SEED_1),
    Variant(name="short, greedy, no augmentation", run="no-augmentation", train=("--no-augmentation",)),
    Variant(name="short, greedy, no average of weights", run="no-average", train=("--ema-decay", "0")),
    Variant(name="short, greedy, no shortcut head", run="no-shortcut", train=("--shortcut-weight", "0")),
    Variant(name="short, greedy, no residual blocks", run="no-residual", train=("--no-residual",)),
    Variant(name="short, greedy, no dropout", run="no-dropout", train=("--dropout", "0")),
    Variant(name="short, greedy, canvas 32x256", run="canvas-32x256", canvas="32x256"),
)


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    data: str
    """Folder with the labelled lines, in the Kaggle layout, and all_train_labels.csv.gz."""
    work: str
    """Folder for prepared lines, runs and evaluations, outside the checkout: WORK/runs/NAME is the run of a row."""
    out: str = str(ROOT / "benchmarks/results/quality.json")
    """The result, written after each row."""
    epochs: int | None = None
    """Of the default recipe in full; by default that of jobs/train.py."""
    short_epochs: int = 6
    """Of the runs that leave an ingredient out."""
    num_workers: int = 2
    """Of training."""
    only: tuple[str, ...] = ()
    """Runs to do now (`default`, `short`, `no-dropout`, ..., `ancestor`), by default all; the others' rows stay as they
    are in the result."""


def measure(settings: QualitySettings) -> None:
    """Runs what is missing, writes the result and puts its table into the documentation."""
    work, data, out = Path(settings.work).resolve(), Path(settings.data).resolve(), Path(settings.out)
    page = ROOT / "docs/results.md"
    with_table(page.read_text(), "")  # hours before the table is there
    if work.is_relative_to(ROOT):
        raise UserError(f"{work} is in the checkout: names and images must stay outside, name another --work")
    work.mkdir(parents=True, exist_ok=True)
    here = {"commit": commit(), "hardware": hardware(), "versions": versions()}
    if not settings.only or "ancestor" in settings.only:
        write(out, ancestor_rows(work, data, here))
    for variant in VARIANTS:
        if not settings.only or variant.run in settings.only:
            write(out, {variant.name: row_of(variant, settings, work, data, here)})
    page.write_text(with_table(page.read_text(), table(rows_of(out))))
    print(settings.out)


def rows_of(out: Path) -> dict[str, Any]:
    """The rows of a result, none before the first."""
    return json.loads(out.read_text())["rows"] if out.is_file() else {}


def write(out: Path, rows: dict[str, Any]) -> None:
    """Adds rows to the result, as it is now: another process may add others."""
    out.write_text(json.dumps({"rows": {**rows_of(out), **rows}}, indent=1) + "\n")


def ancestor_rows(work: Path, data: Path, here: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The ancestor's network and recipe: its weights averaged at the end, and its best epoch on the lines it is
    scored on, which flatters it."""
    file = work / "ancestor.json"
    command = ("-m", "benchmarks.ancestor", "--data", str(data), "--out", str(file))
    run(*command, note=work / "notes/ancestor.json", here=here, done=ancestor_is_whole(file))
    found = json.loads(file.read_text())
    figures = {
        "commands": [found["command"]],
        "commit": found["commit"],
        "hardware": found["hardware"],
        "seed": found["settings"]["seed"],
        "epochs": len(found["epochs"]),
        "minutes": sum(row["seconds"] for row in found["epochs"]) / 60,
        "parameters": found["params"],
        "multiply_adds": found["multiply_adds_per_line"],
    }
    scores = {name: found["validation"][key] for name, key in ANCESTOR.items()}
    return {name: {**figures, **score} for name, score in scores.items()}


def ancestor_is_whole(file: Path) -> bool:
    """Whether the ancestor's result, which is written after every epoch, holds the last one."""
    found = json.loads(file.read_text()) if file.is_file() else {"settings": {"epochs": 1}, "epochs": []}
    return len(found["epochs"]) == found["settings"]["epochs"]


def row_of(variant: Variant, settings: QualitySettings, work: Path, data: Path, here: dict[str, Any]) -> dict[str, Any]:
    """The figures of a variant: prepared, trained and evaluated as far as that is not done.

    Raises UserError where its run is there with another number of epochs.
    """
    labels = data / "all_train_labels.csv.gz"
    prepared, trained = work / f"prepared-{variant.canvas}", work / "runs" / variant.run
    height, width = variant.canvas.split("x")
    prepare = ("--data", str(data), "--out", str(prepared), "--canvas", height, width)

    def make(name: str, *command: str, done: bool) -> dict[str, Any] | None:
        return run(*command, note=work / f"notes/{name}.json", here=here, done=done)

    made = {"prepare": make(prepared.name, "jobs/prepare.py", *prepare, done=prepared.exists())}
    epochs = settings.short_epochs if variant.short else settings.epochs
    length = () if epochs is None else ("--epochs", str(epochs))
    workers = ("--num-workers", str(settings.num_workers), "--label-list", str(labels))
    train = ("--data", str(prepared), "--out", str(trained), *length, *variant.train, *workers)
    made["train"] = make(variant.run, "jobs/train.py", *train, done=is_finished(trained))
    bundle = load_bundle(str(trained / "best"))
    if epochs not in (None, bundle.training["recipe"]["epochs"]):
        raise UserError(f"{trained} is a run of {bundle.training['recipe']['epochs']} epochs, not {epochs}")
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


def folder_of(name: str) -> str:
    """The name of a row as that of a folder."""
    return re.sub(r"\W+", "-", name)


def predictions_of(evaluation: Path) -> pa.Table:
    """The readings of an evaluation, in the order of their ids."""
    return pq.read_table(evaluation / "predictions").sort_by("id")


def reviewed(evaluation: Path, bundle: Bundle, *, greedy: bool) -> dict[str, dict[str, int]]:
    """Of the texts that pass a review at some precisions, on the lines that the calibration was fitted to: how many
    pass, and how many of them are right."""
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
    """By how much the CER is above that of another evaluation of the same lines, with the 95 % interval of the paired
    bootstrap; None without the other, or for itself."""
    if evaluation == other or not (other / "metrics.json").is_file():
        return None
    found = compare(predictions_of(evaluation), predictions_of(other), seed=0)
    return {name: found[name] for name in ("cer", "cer_ci")}


def is_finished(trained: Path) -> bool:
    """Whether a run came to its end: `best` is there from the first epoch on, its decoder's figures from the last."""
    config = trained / "best/config.json"
    return config.is_file() and "decoder" in json.loads(config.read_text())["training"]


def read_by(evaluation: Path, model_id: str) -> bool:
    """Whether an evaluation is there and of this very bundle."""
    file = evaluation / "metrics.json"
    return file.is_file() and json.loads(file.read_text())["model_id"] == model_id


def known_names(word: str, work: Path, prepared: Path, labels: Path) -> list[str]:
    """An argument of evaluate; `names` stands for --lexicon with the cleaned label list, which never leaves `work`."""
    if word != "names":
        return [word]
    file = work / "names.csv"
    counts: Counter[str] = language_model_texts(Prepared(str(prepared)), str(labels))
    file.write_text("".join(f"{name},{count}\n" for name, count in counts.items()))
    return ["--lexicon", str(file)]


def run(*command: str, note: Path, here: dict[str, Any], done: bool) -> dict[str, Any] | None:
    """Runs a job or module from the root, unless done, and notes the command with `here`, where and by what it ran.

    Returns what was noted, None for what was made without a note.
    """
    if not done:
        made = {"command": shlex.join(["python", *command]), **here}
        print(made["command"], file=sys.stderr, flush=True)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(made))
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    return json.loads(note.read_text()) if note.is_file() else None


def table(rows: dict[str, Any]) -> str:
    """The rows in Markdown."""
    lines = [
        "| what | epochs | minutes | parameters | multiply-adds a line | CER (95 %) | exact match (95 %) "
        "| CER beside the short row (95 %) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in (*ANCESTOR, *(variant.name for variant in VARIANTS)):
        row = rows.get(name)
        if row is None:  # not run yet
            continue
        (low, high), (least, most) = row["cer_ci"], row["exact_match_ci"]
        lines.append(
            f"| {name} | {row['epochs']} | {row['minutes']:.0f} | {row['parameters'] / 1e6:.2f} M "
            f"| {row['multiply_adds'] / 1e6:.0f} M | {100 * row['cer']:.2f} % ({100 * low:.2f} to {100 * high:.2f}) "
            f"| {100 * row['exact_match']:.1f} % ({100 * least:.1f} to {100 * most:.1f}) | {told_beside(row)} |"
        )
    return "".join(line + "\n" for line in lines)


def told_beside(row: dict[str, Any]) -> str:
    """A row's difference to the short one in points, where it has one."""
    if not (row.get("against_short") or {}).get("cer_ci"):
        return ""
    more, (low, high) = row["against_short"]["cer"], row["against_short"]["cer_ci"]
    return f"{100 * more:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def with_table(page: str, rows: str) -> str:
    """The page with the rows between its marks. Raises UserError where a mark is missing."""
    if END not in page.partition(BEGIN)[2]:
        raise UserError(f"docs/results.md lacks {BEGIN.strip()}, or {END.strip()} after it")
    before, rest = page.split(BEGIN, 1)
    return before + BEGIN + rows + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    run_job(QualitySettings, measure)
