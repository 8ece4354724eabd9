"""Self-contained HTML reports of an evaluation and of a search for label errors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hwr_ray.decoding.calibration import bins, review_trade_off
from hwr_ray.evaluation.comparison import verdict
from hwr_ray.evaluation.subgroups import FEW_LINES, SUBGROUPS, weak_groups
from hwr_ray.files import storage
from hwr_ray.reporting.html import BAD, CARD, GOOD, PALE, SOFT, data_uri, new_figure, render
from hwr_ray.text.metrics import wilson_interval

MOST_CONFUSIONS = 24
MOST_WORST, MOST_CONFIDENT = 40, 20


def write_evaluation_report(
    out: str, *, metrics: dict[str, Any], predictions: pa.Table, images: Mapping[str, np.ndarray]
) -> None:
    """Writes `report.html` of an evaluation in the folder `out`.

    `predictions` has the columns `id`, `text`, `prediction`, `confidence` (0..1) and `num_edits`; `images` contains
    the images (H, W) uint8 of the lines to show, by id.
    """
    page = render(
        "evaluation.html",
        metrics=metrics,
        subgroups=subgroup_tables(metrics["subgroups"]),
        most=largest_shown(metrics["subgroups"]),
        weak=weak_groups(metrics["subgroups"], cer=metrics["cer"]),
        few_lines=FEW_LINES,
        most_confusions=MOST_CONFUSIONS,
        confidence=_plot_confidence(predictions) if len(predictions) else None,
        calibration=_plot_calibration(predictions, metrics["label_noise"]) if len(predictions) else None,
        trade_off=_plot_trade_off(predictions, metrics["label_noise"]) if len(predictions) else None,
        comparison=metrics.get("comparison"),
        verdict=verdict(metrics["comparison"]["difference"]) if "comparison" in metrics else None,
        lines=_with_pictures(_worst_first(predictions)[:MOST_WORST], images),
        confident=_with_pictures(_most_confident_errors(predictions)[:MOST_CONFIDENT], images),
    )
    storage.write_bytes(storage.join(out, "report.html"), page.encode())


def lines_to_show(predictions: pa.Table) -> list[str]:
    """Returns the ids of the worst lines (most edits per character first) and of the most confident errors."""
    shown = [*_worst_first(predictions)[:MOST_WORST], *_most_confident_errors(predictions)[:MOST_CONFIDENT]]
    return list(dict.fromkeys(line["id"] for line in shown))


def _errors(predictions: pa.Table) -> list[dict[str, Any]]:
    return predictions.filter(pc.greater(predictions["num_edits"], 0)).to_pylist()


def _worst_first(predictions: pa.Table) -> list[dict[str, Any]]:
    return sorted(
        _errors(predictions),
        key=lambda line: (-line["num_edits"] / max(1, len(line["text"])), -line["confidence"], line["id"]),
    )


def _most_confident_errors(predictions: pa.Table) -> list[dict[str, Any]]:
    return sorted(_errors(predictions), key=lambda line: (-line["confidence"], line["id"]))


def _with_pictures(lines: list[dict[str, Any]], images: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    return [{**line, "picture": images[line["id"]]} for line in lines if line["id"] in images]


def subgroup_tables(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the name, meaning and rows of each attribute that has rows."""
    tables = [
        {"name": name, "meaning": meaning, "rows": [row for row in rows if row["attribute"] == name]}
        for name, meaning in SUBGROUPS.items()
    ]
    return [table for table in tables if table["rows"]]


def largest_shown(rows: list[dict[str, Any]]) -> float:
    """Returns the CER at the right end of the bars. Small groups, with wide intervals, count only if all are small."""
    large = [row for row in rows if row["num_lines"] >= FEW_LINES] or rows
    return max((row["cer_ci"][1] for row in large if row["cer_ci"]), default=0.0) or 1.0


