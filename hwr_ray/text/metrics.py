"""Character error rate and exact match, from counts that are added over lines and divided once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import editdistance
import numpy as np

Interval = tuple[float, float]
"""Ends of a 95 % interval."""
LEAST_LINES, LEAST_WRONG_LINES = 10, 5
"""Below them a bootstrap claims too much: 3 lines read right would have a CER of 0 % for certain."""


@dataclass(frozen=True)
class Counts:
    """What scoring a set of lines counts. Counts of disjoint sets add up to the counts of their union."""

    num_lines: int = 0
    num_exact: int = 0
    """Lines whose prediction equals the text."""
    num_characters: int = 0
    """Characters of the texts."""
    num_edits: int = 0
    """Insertions, deletions and substitutions from prediction to text (Levenshtein)."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            num_lines=self.num_lines + other.num_lines,
            num_exact=self.num_exact + other.num_exact,
            num_characters=self.num_characters + other.num_characters,
            num_edits=self.num_edits + other.num_edits,
        )

    @property
    def cer(self) -> float:
        """Character error rate: edits by characters of the truth, 0 or more. Raises ValueError without characters."""
        if not self.num_characters:
            raise ValueError("no character to score: the texts are empty")
        return self.num_edits / self.num_characters

    @property
    def exact_match(self) -> float:
        """Share of lines read without an error, 0 to 1. Raises ValueError without lines."""
        if not self.num_lines:
            raise ValueError("no line to score")
        return self.num_exact / self.num_lines


def count(texts: Sequence[str], predictions: Sequence[str]) -> Counts:
    """Counts of predictions against their texts. Raises ValueError where their numbers differ."""
    return _counts(texts, edit_distances(texts, predictions))


def _counts(texts: Sequence[str], edits: Sequence[int]) -> Counts:
    return Counts(
        num_lines=len(edits),
        num_exact=edits.count(0),
        num_characters=sum(map(len, texts)),
        num_edits=sum(edits),
    )


def edit_distances(texts: Sequence[str], predictions: Sequence[str]) -> list[int]:
    """Levenshtein distance of each prediction to its text."""
    return [editdistance.eval(text, prediction) for text, prediction in zip(texts, predictions, strict=True)]


def confusions(texts: Sequence[str], predictions: Sequence[str]) -> Counter[tuple[str, str]]:
    """How often which character of a text was read as which; '' stands for none. They sum to the edit distances."""
    pairs: Counter[tuple[str, str]] = Counter()
    for text, prediction in zip(texts, predictions, strict=True):
        if text != prediction:
            pairs.update(edits_between(text, prediction))
    return pairs


def edits_between(text: str, prediction: str) -> list[tuple[str, str]]:
    """A shortest list of edits as pairs (true, read), in reading order: ('A', 'B'), ('A', '') lost, ('', 'B') added.

    Where several lists are equally short, a substitution is taken rather than a loss, a loss rather than an addition.
    """
    # cost[i][j] is the distance of the first i characters of the text to the first j of the prediction.
    cost = [[i + j for j in range(len(prediction) + 1)] for i in range(len(text) + 1)]
    for i, true in enumerate(text, start=1):
        for j, read in enumerate(prediction, start=1):
            cost[i][j] = min(cost[i - 1][j - 1] + (true != read), cost[i - 1][j] + 1, cost[i][j - 1] + 1)
    edits = []
    i, j = len(text), len(prediction)
    while i or j:
        if i and j and cost[i][j] == cost[i - 1][j - 1] + (text[i - 1] != prediction[j - 1]):
            i, j = i - 1, j - 1
            if text[i] != prediction[j]:
                edits.append((text[i], prediction[j]))
        elif i and cost[i][j] == cost[i - 1][j] + 1:
            i -= 1
            edits.append((text[i], ""))
        else:
            j -= 1
            edits.append(("", prediction[j]))
    return edits[::-1]


def confusion_table(texts: Sequence[str], predictions: Sequence[str], *, most: int = 50) -> dict[str, Any]:
    """The `most` frequent confusions as `pairs` (true, read, count), and how many there are in all.

    `total` is the number of edits, `num_pairs` that of different pairs.
    """
    pairs = confusions(texts, predictions)
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return {
        "total": pairs.total(),
        "num_pairs": len(pairs),
        "pairs": [{"true": true, "read": read, "count": number} for (true, read), number in ordered[:most]],
    }


def figures(texts: Sequence[str], edits: Sequence[int], *, seed: int) -> dict[str, Any]:
    """Counts of at least one line, `cer` and `exact_match`, and their 95 % intervals `cer_ci` and `exact_match_ci`.

    `edits` are the edit distances of the lines. Without a character there is no CER: it and its interval are None.
    """
    counts = _counts(texts, edits)
    return {
        **asdict(counts),
        "cer": counts.cer if counts.num_characters else None,
        "cer_ci": cer_interval(texts, edits, seed=seed) if counts.num_characters else None,
        "exact_match": counts.exact_match,
        "exact_match_ci": wilson_interval(counts.num_exact, counts.num_lines),
    }


def wilson_interval(hits: int, trials: int) -> Interval:
    """95 % score interval of a proportion (Wilson 1927). Valid also if all or none are hits."""
    if not 0 <= hits <= trials or not trials:
        raise ValueError(f"{hits} hits of {trials} trials are no proportion")
    from scipy.stats import binomtest  # takes long to import, and only evaluations need it

    interval = binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    # At either end the formula is 0 or 1 but for the last bits of a float.
    return (float(interval.low) if hits else 0.0, float(interval.high) if hits < trials else 1.0)


def cer_interval(texts: Sequence[str], edits: Sequence[int], *, seed: int, num_samples: int = 2000) -> Interval:
    """95 % interval of the CER: a percentile bootstrap over lines (Efron 1979), or a wider one where lines are few.

    Lines, not characters, are drawn with replacement: the errors of a line hang together. Below LEAST_LINES or
    LEAST_WRONG_LINES the share of wrong lines bounds the CER instead: a wrong line has one edit or more and, as a
    rule, no more than characters.
    """
    counts = _counts(texts, edits)
    if counts.num_lines < LEAST_LINES or counts.num_lines - counts.num_exact < LEAST_WRONG_LINES:
        right_low, right_high = wilson_interval(counts.num_exact, counts.num_lines)
        low, high = (1 - right_high) * counts.num_lines / counts.num_characters, 1 - right_low
        return (min(low, counts.cer), max(high, counts.cer))
    # Lines that agree in length and edits are drawn by their number: the same bootstrap, at a cost that
    # doesn't grow with the number of lines.
    kinds, numbers = np.unique(
        [(len(text), wrong) for text, wrong in zip(texts, edits, strict=True)], axis=0, return_counts=True
    )
    drawn = np.random.default_rng(seed).multinomial(len(texts), numbers / len(texts), size=num_samples)
    characters, wrong = (drawn @ kinds).T
    low, high = np.quantile(wrong[characters > 0] / characters[characters > 0], [0.025, 0.975])
    return (float(low), float(high))
