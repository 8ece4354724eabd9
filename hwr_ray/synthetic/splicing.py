"""New lines from the letters of real ones: cut where a model sees them, and set side by side."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from hwr_ray.decoding.alignment import align
from hwr_ray.model.architecture import WIDTH_STRIDE

SEARCHED = 0.25
"""Distance from the middle between two letters, in pitches, within which they are cut where the ink is least."""
GAP_RANGE = (0.4, 1.3)
"""Range of the width of a space, in pitches."""
MOST_SQUEEZED = 0.8
"""Least factor on the width of a composed line that is wider than the canvas; a wider one is not composed."""
FEW_LETTERS = 2
"""Minimum number of letters of a line that is cut: one letter has no pitch."""


@dataclass(frozen=True)
class CutLine:
    """A line image with the columns at which its letters can be cut apart."""

    image: np.ndarray
    """(H, W) uint8 on the canvas, 255 paper."""
    letters: str
    """Its label without spaces."""
    cuts: np.ndarray
    """(len(letters) + 1) int: letter i is in the columns cuts[i] to cuts[i + 1]."""

    @cached_property
    def pitch(self) -> float:
        """Mean distance in pixels from one letter to the next."""
        return float(self.cuts[-1] - self.cuts[0]) / len(self.letters)


@dataclass(frozen=True)
class Piece:
    """Adjacent letters of a line."""

    line: CutLine
    start: int
    stop: int


def cut(image: np.ndarray, text: str, shortcut: np.ndarray, labels: Sequence[int]) -> CutLine | None:
    """Returns the image (H, W) of a text with its cuts, or None if it has fewer than FEW_LETTERS letters.

    `shortcut` (T, C) are the log-probabilities of the head whose frames show where a letter is, and `labels` are the
    classes of the text.
    """
    spans = align(shortcut, np.asarray(labels, np.int32)).mean(1) * WIDTH_STRIDE
    is_letter = np.array([character != " " for character in text])
    centres = spans[is_letter]
    if len(centres) < FEW_LETTERS:
        return None
    pitch = float(np.median(np.diff(centres)))
    middles = np.concatenate([[centres[0] - pitch / 2], (centres[1:] + centres[:-1]) / 2, [centres[-1] + pitch / 2]])
    ink = 255.0 - image.mean(0)
    reach = SEARCHED * pitch
    cuts = [_least(ink, middle - reach, middle + reach) for middle in middles]
    return CutLine(image, text.replace(" ", ""), np.array(cuts))


def _least(ink: np.ndarray, low: float, high: float) -> int:
    """Returns the column with the least ink between two columns, the one closest to their middle if several have it."""
    first = min(max(round(low), 0), len(ink) - 1)
    columns = np.arange(first, min(max(round(high), first), len(ink) - 1) + 1)
    return int(min(columns, key=lambda column: (ink[column], abs(column - (low + high) / 2))))


class Pieces:
    """All pieces of a number of lines, by their letters."""

    def __init__(self, lines: Sequence[CutLine]) -> None:
        self.places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.lines = lines
        for number, line in enumerate(lines):
            for start in range(len(line.letters)):
                for stop in range(start + 1, len(line.letters) + 1):
                    self.places[line.letters[start:stop]].append((number, start))

    def cover(self, letters: str, rng: np.random.Generator) -> list[Piece] | None:
        """Returns pieces that spell the letters, from left to right each as long as possible and drawn from all lines
        that have it; None if no line has one of the letters."""
        found, start = list[Piece](), 0
        while start < len(letters):
            stop = next((n for n in range(len(letters), start, -1) if letters[start:n] in self.places), None)
            if stop is None:
                return None
            places = self.places[letters[start:stop]]
            line, first = places[rng.integers(len(places))]
            found.append(Piece(self.lines[line], first, first + stop - start))
            start = stop
        return found


def compose(text: str, pieces: Sequence[Piece], rng: np.random.Generator) -> np.ndarray | None:
    """Returns the image (H, W) uint8 of a text from pieces that spell it without its spaces; None if it is too wide.

    What stands left of the first letter, such as a printed word, comes from the line of the first piece.
    """
    first = pieces[0].line
    height, width = first.image.shape
    paper = int(np.median(first.image))
    parts = [first.image[:, : first.cuts[0]]]
    letters = [(piece.line, n) for piece in pieces for n in range(piece.start, piece.stop)]
    for column in _with_spaces(text, letters):
        if column is None:
            parts.append(np.full((height, round(rng.uniform(*GAP_RANGE) * first.pitch)), paper, np.uint8))
        else:
            line, n = column
            parts.append(line.image[:, line.cuts[n] : line.cuts[n + 1]])
    image = np.hstack(parts)
    if image.shape[1] > width:
        if image.shape[1] * MOST_SQUEEZED > width:
            return None
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.pad(image, ((0, 0), (0, width - image.shape[1])), constant_values=paper)


def _with_spaces(text: str, letters: Sequence[tuple[CutLine, int]]) -> Iterator[tuple[CutLine, int] | None]:
    """Yields the letters of a text, with None for each space."""
    following = iter(letters)
    return (None if character == " " else next(following) for character in text)
