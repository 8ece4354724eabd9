"""Character error rate and exact match, from counts that are added over lines and divided once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import editdistance
import numpy as np


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
    edits = edit_distances(texts, predictions)
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


def bootstrap_intervals(
    texts: Sequence[str], edits: Sequence[int], *, seed: int, num_samples: int = 2000
) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap intervals over lines (Efron 1979) of `cer` and `exact_match`.

    Lines, not characters, are drawn with replacement: the errors of a line hang together.
    """
    rng = np.random.default_rng(seed)
    lengths, errors = np.array([len(t) for t in texts]), np.asarray(edits)
    cer, exact_match = np.empty(num_samples), np.empty(num_samples)
    for i in range(num_samples):
        drawn = rng.integers(len(lengths), size=len(lengths))
        cer[i] = errors[drawn].sum() / lengths[drawn].sum()
        exact_match[i] = (errors[drawn] == 0).mean()
    return {
        "cer_ci": (float(np.quantile(cer, 0.025)), float(np.quantile(cer, 0.975))),
        "exact_match_ci": (float(np.quantile(exact_match, 0.025)), float(np.quantile(exact_match, 0.975))),
    }
