"""Text to class ids, class ids to text: the connectionist temporal classification (CTC) alphabet."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hwr_ray.errors import UserError

BLANK = 0
"""Class id of CTC's blank. Characters take the ids from 1 on, in the charset's order."""


@dataclass(frozen=True)
class Codec:
    """Encodes texts over a charset (the blank excluded).

    Raises UserError where the charset is empty or names a character twice.
    """

    charset: str

    def __post_init__(self) -> None:
        if not self.charset:
            raise UserError("the charset is empty: there is nothing to recognize")
        twice = sorted({c for c in self.charset if self.charset.count(c) > 1})
        if twice:
            raise UserError(f"the charset holds {twice[0]!r} more than once")

    @property
    def num_classes(self) -> int:
        """Number of characters plus the blank."""
        return len(self.charset) + 1

    def encode(self, text: str) -> list[int]:
        """The labels of a text, one id a character. Raises UserError that names what the charset lacks."""
        unknown = self.unknown(text)
        if unknown:
            raise UserError(f"not in charset: {', '.join(map(repr, unknown))} in {text!r}")
        return [self.charset.index(c) + 1 for c in text]

    def decode(self, labels: Iterable[int]) -> str:
        """The text of labels without blanks; the inverse of `encode`."""
        return "".join(self.charset[label - 1] for label in labels)

    def unknown(self, text: str) -> list[str]:
        """Characters of the text that the charset lacks, each once, in the text's order."""
        return [c for c in dict.fromkeys(text) if c not in self.charset]


def collapse(path: Sequence[int]) -> list[int]:
    """Labels of a path (one class a frame): repeats merged, then blanks dropped (Graves et al. 2006, the map B).

    `alignment.greedy_labels` does the same for many lines at once.
    """
    starts = [label for i, label in enumerate(path) if i == 0 or label != path[i - 1]]
    return [label for label in starts if label != BLANK]


def frames_needed(text: str) -> int:
    """Fewest frames that can carry the text under CTC: its length, and a blank between adjacent equal characters."""
    return len(text) + sum(a == b for a, b in pairwise(text))
