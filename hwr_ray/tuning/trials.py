"""The ledger of a sweep: one folder per trial, with its settings and results."""

import re
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from hwr_ray.files import storage
from hwr_ray.files.ownership import OwnershipToken

FINISHED, FAILURE = "finished", "failure.txt"
"""Files that mark a trial as trained to the end, and as failed."""
KEPT = ("epoch", "loss", "cer", "exact_match", "seconds", "validation_seconds", "lines_per_second")
"""Metrics of each epoch that the ledger keeps."""


@dataclass
class Trial:
    """A trial of a sweep, as stored in its trial.json."""

    number: int
    values: dict[str, Any]
    """Values of the varied settings."""
    conv_widths: list[int]
    multiply_adds: int
    """Multiply-adds per line."""
    num_parameters: int
    state: str = "unfinished"
    """`unfinished`, `finished` (reached its last epoch, or patience ran out), `stopped` (by ASHA) or `failed`."""
    reason: str | None = None
    """Reason why the trial was stopped or interrupted, or why it failed."""
    epochs: list[dict[str, Any]] = field(default_factory=list)
    seconds: float | None = None
    """Seconds from start to end; None for a trial that was interrupted."""
    throughput: float | None = None
    """Lines per second on one core, decoded greedily."""

    @property
    def best(self) -> dict[str, Any]:
        """The metrics of the epoch with the lowest CER; empty before the first epoch."""
        return min(self.epochs, key=lambda row: row["cer"], default={})

    @property
    def overhead(self) -> float | None:
        """Seconds outside the epochs, each counted with the median duration, because the first includes start-up."""
        if self.seconds is None or not self.epochs:
            return None
        seconds = [row["seconds"] + row["validation_seconds"] for row in self.epochs]
        return self.seconds - len(seconds) * statistics.median(seconds)

    def describe(self) -> str:
        """Returns the varied settings and the cost in one line."""
        values = (
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.values.items()
        )
        return f"{', '.join(values)}: {self.multiply_adds / 1e6:.0f} M multiply-adds per line"


def run_folder(folder: str, number: int) -> str:
    """Returns the folder of a trial's run in `folder`, the sweep's folder of trials."""
    return storage.join(folder, f"{number:03d}")


def read_trial(path: str) -> Trial:
    """Reads the trial from the folder of its run."""
    entries = storage.read_json(storage.join(path, "trial.json"))
    entries.pop("placement_group", None)  # in sweeps that were started before 7acfb2c
    return Trial(**entries)


class Ledger:
    """The trials in a folder, by number. One process writes it."""

    def __init__(self, folder: str, owner: OwnershipToken | None = None) -> None:
        self.folder, self.owner, self.trials = folder, owner, dict[int, Trial]()
        for name in storage.list_files(folder):
            if re.fullmatch(r"\d+/trial\.json", name):
                trial = read_trial(storage.join(folder, name.split("/")[0]))
                self.trials[trial.number] = trial

    def path(self, trial: Trial) -> str:
        return run_folder(self.folder, trial.number)

    def save(self, trial: Trial) -> None:
        if self.owner:
            self.owner.check()
        self.trials[trial.number] = trial
        storage.write_json(storage.join(self.path(trial), "trial.json"), asdict(trial))

    def reopen_failed(self) -> None:
        """Marks failed trials as unfinished."""
        for trial in self.in_state("failed"):
            storage.delete_file(storage.join(self.path(trial), FAILURE))
            trial.state, trial.reason, trial.seconds = "unfinished", None, None
            self.save(trial)

    def in_state(self, *states: str) -> list[Trial]:
        return [trial for _, trial in sorted(self.trials.items()) if trial.state in states]


def table(trials: list[Trial], *, on_pareto_front: set[int], chosen: int | None) -> pd.DataFrame:
    """Returns one row per trial, with marks for the trials on the Pareto front and for the chosen one."""
    return pd.DataFrame(
        {
            "trial": trial.number,
            "state": trial.state,
            "reason": trial.reason,
            **trial.values,
            "conv_widths": " ".join(map(str, trial.conv_widths)),
            "epochs": len(trial.epochs),
            "best_epoch": trial.best.get("epoch"),
            "cer": trial.best.get("cer"),
            "exact_match": trial.best.get("exact_match"),
            "multiply_adds": trial.multiply_adds,
            "parameters": trial.num_parameters,
            "throughput": trial.throughput,
            "seconds": trial.seconds,
            "overhead_seconds": trial.overhead,
            "on_pareto_front": trial.number in on_pareto_front,
            "chosen": trial.number == chosen,
        }
        for trial in trials
    )
