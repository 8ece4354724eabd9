"""Metrics of subgroups of the lines of an evaluation, which show where the recognizer is weak."""

from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from hwr_ray.text.metrics import figures

SUBGROUPS = {
    "width": "Width of the image file in pixels, which distinguishes the forms of a collection.",
    "length": "Number of characters in the label.",
    "doubled_letters": "Whether the label has two equal characters in a row.",
    "training": "Whether the label occurs among the training labels of the same prepared data set.",
    "separators": "Separators in the label. A line may be in several groups; plain lines have no separator.",
}
"""Attributes by which lines are grouped, with their meanings. All groups except those of `separators` are disjoint."""
SEPARATORS = {"hyphen": "-\u2010\u2011", "space": " ", "apostrophe": "'\u2019"}
MOST_RANGES = 8
FEW_LINES = 30
"""Number of lines below which the metrics of a group are unreliable."""


def subgroup_figures(
    lines: pa.Table, *, seed: int, training_texts: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """Returns a row for each non-empty group: `attribute` (one of SUBGROUPS), `group`, and the metrics of its lines.

    `lines` has the columns `text`, `num_edits` and `width`. Without training texts there is no attribute `training`.
    """
    texts, edits = lines["text"].to_pylist(), lines["num_edits"].to_pylist()
    rows = []
    for name, group, members in _groups(texts, lines["width"].to_numpy(), training_texts):
        if len(members):
            figures_of_group = figures([texts[i] for i in members], [edits[i] for i in members], seed=seed)
            rows.append({"attribute": name, "group": group, **figures_of_group})
    return rows


def weak_groups(rows: list[dict[str, Any]], *, cer: float) -> list[dict[str, Any]]:
    """Returns the rows of at least FEW_LINES lines whose interval is above the CER of all lines, highest CER first."""
    rows = [row for row in rows if row["num_lines"] >= FEW_LINES and row["cer"] is not None and row["cer_ci"][0] > cer]
    return sorted(rows, key=lambda row: -row["cer"])


def _groups(
    texts: list[str], widths: np.ndarray, training_texts: Collection[str] | None
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yields attribute, group and the positions of the group's lines."""
    for name, values in (("width", widths), ("length", np.array([len(text) for text in texts], int))):
        for label, is_member in ranges(values):
            yield name, label, np.flatnonzero(is_member)
    is_doubled = np.array([any(a == b for a, b in pairwise(text)) for text in texts], bool)
    yield "doubled_letters", "yes", np.flatnonzero(is_doubled)
    yield "doubled_letters", "no", np.flatnonzero(~is_doubled)
    if training_texts is not None:
        known = frozenset(training_texts)
        is_seen = np.array([text in known for text in texts], bool)
        yield "training", "seen", np.flatnonzero(is_seen)
        yield "training", "unseen", np.flatnonzero(~is_seen)
    is_plain = np.ones(len(texts), bool)
    for label, characters in SEPARATORS.items():
        is_member = np.array([any(c in text for c in characters) for text in texts], bool)
        yield "separators", label, np.flatnonzero(is_member)
        is_plain &= ~is_member
    yield "separators", "plain", np.flatnonzero(is_plain)


def ranges(values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Returns disjoint groups of integers in ascending order, each as a label and a mask of its members.

    Up to MOST_RANGES distinct values form a group each; more values form up to MOST_RANGES ranges with about equally
    many members.
    """
    if not len(values):
        return []
    ends = np.unique(values)
    if len(ends) > MOST_RANGES:
        shares = np.arange(1, MOST_RANGES + 1) / MOST_RANGES
        ends = np.unique(np.quantile(values, shares, method="inverted_cdf"))
    places = np.searchsorted(ends, values)  # a value belongs to the first end that it does not exceed
    groups = []
    for place in range(len(ends)):
        is_member = places == place
        low, high = values[is_member].min(), values[is_member].max()
        groups.append((str(low) if low == high else f"{low}–{high}", is_member))
    return groups
