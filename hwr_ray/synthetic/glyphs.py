"""Handwriting made of single-stroke glyphs, which each writer varies in their own style."""

import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

# A glyph is a string of strokes separated by "|". A stroke is a list of points, each of two hexadecimal digits, x then
# y, on a grid where capitals extend from y = 0 down to the baseline y = 8; lowercase letters start at 3 and descend to
# b. A stroke that starts with "~" is a smooth curve through its points; any other consists of straight lines.
CAPITALS = {
    "A": ("08 30 68|15 55", "~08 14 30 52 68|15 65", "~08 03 20 40 63 68|05 65", "08 20 40 68|15 55"),
    "B": ("00 08|~00 40 52 34 04|~04 44 66 48 08", "08 00|~00 30 52 24 14|~24 55 57 38 08"),
    "C": ("~61 40 12 05 17 48 67", "~51 20 04 28 57", "~60 22 05 28 68"),
    "D": ("00 08|~00 40 64 48 08", "10 18|~00 30 52 65 37 08", "08 00|~00 51 64 57 08"),
    "E": ("60 00 08 68|04 54", "~51 20 12 34|~34 05 07 28 57", "00 08|00 50|04 44|08 58", "50 01 08 57|04 44"),
    "F": ("60 00 08|04 44", "00 08|00 60|04 54", "~60 20 12 18|04 54"),
    "G": ("~61 30 02 06 38 66 65|65 35", "~51 20 03 07 38 57 65 35", "~51 20 04 17 48 65 35"),
    "H": ("00 08|60 68|04 64", "10 08|60 58|04 64"),
    "I": ("30 38", "30 38", "10 50|30 38|18 58"),
    "J": ("~50 56 38 17 06", "20 60|~50 56 38 17 06", "00 60|~40 46 28 07"),
    "K": ("00 08|60 04 68", "00 08|50 14|24 68"),
    "L": ("00 08 58", "~00 06 18 58", "10 08 58"),
    "M": ("08 00 34 60 68", "08 10 35 60 78", "~08 02 10 32 36|~32 40 62 68", "08 00 60 68|30 34", "18 00 36 70 78"),
    "N": ("08 00 68 60", "08 10 58 60", "08 00|~02 30 51 68", "08 00 57 68 60"),
    "O": ("~40 11 04 17 48 66 62 40 20", "~30 03 06 38 65 52 30", "~20 03 17 48 65 51 20"),
    "P": ("00 08|~00 40 62 44 04", "10 18|~00 40 52 44 14", "08 00|~01 40 63 34 04"),
    "Q": ("~40 11 04 17 48 66 62 40 20|45 69", "~30 03 06 38 65 52 30|35 58"),
    "R": ("00 08|~00 40 52 44 04|24 68", "08 00|~00 50 53 24 04|24 68", "10 08|~00 40 62 34 14|14 58"),
    "S": ("~61 30 02 14 45 66 38 07", "~50 11 13 54 57 28 07", "~61 20 13 45 57 28 08"),
    "T": ("00 60|30 38", "~01 30 60|30 38", "00 70|40 38"),
    "U": ("~00 05 28 48 65 60", "~00 06 28 57 60|60 68", "00 06 28 48 66 60"),
    "V": ("00 38 60", "~00 14 38 53 60"),
    "W": ("00 28 43 68 80", "00 18 34 58 60", "~00 06 28 45 42|~42 46 68 85 80"),
    "X": ("00 68|60 08", "10 58|60 08"),
    "Y": ("60 34 38|00 34", "00 34|60 18", "~00 03 34 62 60|34 38"),
    "Z": ("00 60 08 68", "00 60 08 68|14 54", "~01 50 34 08 68"),
    "-": ("15 55", "04 54"),
    "'": ("30 22", "40 32"),
    "0": ("~40 11 04 17 48 66 62 40 20",),
    "1": ("13 30 38", "30 38"),
    "2": ("~02 30 62 35 08|08 68", "~11 40 52 26 08 68"),
    "3": ("~01 40 52 34|~24 55 57 38 07",),
    "4": ("30 05 65|43 48", "10 05 55|40 48"),
    "5": ("60 10 03|~03 44 66 38 07",),
    "6": ("~50 13 06 38 66 44 06",),
    "7": ("00 60 28", "00 60 28|14 54"),
    "8": ("~61 30 02 65 67 38 07 05 62 61",),
    "9": ("~63 34 02 20 61 65 48",),
}
SMALL_LETTERS = {
    "a": ("~53 23 05 07 28 56|~53 56 58 68", "~53 13 06 18 55|53 58"),
    "b": ("00 08|~05 34 66 38 07",),
    "c": ("~53 23 05 07 38 57",),
    "d": ("60 68|~65 34 05 07 28 66",),
    "e": ("05 55|~55 43 13 05 07 38 57", "~06 55 43 13 05 18 57"),
    "f": ("~50 30 22 28|04 44",),
    "g": ("~53 23 05 27 56|~53 59 3b 0a",),
    "h": ("00 08|~05 34 55 58",),
    "i": ("34 38|31 32", "33 38|30 31", "~23 37 48|30 31"),
    "j": ("~44 49 2b 0a|41 42",),
    "k": ("00 08|54 06|26 58",),
    "l": ("~30 36 48", "~05 31 20 27 48"),
    "m": ("03 08|~05 23 35 38|~35 53 65 68",),
    "n": ("03 08|~05 33 55 58", "~03 08|~05 23 44 58"),
    "o": ("~33 04 06 38 66 64 33",),
    "p": ("03 0b|~04 33 55 37 07",),
    "q": ("~53 23 05 27 56|53 5b",),
    "r": ("03 08|~05 24 43 53", "~03 04 08|~05 23 54"),
    "s": ("~53 23 14 45 56 38 07",),
    "t": ("~20 27 38 58|03 53", "30 38|03 63"),
    "u": ("~03 06 28 46 53|53 58",),
    "v": ("03 38 53",),
    "w": ("03 28 44 58 73",),
    "x": ("03 58|53 08",),
    "y": ("03 37|53 1b", "~03 26 46 53|~53 59 2b 0a"),
    "z": ("03 53 08 58",),
}
BORROWED = {
    **{"I": 0.4, "A": 0.04, "E": 0.05, "H": 0.02, "L": 0.01, "M": 0.03, "N": 0.06},
    **{"R": 0.04, "T": 0.05, "U": 0.05, "Y": 0.08, "B": 0.02, "D": 0.02, "G": 0.02},
}
"""Probability that a writer of capitals uses the shape of the lowercase letter, highest for a dotted i."""
MARKS = {"\u0301": "32 50", "\u0300": "20 42", "\u0302": "12 30 52", "\u0308": "11 12|51 52", "\u0327": "~38 49 3b 1b"}
"""Combining accents; all but the cedilla are drawn in the box above that of the letter."""
CEDILLA = "\u0327"

