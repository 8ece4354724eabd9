"""Prometheus metrics of a job, exported through Ray."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from ray.util.metrics import Counter, Gauge

LINES = "hwr_ray_lines"
"""Counter of finished lines, by `stage` (`job` is a label of Prometheus) and `outcome`: `read`, `prepared` or the
reason of an error."""
EPOCH = {
    "cer": "Validation character error rate",
    "exact_match": "Fraction of validation lines without an error",
    "loss": "Mean CTC loss per character in training",
    "lines_per_second": "Training throughput in lines per second",
    "waiting_share": "Fraction of the training time spent waiting for lines",
    "epoch": "Completed epochs",
}
"""Figures of a run's last epoch, with their descriptions. Each is a gauge `hwr_ray_epoch_NAME` with the label `run`."""


def count_lines(stage: str, outcomes: Iterable[tuple[str, int]]) -> None:
    """Adds (outcome, number) pairs to the counter of a stage."""
    for outcome, number in outcomes:
        if number:
            _lines().inc(number, {"stage": stage, "outcome": outcome})


def show_epoch(run: str, row: Mapping[str, Any]) -> None:
    """Sets the gauges to the figures of an epoch, given as a row of metrics.jsonl."""
    for name in EPOCH:
        _gauge(name).set(row[name], {"run": run})


@cache
def _lines() -> Counter:
    return Counter(LINES, description="Finished lines", tag_keys=("stage", "outcome"))


@cache
def _gauge(name: str) -> Gauge:
    return Gauge(f"hwr_ray_epoch_{name}", description=EPOCH[name], tag_keys=("run",))
