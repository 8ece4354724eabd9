"""Character error rate and exact match, from counts that are summed over lines and divided once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import editdistance
import numpy as np

Interval = tuple[float, float]
"""Lower and upper end of a 95 % interval."""
LEAST_LINES, LEAST_WRONG_LINES = 10, 5
"""Number of lines, and of wrong lines, below which a bootstrap interval is too narrow: for 3 lines without errors it
would be 0 % to 0 %."""


@dataclass(frozen=True)
class Counts:
    """Counts from scoring a set of lines. The counts of disjoint sets add up to those of their union."""

    num_lines: int = 0
    num_exact: int = 0
    """Lines whose prediction equals the true text."""
    num_characters: int = 0
    """Characters of the true texts."""
    num_edits: int = 0
    """Insertions, deletions and substitutions between predictions and true texts (Levenshtein)."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            num_lines=self.num_lines + other.num_lines,
            num_exact=self.num_exact + other.num_exact,
            num_characters=self.num_characters + other.num_characters,
            num_edits=self.num_edits + other.num_edits,
        )

    @property
    def cer(self) -> float:
        """Character error rate: edits per true character, 0 or more. Raises ValueError without characters."""
        if not self.num_characters:
            raise ValueError("no characters to score: the texts are empty")
        return self.num_edits / self.num_characters

    @property
    def exact_match(self) -> float:
        """Fraction of lines without an error, 0 to 1. Raises ValueError without lines."""
        if not self.num_lines:
            raise ValueError("no lines to score")
        return self.num_exact / self.num_lines


def count(texts: Sequence[str], predictions: Sequence[str]) -> Counts:
    """Returns the counts of predictions against their true texts. Raises ValueError if their numbers differ."""
    return _counts(texts, edit_distances(texts, predictions))


def _counts(texts: Sequence[str], edits: Sequence[int]) -> Counts:
    return Counts(
        num_lines=len(edits),
        num_exact=edits.count(0),
        num_characters=sum(map(len, texts)),
        num_edits=sum(edits),
    )


def edit_distances(texts: Sequence[str], predictions: Sequence[str]) -> list[int]:
    """Returns the Levenshtein distance of each prediction to its true text."""
    return [editdistance.eval(text, prediction) for text, prediction in zip(texts, predictions, strict=True)]


def confusions(texts: Sequence[str], predictions: Sequence[str]) -> Counter[tuple[str, str]]:
    """Returns the number of edits by pair (true, predicted character), with '' for no character.

    The numbers sum to the sum of the edit distances.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for text, prediction in zip(texts, predictions, strict=True):
        if text != prediction:
            pairs.update(edits_between(text, prediction))
    return pairs


def edits_between(text: str, prediction: str) -> list[tuple[str, str]]:
    """Returns a shortest list of edits as pairs (true, predicted character), in reading order.

    ('A', 'B') is a substitution, ('A', '') a deletion and ('', 'B') an insertion. Among equally short lists,
    substitutions are preferred to deletions and deletions to insertions.
    """
    # cost[i][j] is the distance between the first i characters of the text and the first j of the prediction.
    cost = [[i + j for j in range(len(prediction) + 1)] for i in range(len(text) + 1)]
    for i, true in enumerate(text, start=1):
        for j, predicted in enumerate(prediction, start=1):
            cost[i][j] = min(cost[i - 1][j - 1] + (true != predicted), cost[i - 1][j] + 1, cost[i][j - 1] + 1)
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
    """Returns the `most` frequent confusions as `pairs` (true, read, count), with their totals.

    `total` is the number of edits, `num_pairs` the number of different pairs.
    """
    pairs = confusions(texts, predictions)
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return {
        "total": pairs.total(),
        "num_pairs": len(pairs),
        "pairs": [{"true": true, "read": predicted, "count": number} for (true, predicted), number in ordered[:most]],
    }


def figures(texts: Sequence[str], edits: Sequence[int], *, seed: int) -> dict[str, Any]:
    """Returns the counts, `cer` and `exact_match`, with the 95 % intervals `cer_ci` and `exact_match_ci`.

    Requires at least one line. `edits` are the edit distances of the lines. `cer` and `cer_ci` are None if the texts
    have no characters.
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
    """Returns the 95 % score interval of a proportion (Wilson 1927), which is valid even if all or none are hits.

    Raises ValueError if `hits` is not between 0 and `trials`, or if there are no trials.
    """
    if not 0 <= hits <= trials or not trials:
        raise ValueError(f"{hits} hits of {trials} trials are not a proportion")
    from scipy.stats import binomtest  # slow to import, and only evaluations need it

    interval = binomtest(hits, trials).proportion_ci(0.95, method="wilson")
    # At the ends the formula gives 0 or 1 only up to rounding errors.
    return (float(interval.low) if hits else 0.0, float(interval.high) if hits < trials else 1.0)


def cer_interval(texts: Sequence[str], edits: Sequence[int], *, seed: int, num_samples: int = 2000) -> Interval:
    """Returns the 95 % interval of the CER: a percentile bootstrap (Efron 1979), or a wider interval for few lines.

    The bootstrap draws lines, not characters, with replacement, because the errors within a line are correlated. Below
    LEAST_LINES or LEAST_WRONG_LINES the interval of the fraction of wrong lines bounds the CER instead: a wrong line
    has at least one edit and usually at most as many edits as characters.
    """
    counts = _counts(texts, edits)
    if counts.num_lines < LEAST_LINES or counts.num_lines - counts.num_exact < LEAST_WRONG_LINES:
        right_low, right_high = wilson_interval(counts.num_exact, counts.num_lines)
        low, high = (1 - right_high) * counts.num_lines / counts.num_characters, 1 - right_low
        return (min(low, counts.cer), max(high, counts.cer))
    # Lines equal in length and edits are drawn as one count: the same bootstrap, at a cost that does not grow with the
    # number of lines.
    kinds, numbers = np.unique(
        [(len(text), wrong) for text, wrong in zip(texts, edits, strict=True)], axis=0, return_counts=True
    )
    drawn = np.random.default_rng(seed).multinomial(len(texts), numbers / len(texts), size=num_samples)
    characters, wrong = (drawn @ kinds).T
    low, high = np.quantile(wrong[characters > 0] / characters[characters > 0], [0.025, 0.975])
    return (float(low), float(high))