DRAWABLE = frozenset(CAPITALS) | frozenset(SMALL_LETTERS) | frozenset(MARKS) | {" "}
"""Characters of the names on school forms."""
POINTS_PER_SPAN = 4


class Glyph(NamedTuple):
    """Strokes as `basis @ control`. The unit is the height of a capital; y is 0 on the baseline and negative above."""

    control: np.ndarray
    """Control points (points, 2), x centered on 0, which a writer moves."""
    basis: np.ndarray
    """Weights (drawn points, points) of the control points."""
    ends: tuple[int, ...]
    """Index of the end of the drawn points of each stroke."""


@cache
def parse_glyph(code: str) -> Glyph:
    parts = code.split("|")
    strokes = [part.lstrip("~").split() for part in parts]
    bases = [_basis(len(points), part.startswith("~")) for points, part in zip(strokes, parts, strict=True)]
    control = np.array([[int(x, 16), int(y, 16) - 8] for points in strokes for x, y in map(tuple, points)]) / 8
    control[:, 0] -= (control[:, 0].min() + control[:, 0].max()) / 2
    basis = np.zeros((sum(len(b) for b in bases), len(control)))
    row = column = 0
    ends = []
    for block in bases:
        basis[row : row + block.shape[0], column : column + block.shape[1]] = block
        row, column = row + block.shape[0], column + block.shape[1]
        ends.append(row)
    return Glyph(control, basis, tuple(ends))


def _basis(num_points: int, is_smooth: bool) -> np.ndarray:
    """Returns weights (drawn points, num_points) for a Catmull-Rom spline through the points, or for straight lines."""
    t = np.arange(POINTS_PER_SPAN)[:, None] / POINTS_PER_SPAN
    if is_smooth:
        weights = np.hstack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]) / 2
    else:
        weights = np.hstack([0 * t, 1 - t, t, 0 * t])
    basis = np.zeros(((num_points - 1) * POINTS_PER_SPAN + 1, num_points))
    for span in range(num_points - 1):
        for neighbour, column in enumerate(range(span - 1, span + 3)):
            rows = slice(span * POINTS_PER_SPAN, (span + 1) * POINTS_PER_SPAN)
            basis[rows, min(max(column, 0), num_points - 1)] += weights[:, neighbour]
    basis[-1, -1] = 1
    return basis


