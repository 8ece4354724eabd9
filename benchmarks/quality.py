"""The quality table: the ancestor, the default recipe, and each of its ingredients left out, on the same real lines.

Run as `python -m benchmarks.quality --data FOLDER --work FOLDER`. What is in the work folder is not run again. Neither
an image nor a label lands in the result.
"""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.cost import multiply_adds, num_parameters
from benchmarks.names import commit, hardware
from hwr_ray.bundle import load_bundle
from hwr_ray.decoder_fitting import language_model_texts
from hwr_ray.errors import UserError
from hwr_ray.job import run_job
from hwr_ray.prepared import Prepared
from hwr_ray.provenance import versions

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- quality:begin -->\n", "<!-- quality:end -->\n"
CANVAS = "48x320"


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


VARIANTS = (
    Variant(name="default recipe", run="default", short=False, evaluate=()),
    Variant(name="the same weights, names of the label list known", run="default", short=False, evaluate=("names",)),
    Variant(name="the same weights, read greedily", run="default", short=False),
    Variant(name="short, greedy", run="short"),
    Variant(name="short, greedy, seed 1", run="short-seed-1", train=("--seed", "1")),
    Variant(name="short, greedy, no augmentation", run="no-augmentation", train=("--no-augmentation",)),
    Variant(name="short, greedy, no average of weights", run="no-average", train=("--average-decay", "0")),
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
    out: str = "benchmarks/results/quality.json"
    """The result, written after each row."""
    short_epochs: int = 10
    """Of the runs that leave an ingredient out."""
    num_workers: int = 2
    """Of training."""
    only: tuple[str, ...] = ()
    """Runs to do now (`default`, `short`, `no-dropout`, ..., `ancestor`), by default all; the others' rows stay as they
    are in the result."""


def measure(settings: QualitySettings) -> None:
    """Runs what is missing, writes the result and puts its table into the README."""
    work, data, out = Path(settings.work).resolve(), Path(settings.data).resolve(), Path(settings.out)
    result = json.loads(out.read_text()) if out.is_file() else {"rows": {}}
    result |= {"hardware": hardware(), "versions": versions(), "short_epochs": settings.short_epochs}
    if not settings.only or "ancestor" in settings.only:
        result["rows"]["ancestor"] = ancestor_row(work, data)
    for variant in VARIANTS:
        if not settings.only or variant.run in settings.only:
            result["rows"][variant.name] = row_of(variant, settings, work, data)
        out.write_text(json.dumps(result, indent=1) + "\n")
    page = ROOT / "README.md"
    page.write_text(with_table(page.read_text(), table(result)))
    print(settings.out)


def ancestor_row(work: Path, data: Path) -> dict[str, Any]:
    """The ancestor's network and recipe, its weights averaged: kinder to it than its last or its best epoch."""
    file = work / "ancestor.json"
    run("-m", "benchmarks.ancestor", "--data", str(data), "--out", str(file), unless=file)
    found = json.loads(file.read_text())
    return {
        "commands": [found["command"]],
        "commit": found["commit"],
        "epochs": len(found["epochs"]),
        "minutes": sum(row["seconds"] for row in found["epochs"]) / 60,
        "parameters": found["params"],
        "multiply_adds": found["multiply_adds_per_line"],
        **found["validation"]["last_average"],
    }


def row_of(variant: Variant, settings: QualitySettings, work: Path, data: Path) -> dict[str, Any]:
    """The figures of a variant: prepared, trained and evaluated as far as that is not done."""
    labels = data / "all_train_labels.csv.gz"
    prepared, trained = work / f"prepared-{variant.canvas}", work / "runs" / variant.run
    height, width = variant.canvas.split("x")
    prepare = ("--data", str(data), "--out", str(prepared), "--canvas", height, width)
    commands = [run("jobs/prepare.py", *prepare, unless=prepared)]
    epochs = ("--epochs", str(settings.short_epochs)) if variant.short else ()
    workers = ("--num-workers", str(settings.num_workers), "--label-list", str(labels))
    train = ("--data", str(prepared), "--out", str(trained), *epochs, *variant.train, *workers)
    commands.append(run("jobs/train.py", *train, unless=trained / "best"))
    evaluation = work / "evaluations" / variant.name.replace(" ", "-").replace(",", "")
    reading = [w for word in variant.evaluate for w in known_names(word, work, prepared, labels)]
    paths = ("--data", str(prepared), "--model", str(trained / "best"), "--out", str(evaluation))
    commands.append(run("jobs/evaluate.py", *paths, *reading, unless=evaluation))
    metrics = json.loads((evaluation / "metrics.json").read_text())
    history = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    bundle = load_bundle(str(trained / "best"))
    ink = torch.zeros(1, 1, bundle.canvas.height, bundle.canvas.width)
    return {
        "commands": commands,
        "commit": commit(),
        "epochs": len(history),
        "minutes": sum(row["seconds"] for row in history) / 60,
        "parameters": num_parameters(bundle.model),
        "multiply_adds": multiply_adds(bundle.model, ink),
        "model_id": bundle.model_id,
        **{
            name: metrics[name] for name in ("cer", "cer_ci", "exact_match", "exact_match_ci", "num_lines", "num_edits")
        },
    }


def known_names(word: str, work: Path, prepared: Path, labels: Path) -> list[str]:
    """An argument of evaluate; `names` stands for --names with the cleaned label list, which never leaves `work`."""
    if word != "names":
        return [word]
    file = work / "names.csv"
    counts: Counter[str] = language_model_texts(Prepared(str(prepared)), str(labels), "IDENTITY")
    file.write_text("".join(f"{name},{count}\n" for name, count in counts.items()))
    return ["--names", str(file)]


def run(*command: str, unless: Path) -> str:
    """Runs a job or module from the checkout's root, unless what it writes is there; returns its command line."""
    if not unless.exists():
        print("python", *command, file=sys.stderr, flush=True)
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    return " ".join(["python", *command])


def table(result: dict[str, Any]) -> str:
    """The rows in Markdown."""
    lines = [
        "| what | epochs | minutes | parameters | multiply-adds a line | CER (95 %) | exact match (95 %) |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ("ancestor", *(variant.name for variant in VARIANTS)):
        row = result["rows"].get(name)
        if row is None:
            lines.append(f"| {name} | not run | | | | | |")
            continue
        (low, high), (least, most) = row["cer_ci"], row["exact_match_ci"]
        lines.append(
            f"| {name} | {row['epochs']} | {row['minutes']:.0f} | {row['parameters'] / 1e6:.2f} M "
            f"| {row['multiply_adds'] / 1e6:.0f} M | {100 * row['cer']:.2f} % ({100 * low:.2f} to {100 * high:.2f}) "
            f"| {100 * row['exact_match']:.1f} % ({100 * least:.1f} to {100 * most:.1f}) |"
        )
    return "".join(line + "\n" for line in lines)


def with_table(page: str, rows: str) -> str:
    """The page with the rows between its marks. Raises UserError where a mark is missing."""
    if BEGIN not in page or END not in page:
        raise UserError(f"README.md lacks {BEGIN.strip()} or {END.strip()}")
    before, rest = page.split(BEGIN, 1)
    return before + BEGIN + rows + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    run_job(QualitySettings, measure)
