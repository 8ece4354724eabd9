"""New lines from the letters of real ones: cut where a model sees them, and set side by side."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

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
NARROWEST = 3
"""Minimum width of a letter in pixels."""


@dataclass(frozen=True)
class CutWord:
    """A word in a line image, with the columns at which its letters can be cut apart."""

    image: np.ndarray
    """Line (H, W) uint8 on the canvas, 255 paper."""
    letters: str
    cuts: np.ndarray
    """(len(letters) + 1) int: letter i is in the columns cuts[i] to cuts[i + 1]."""
    pitch: float
    """Distance in pixels from one letter of the line to the next."""
    margin: int
    """Number of columns left of the first letter of the line."""


@dataclass(frozen=True)
class Piece:
    """Adjacent letters of a word."""

    word: CutWord
    start: int
    stop: int


def cut(image: np.ndarray, text: str, shortcut: np.ndarray, labels: Sequence[int]) -> list[CutWord]:
    """Returns the words of a line image (H, W) with its text, except those whose letters can't be told apart.

    `shortcut` (T, C) are the log-probabilities of the head whose frames show where a letter is, and `labels` are the
    classes of the text. A line with fewer than FEW_LETTERS letters has no words.
    """
    centres = align(shortcut, np.asarray(labels, np.int32)).mean(1) * WIDTH_STRIDE
    is_letter = np.array([character != " " for character in text])
    is_adjacent = is_letter[1:] & is_letter[:-1]
    if is_letter.sum() < FEW_LETTERS or not is_adjacent.any():
        return []
    pitch = float(np.median(np.diff(centres)[is_adjacent]))
    ink, reach = 255.0 - image.mean(0), SEARCHED * pitch
    words, start = list[CutWord](), 0
    margin = _least(ink, centres[is_letter][0] - pitch / 2 - reach, centres[is_letter][0] - pitch / 2 + reach)
    for letters in text.split(" "):
        inside = centres[start : start + len(letters)]
        start += len(letters) + 1
        if not letters:
            continue
        middles = [inside[0] - pitch / 2, *(inside[1:] + inside[:-1]) / 2, inside[-1] + pitch / 2]
        cuts = np.array([_least(ink, middle - reach, middle + reach) for middle in middles])
        if (np.diff(cuts) >= NARROWEST).all():
            words.append(CutWord(image, letters, cuts, pitch, margin))
    return words


def _least(ink: np.ndarray, low: float, high: float) -> int:
    """Returns the column with the least ink between two columns, the one closest to their middle if several have it."""
    first = min(max(round(low), 0), len(ink) - 1)
    columns = np.arange(first, min(max(round(high), first), len(ink) - 1) + 1)
    return int(min(columns, key=lambda column: (ink[column], abs(column - (low + high) / 2))))


class Pieces:
    """All pieces of a number of words, by their letters."""

    def __init__(self, words: Sequence[CutWord]) -> None:
        self.places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self.words = words
        for number, word in enumerate(words):
            for start in range(len(word.letters)):
                for stop in range(start + 1, len(word.letters) + 1):
                    self.places[word.letters[start:stop]].append((number, start))

    def cover(self, letters: str, rng: np.random.Generator) -> list[Piece] | None:
        """Returns pieces that spell the letters, from left to right each as long as possible and drawn from all words
        that have it; None if no word has one of the letters."""
        found, start = list[Piece](), 0
        while start < len(letters):
            stop = next((n for n in range(len(letters), start, -1) if letters[start:n] in self.places), None)
            if stop is None:
                return None
            places = self.places[letters[start:stop]]
            number, first = places[rng.integers(len(places))]
            found.append(Piece(self.words[number], first, first + stop - start))
            start = stop
        return found


def compose(text: str, pieces: Sequence[Piece], rng: np.random.Generator) -> np.ndarray | None:
    """Returns the image (H, W) uint8 of a text from pieces that spell it without its spaces; None if it is too wide.

    What stands left of the first letter, such as a printed word, comes from the line of the first piece.
    """
    first = pieces[0].word
    height, width = first.image.shape
    paper = int(np.median(first.image))
    letters = iter([(piece.word, n) for piece in pieces for n in range(piece.start, piece.stop)])
    parts = [first.image[:, : first.margin]]
    for character in text:
        if character == " ":
            parts.append(np.full((height, round(rng.uniform(*GAP_RANGE) * first.pitch)), paper, np.uint8))
        else:
            word, n = next(letters)
            parts.append(word.image[:, word.cuts[n] : word.cuts[n + 1]])
    image = np.hstack(parts)
    if image.shape[1] > width:
        if image.shape[1] * MOST_SQUEEZED > width:
            return None
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.pad(image, ((0, 0), (0, width - image.shape[1])), constant_values=paper)
