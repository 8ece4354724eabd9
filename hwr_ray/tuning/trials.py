"""The books of a sweep: a folder a trial, with what was tried and what came of it."""

import re
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd

from hwr_ray.files import storage
from hwr_ray.files.ownership import OwnershipToken

FINISHED, FAILURE = "finished", "failure.txt"
"""Files of a trial that was trained to its end, and of one that failed."""
KEPT = ("epoch", "loss", "cer", "exact_match", "seconds", "validation_seconds", "lines_per_second")
"""What is kept of each epoch's metrics."""


@dataclass
class Trial:
    number: int
    values: dict[str, Any]
    """Of what the sweep varies."""
    conv_widths: list[int]
    multiply_adds: int
    """Of reading a line."""
    num_parameters: int
    state: str = "unfinished"
    """`unfinished`, `finished` (all its epochs, or patience ran out), `stopped` (by ASHA), `failed`."""
    reason: str | None = None
    """Why it was stopped or broken off, or failed."""
    epochs: list[dict[str, Any]] = field(default_factory=list)
    seconds: float | None = None
    """From its start to its end, of a trial that was not interrupted."""
    throughput: float | None = None
    """Lines a second on one core, read greedily."""

    @property
    def best(self) -> dict[str, Any]:
        """The metrics of the epoch with the lowest CER; empty before the first."""
        return min(self.epochs, key=lambda row: row["cer"], default={})

    @property
    def overhead(self) -> float | None:
        """Seconds beyond its epochs, each counted as the median one: the first is longer by what starts in it."""
        if self.seconds is None or not self.epochs:
            return None
        seconds = [row["seconds"] + row["validation_seconds"] for row in self.epochs]
        return self.seconds - len(seconds) * statistics.median(seconds)

    def describe(self) -> str:
        """What is tried, in one line."""
        values = (
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self.values.items()
        )
        return f"{', '.join(values)}: {self.multiply_adds / 1e6:.0f} M multiply-adds a line"


def run_folder(folder: str, number: int) -> str:
    """Folder of a trial's run in the sweep's folder of trials."""
    return storage.join(folder, f"{number:03d}")


def read_trial(path: str) -> Trial:
    """The trial whose run is in a folder."""
    found = storage.read_json(storage.join(path, "trial.json"))
    found.pop("placement_group", None)  # of sweeps that were begun before 7acfb2c
    return Trial(**found)


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
        """Makes unfinished trials of those that failed."""
        for trial in self.in_state("failed"):
            storage.delete_file(storage.join(self.path(trial), FAILURE))
            trial.state, trial.reason, trial.seconds = "unfinished", None, None
            self.save(trial)

    def in_state(self, *states: str) -> list[Trial]:
        return [trial for _, trial in sorted(self.trials.items()) if trial.state in states]


def table(trials: list[Trial], *, on_pareto_front: set[int], chosen: int | None) -> pd.DataFrame:
    """A row a trial, with the numbers of those on the front and of the chosen one marked."""
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
