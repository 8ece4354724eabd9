"""What Prometheus sees of a job, through Ray's own metrics."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from ray.util.metrics import Counter, Gauge

LINES = "hwr_ray_lines"
"""Lines that are done with, by `stage` (`job` is Prometheus' own) and `outcome`: `read`, `prepared`, or why not."""
EPOCH = {
    "cer": "Validation character error rate",
    "exact_match": "Share of validation lines that were read without an error",
    "loss": "Mean CTC loss a character in training",
    "lines_per_second": "Training lines a second",
    "waiting_share": "Share of the training time spent waiting for lines",
    "epoch": "Epochs done",
}
"""Figures of a run's last epoch, each a gauge `hwr_ray_epoch_NAME` by `run`."""


def count_lines(stage: str, outcomes: Iterable[tuple[str, int]]) -> None:
    for outcome, number in outcomes:
        if number:
            _lines().inc(number, {"stage": stage, "outcome": outcome})


def show_epoch(run: str, row: Mapping[str, Any]) -> None:
    """Sets the gauges to the figures of an epoch, a row of metrics.jsonl."""
    for name in EPOCH:
        _gauge(name).set(row[name], {"run": run})


@cache
def _lines() -> Counter:
    return Counter(LINES, description="Lines that are done with", tag_keys=("stage", "outcome"))


@cache
def _gauge(name: str) -> Gauge:
    return Gauge(f"hwr_ray_epoch_{name}", description=EPOCH[name], tag_keys=("run",))
