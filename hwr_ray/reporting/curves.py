"""Plot of the metrics of a training run by epoch."""

import io
from typing import Any

from matplotlib.figure import Figure

from hwr_ray.files import storage
from hwr_ray.reporting.html import BAD, GOOD

NAME = "curves.png"


def write_curves(out: str, history: list[dict[str, Any]]) -> None:
    """Writes a plot of the metrics of a run's epochs as curves.png into its folder."""
    epochs = [row["epoch"] for row in history]
    best = min(history, key=lambda row: row["cer"])
    figure = Figure(figsize=(10, 6), layout="constrained")
    (errors, loss), (rate, speed) = figure.subplots(2, 2)
    errors.plot(epochs, [100 * row["cer"] for row in history], color=GOOD, label="CER")
    errors.plot(epochs, [100 - 100 * row["exact_match"] for row in history], color=BAD, label="lines with an error")
    for name in best.get("sets", {}):
        errors.plot(epochs, [100 * row["sets"][name]["cer"] for row in history], "--", label=f"CER of {name}")
    errors.plot(best["epoch"], 100 * best["cer"], "o", color=GOOD)
    errors.set_title(f"Validation, greedy: best CER {100 * best['cer']:.2f} % after epoch {best['epoch']}")
    errors.set_ylabel("%")
    errors.legend(frameon=False)
    loss.plot(epochs, [row["loss"] for row in history], color=GOOD)
    loss.set_title("Training loss per character")
    loss.set_yscale("log")
    rate.plot(epochs, [row["learning_rate"] for row in history], color=GOOD, label="learning rate at epoch end")
    rate.set_title("Learning rate and gradient norm")
    norm = rate.twinx()
    norm.plot(epochs, [row["gradient_norm"] for row in history], color=BAD, label="gradient norm")
    rate.legend(handles=[*rate.lines, *norm.lines], frameon=False, loc="upper right")
    speed.plot(epochs, [row["lines_per_second"] for row in history], color=GOOD)
    speed.set_title("Training throughput in lines per second")
    speed.set_ylim(bottom=0)
    for axes in figure.axes:
        axes.spines["top"].set_visible(False)
        axes.set_xlabel("epoch")
        axes.set_ylim(bottom=0 if axes in (errors, rate, norm) else None)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    storage.write_bytes(storage.join(out, NAME), buffer.getvalue())
