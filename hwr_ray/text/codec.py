"""Conversion between texts and class ids of connectionist temporal classification (CTC)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hwr_ray.errors import UserError

BLANK = 0
"""Class id of CTC's blank. Characters have the ids from 1 on, in the charset's order."""


@dataclass(frozen=True)
class Codec:
    """Encodes and decodes texts over a charset, which excludes the blank.

    Raises UserError if the charset is empty or contains a character twice.
    """

    charset: str

    def __post_init__(self) -> None:
        if not self.charset:
            raise UserError("the charset is empty: there is nothing to recognize")
        duplicates = sorted({c for c in self.charset if self.charset.count(c) > 1})
        if duplicates:
            raise UserError(f"the charset contains {duplicates[0]!r} more than once")

    @property
    def num_classes(self) -> int:
        """Number of characters plus the blank."""
        return len(self.charset) + 1

    def encode(self, text: str) -> list[int]:
        """Returns the labels of a text, one id per character. Raises UserError naming characters not in the charset."""
        unknown = self.unknown(text)
        if unknown:
            raise UserError(f"not in charset: {', '.join(map(repr, unknown))} in {text!r}")
        return [self.charset.index(c) + 1 for c in text]

    def decode(self, labels: Iterable[int]) -> str:
        """Returns the text of labels without blanks; the inverse of `encode`."""
        return "".join(self.charset[label - 1] for label in labels)

    def unknown(self, text: str) -> list[str]:
        """Returns the characters of the text that are not in the charset, each once, in the text's order."""
        return [c for c in dict.fromkeys(text) if c not in self.charset]


def collapse(path: Sequence[int]) -> list[int]:
    """Merges the repeats of a path (one class per frame), then drops blanks (Graves et al. 2006, map B).

    `hwr_ray.decoding.ctc.greedy_labels` does the same for a batch of lines.
    """
    starts = [label for i, label in enumerate(path) if i == 0 or label != path[i - 1]]
    return [label for label in starts if label != BLANK]


def frames_needed(text: str) -> int:
    """Returns the fewest frames for the text under CTC: its length plus a blank between adjacent equal characters."""
    return len(text) + sum(a == b for a, b in pairwise(text))
