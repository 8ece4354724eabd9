"""Result of a finished sweep, without images: `python -m benchmarks.sweep --sweep SWEEP --command … --lines …`."""

import re
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, commit, hardware
from benchmarks.measuring import write
from hwr_ray.cli import run_job
from hwr_ray.files import storage
from hwr_ray.tuning.trials import Ledger, Trial
from hwr_ray.versions import versions


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    sweep: str
    """Folder that jobs/tune.py wrote, run from this checkout."""
    command: str
    """Command line of the sweep."""
    lines: str
    """Description of the lines that the sweep used."""
    out: str = str(ROOT / "benchmarks/results/sweep.json")
    """JSON file of the result."""


def summarize(settings: SweepResult) -> None:
    """Writes the trials of a sweep, their repeats with other seeds, and the overhead."""
    ledger = Ledger(f"{settings.sweep}/trials")
    repeats = {}
    for folder in sorted(Path(settings.sweep).glob("repeats-*")):
        finished = Ledger(str(folder)).in_state("finished")
        repeats[int(re.sub(r"\D", "", folder.name))] = [round(trial.best["cer"], 4) for trial in finished]
    overheads = [trial.overhead for trial in ledger.trials.values() if trial.overhead is not None]
    epochs = [row["seconds"] + row["validation_seconds"] for trial in ledger.trials.values() for row in trial.epochs]
    result = {
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "command": settings.command,
        "lines": settings.lines,
        "recipe": storage.read_json(f"{settings.sweep}/recipe.json"),
        "trials": [row_of(trial) for _, trial in sorted(ledger.trials.items())],
        "repeats_cer": repeats,
        "seconds": {
            "overhead_of_a_trial": round(statistics.median(overheads), 1),
            "of_an_epoch": round(statistics.median(epochs), 1),
        },
    }
    write(settings.out, result)


def row_of(trial: Trial) -> dict[str, Any]:
    best = trial.best
    return {
        "trial": trial.number,
        "state": trial.state,
        **trial.values,
        "conv_widths": " ".join(map(str, trial.conv_widths)),
        "epochs": len(trial.epochs),
        "cer": best and round(best["cer"], 4),
        "exact_match": best and round(best["exact_match"], 4),
        "million_multiply_adds": round(trial.multiply_adds / 1e6, 1),
        "lines_per_second_on_one_core": trial.throughput and round(trial.throughput),
        "overhead_seconds": trial.overhead and round(trial.overhead, 1),
    }


if __name__ == "__main__":
    run_job(SweepResult, summarize)