@dataclass(frozen=True, kw_only=True)
class Writer:
    """The style of one writer. Lengths are in pixels of the line image, or in heights of a capital where stated."""

    height: float
    """Height of a capital."""
    width: float
    """Width of a letter relative to its glyph."""
    pen: float
    """Width of a lightly pressed stroke; other strokes are half a pixel wider."""
    slant: float
    """Shift to the right per unit of height."""
    tilt: float
    """Rise of the baseline per pixel to the right."""
    unevenness: float
    """Random variation of points, sizes and positions, in heights of a capital."""
    fading: float
    """Patchiness of the ink, as from a weak pen or a harsh scan: 0 for none, 1 for no ink left."""
    smallness: float
    """Factor on the probability of lowercase shapes (BORROWED)."""
    habits: np.ndarray
    """Choice of the variant of each character, (128,) uniform in 0..1."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Writer":
        """Draws a writer like the pupils of the Kaggle forms; sizes, pens and slants were measured on 4,000 lines."""
        pen = float(np.clip(0.65 * np.exp(0.5 * rng.standard_normal()), 0.4, 2.8))
        return cls(
            height=float(np.clip(rng.normal(11.5, 1.9), 7, 17)),
            width=float(np.clip(rng.normal(0.9, 0.12), 0.6, 1.25)),
            pen=pen,
            slant=rng.normal(0.06, 0.12),
            tilt=rng.normal(0, 0.006),
            unevenness=float(np.clip(0.035 * np.exp(0.4 * rng.standard_normal()), 0.015, 0.08)),
            fading=float(np.clip(rng.normal(0.05, 0.15), 0, 0.35)) if pen < 0.9 else 0.0,
            smallness=rng.choice([0.0, 1.0, 4.0, 100.0], p=[0.2, 0.7, 0.08, 0.02]),
            habits=rng.random(128),
        )

    def glyph(self, character: str) -> tuple[Glyph, float]:
        """Returns the writer's shape of a character and the factor on its height, above 1 for a borrowed shape."""
        if character in SMALL_LETTERS:
            return self._variant(SMALL_LETTERS[character], character), 1.0
        small = character.lower()
        if small != character and self.habits[ord(small)] < BORROWED.get(character, 0.01) * self.smallness:
            return self._variant(SMALL_LETTERS[small], character), 1.25
        return self._variant(CAPITALS[character], character), 1.0

    def _variant(self, variants: tuple[str, ...], character: str) -> Glyph:
        return parse_glyph(variants[int(self.habits[ord(character)] * len(variants))])


def write(
    text: str, writer: Writer, rng: np.random.Generator, *, left: float, baseline: float, pitch: float
) -> list[np.ndarray]:
    """Returns the strokes of a text, each (points, 2) in pixels, x then y.

    The boxes of the letters start at `left` and are `pitch` apart. Raises ValueError for a character without a glyph.
    """
    strokes: list[np.ndarray] = []
    position = -1
    for character in unicodedata.normalize("NFD", text):
        if character not in DRAWABLE:
            raise ValueError(f"there is no glyph for {character!r} in {text!r}")
        position += character not in MARKS
        if character == " ":
            continue
        if character in MARKS:
            glyph, stretch = parse_glyph(MARKS[character]), 1.0
        else:
            glyph, stretch = writer.glyph(character)
        points = draw_glyph(glyph, writer, rng, stretch=stretch, is_above=character in MARKS and character != CEDILLA)
        centre = left + (position + 0.5) * pitch
        points += (centre, baseline - writer.tilt * (centre - left))
        strokes += np.split(points, glyph.ends[:-1])
    return strokes


def draw_glyph(
    glyph: Glyph, writer: Writer, rng: np.random.Generator, *, stretch: float = 1.0, is_above: bool = False
) -> np.ndarray:
    """Returns the points (points, 2) in pixels of a glyph as a writer draws it once, about (0, 0) on the baseline.

    `stretch` is a factor on its height. A mark that `is_above` its letter is raised over a capital.
    """
    noise = rng.standard_normal(6)
    points = glyph.basis @ (glyph.control + writer.unevenness * rng.standard_normal(glyph.control.shape))
    if is_above:
        points[:, 1] = points[:, 1] * 0.6 - 0.7
    points *= (1 + 2 * writer.unevenness * noise[:2]) * (writer.width, stretch)
    points[:, 0] += 0.8 * writer.unevenness * noise[2] * np.sin(np.pi * points[:, 1])  # bends vertical strokes
    points[:, 0] -= (writer.slant + writer.unevenness * noise[3]) * (points[:, 1] + 0.5)
    return points * writer.height + (0.9 * noise[4], 0.8 * noise[5])
