"""Self-contained HTML report of a prepared data set."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from matplotlib.patches import Rectangle

from hwr_ray.data.cleaning import REASONS
from hwr_ray.data.dataset import REJECTED, schema
from hwr_ray.data.labels import SPLITS
from hwr_ray.data.statistics import DatasetStatistics
from hwr_ray.files import storage
from hwr_ray.images.arrow import images_of
from hwr_ray.images.decode import UndecodableImageError, decode
from hwr_ray.images.line_warnings import WARNINGS
from hwr_ray.images.lines import Canvas
from hwr_ray.reporting.html import BAD, GOOD, PALE, data_uri, new_figure, render

MOST_CHARACTERS = 120


def write_preparation_report(out: str, *, metadata: dict[str, Any], statistics: DatasetStatistics) -> None:
    """Writes `report.html` of the prepared data set in the folder `out`, which already contains the shards."""
    canvas = Canvas(*metadata["canvas"])
    before, after = statistics.lengths_before, statistics.lengths_after
    page = render(
        "preparation.html",
        metadata=metadata,
        canvas=canvas,
        splits=[split for split in SPLITS if split in metadata["splits"]],
        reasons=reason_table(statistics),
        explanations=REASONS,
        rejected=rejected_samples(out),
        warnings=warning_table(statistics),
        warned=warned_samples(out, canvas),
        lengths=_plot_lengths(before, after) if before else None,
        characters=character_table(statistics),
        most_characters=MOST_CHARACTERS,
        sizes=_plot_sizes(statistics.sizes, canvas) if statistics.sizes else None,
        shrinking=shrinking(statistics.sizes, canvas),
        few_frames=statistics.few_frames,
        lines=sample_lines(out, canvas),
        settings=json.dumps(metadata["settings"], indent=2, ensure_ascii=False, default=str),
    )
    storage.write_bytes(storage.join(out, "report.html"), page.encode())


def reason_table(statistics: DatasetStatistics) -> list[dict[str, Any]]:
    """Returns the rows by reason and split, in the order of the rules, kept rows last; they sum to all rows."""
    reasons = [reason for reason in REASONS if any(reason == r for _, r in statistics.rows)]
    return [
        {
            "reason": reason,
            "explanation": REASONS.get(reason, "the row was kept"),
            "counts": {split: statistics.rows[split, reason] for split in SPLITS},
            "total": sum(statistics.rows[split, reason] for split in SPLITS),
        }
        for reason in [*reasons, "prepared"]
    ]


def rejected_samples(out: str, *, count: int = 6) -> dict[str, list[dict[str, Any]]]:
    """Returns the first `count` rejected rows of each reason by row number, with their `picture` or None."""
    filesystem, _ = storage.locate(out)
    kept = REJECTED.empty_table()
    if shards := _shards(out, "rejected"):
        # In batches, because millions of rows may be rejected.
        for batch in ds.dataset(shards, filesystem=filesystem, schema=REJECTED).to_batches():
            rows = pa.concat_tables([kept, pa.Table.from_batches([batch])])
            rows = rows.sort_by([("row", "ascending"), ("split", "ascending")])
            kept = rows.take(rows.select(["reason"]).to_pandas().groupby("reason").head(count).index.to_numpy())
    samples: dict[str, list[dict[str, Any]]] = {reason: [] for reason in REASONS}
    for row in kept.to_pylist():
        samples[row["reason"]].append({**row, "picture": _picture_of_file(row["path"])})
    return {reason: rows for reason, rows in samples.items() if rows}


def warning_table(statistics: DatasetStatistics) -> list[dict[str, Any]]:
    """Returns the warnings that prepared rows have, each with its explanation and its counts."""
    found = {warning for _, warning in statistics.warnings}
    return [
        {
            "warning": warning,
            "explanation": explanation,
            "counts": {split: statistics.warnings[split, warning] for split in SPLITS},
        }
        for warning, explanation in WARNINGS.items()
        if warning in found
    ]


def warned_samples(out: str, canvas: Canvas, *, count: int = 6) -> dict[str, list[dict[str, Any]]]:
    """Returns the first `count` prepared lines with each warning, with their `picture` on the canvas."""
    filesystem, _ = storage.locate(out)
    files = [shard for split in SPLITS for shard in _shards(out, split)]
    samples: dict[str, list[dict[str, Any]]] = {}
    lines = ds.dataset(files, filesystem=filesystem, schema=schema(canvas))
    for warning in WARNINGS:
        head = lines.head(count, columns=["id", "text", "image"], filter=pc.field("warning") == warning)
        rows = head.select(["id", "text"]).to_pylist()
        pictures = images_of(head, canvas)
        if rows:
            samples[warning] = [{**row, "picture": image} for row, image in zip(rows, pictures, strict=True)]
    return samples


def _picture_of_file(path: str | None) -> np.ndarray | None:
    if path is None:
        return None
    try:
        return decode(storage.read_bytes(path))
    except (OSError, UndecodableImageError):
        return None


def sample_lines(out: str, canvas: Canvas, *, count: int = 12, shards: int = 4) -> list[dict[str, Any]]:
    """Returns the first lines of a few shards of the first non-empty split, with their `picture` on the canvas."""
    filesystem, _ = storage.locate(out)
    files = next(filter(None, (_shards(out, split) for split in SPLITS)), [])
    files = files[:: max(1, len(files) // shards)][:shards]
    lines: list[dict[str, Any]] = []
    for file in files:
        head = ds.dataset(file, filesystem=filesystem).head(-(-count // len(files)), columns=["id", "text", "image"])
        rows = head.select(["id", "text"]).to_pylist()
        lines += [{**row, "picture": image} for row, image in zip(rows, images_of(head, canvas), strict=True)]
    return lines[:count]


def _shards(out: str, folder: str) -> list[str]:
    inner = storage.locate(storage.join(out, folder))[1]
    names = storage.list_files(storage.join(out, folder))
    return [storage.join(inner, name) for name in names if name.endswith(".parquet")]


def shrinking(sizes: Counter[tuple[int, int]], canvas: Canvas) -> dict[str, float]:
    """Returns the share of images that are shrunk to fit the canvas, and their median and smallest scale."""
    pairs = sorted((canvas.scale_for(*size), number) for size, number in sizes.items())
    scales = np.repeat([scale for scale, _ in pairs], [number for _, number in pairs])
    shrunk = scales[scales < 1]
    if not len(shrunk):
        return {"share": 0.0, "median": 1.0, "smallest": 1.0}
    return {"share": len(shrunk) / len(scales), "median": float(np.median(shrunk)), "smallest": float(shrunk[0])}


def character_table(statistics: DatasetStatistics) -> list[dict[str, Any]]:
    """Returns each character with its count in all labels and in the kept ones, most frequent first."""
    after: Counter[str] = Counter()
    for (_, character), number in statistics.characters_after.items():
        after[character] += number
    before = statistics.characters_before
    characters = sorted(before.keys() | after.keys(), key=lambda c: (-max(before[c], after[c]), c))
    return [{"character": c, "before": before[c], "after": after[c]} for c in characters]


def _plot_lengths(before: Counter[int], after: Counter[int]) -> str:
    figure, axes = new_figure()
    last = max(after or before) + 4  # a single very long label must not flatten the plot
    for lengths, color, name in ((before, PALE, "all labels"), (after, GOOD, "prepared")):
        capped: Counter[int] = Counter()
        for length, number in lengths.items():
            capped[min(length, last)] += number
        axes.bar(list(capped), list(capped.values()), color=color, label=name)
    axes.set_xlim(0, last + 1)
    axes.set_xlabel(f"characters in the label (the bar at {last} includes longer labels)")
    axes.set_ylabel("labels")
    axes.legend(frameon=False)
    return data_uri(figure)


def _plot_sizes(sizes: Counter[tuple[int, int]], canvas: Canvas) -> str:
    figure, axes = new_figure()
    heights, widths = zip(*sizes, strict=True)
    areas = np.maximum(4, 300 * np.array(list(sizes.values())) / max(sizes.values()))
    # Rasterized, because there may be thousands of sizes.
    axes.scatter(widths, heights, s=areas, color=GOOD, alpha=0.45, linewidths=0, rasterized=True)
    axes.add_patch(
        Rectangle((1, 1), canvas.width - 1, canvas.height - 1, fill=False, color=BAD, lw=2, label=f"canvas {canvas}")
    )
    if max(heights) > 8 * canvas.height or max(widths) > 8 * canvas.width:
        axes.set(xscale="log", yscale="log")
    else:
        axes.set_xlim(0, 1.08 * max(*widths, canvas.width))
        axes.set_ylim(0, 1.15 * max(*heights, canvas.height))
    axes.set(xlabel="width in pixels", ylabel="height in pixels")
    axes.legend(frameon=False, loc="upper left")
    return data_uri(figure)