def write_label_errors_report(
    out: str, *, ranked: pa.Table, figures: dict[str, Any], images: Mapping[str, np.ndarray]
) -> None:
    """Writes `label_errors.html` in the folder `out`.

    `ranked` is a table of the schema label_errors.LABEL_ERRORS, `figures` are those of all its lines, and `images`
    contains the images (H, W) uint8 of the lines to show, by id.
    """
    page = render(
        "label_errors.html",
        figures=figures,
        scores=_plot_scores(ranked, figures["threshold"]) if figures["num_differing"] else None,
        lines=[
            {**line, "picture": images[line["id"]]}
            for line in ranked.slice(0, len(images)).to_pylist()
            if line["score"] > 0
        ],
    )
    storage.write_bytes(storage.join(out, "label_errors.html"), page.encode())


def _plot_scores(ranked: pa.Table, threshold: float) -> str:
    figure, axes = new_figure()
    scores = ranked.filter(pc.not_equal(ranked["text"], ranked["prediction"]))["score"].to_numpy()
    last = max(scores[np.isfinite(scores)], default=0) + 1
    axes.hist(np.minimum(scores, last), bins=60, color=GOOD)  # infinite scores go to the right end
    axes.axvline(threshold, color=BAD, label="threshold")
    axes.set(xlabel="score of lines whose prediction differs from the label", ylabel="lines", yscale="log")
    axes.legend(frameon=False)
    return data_uri(figure)


def _plot_calibration(predictions: pa.Table, label_noise: float) -> str:
    """Plots the share of texts that equal their label against confidence, in bins of equally many lines, with 95 %
    intervals."""
    figure, axes = new_figure()
    confidence, is_right = predictions["confidence"].to_numpy(), predictions["num_edits"].to_numpy() == 0
    parts = bins(confidence)
    sure = [confidence[part].mean() for part in parts]
    shares = np.array([is_right[part].mean() for part in parts])
    ends = np.array([wilson_interval(int(is_right[part].sum()), len(part)) for part in parts])
    axes.plot([0, 1], [0, 1 - label_noise], color=PALE, label="perfect calibration")
    bars = np.maximum(0, np.abs(ends.T - shares))
    axes.errorbar(sure, shares, yerr=bars, fmt="o", color=GOOD, ms=4, lw=1, label=f"{len(parts)} bins of lines")
    axes.set(xlabel="mean confidence", ylabel="share of correct lines", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(frameon=False, loc="upper left")
    return data_uri(figure)


def _plot_trade_off(predictions: pa.Table, label_noise: float) -> str:
    figure, axes = new_figure()
    confidence, is_right = predictions["confidence"].to_numpy(), predictions["num_edits"].to_numpy() == 0
    passed, right = review_trade_off(confidence, is_right)
    axes.step(np.append(0, passed), np.append(right[0], right), where="pre", color=GOOD)
    name = "0.99, the default --precision" + (", less wrong labels" if label_noise else "")
    axes.axhline(0.99 * (1 - label_noise), color=PALE, label=name)
    axes.set(xlabel="share of lines that pass without review", ylabel="share of correct lines among these", xlim=(0, 1))
    axes.set_ylim(min(0.95, right[len(right) // 4 :].min() - 0.02), 1.005)
    axes.legend(frameon=False, loc="lower left")
    return data_uri(figure)


def _plot_confidence(predictions: pa.Table) -> str:
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    confidence = predictions["confidence"].to_numpy()
    is_right = predictions["num_edits"].to_numpy() == 0
    panels = figure.subplots(2, 1, sharex=True)
    for axes, rows, color, name in zip(panels, (is_right, ~is_right), (GOOD, BAD), ("correct", "wrong"), strict=True):
        axes.hist(confidence[rows], bins=np.linspace(0, 1, 26).tolist(), color=color, edgecolor=CARD)
        axes.set_ylabel(f"{name} lines")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        if not rows.any():
            axes.set_yticks([])
            axes.text(0.5, 0.5, f"no {name} lines", transform=axes.transAxes, ha="center", va="center", color=SOFT)
    panels[1].set_xlabel("confidence")
    return data_uri(figure)
