"""Lines of mixed-case Latin text on ruled or plain paper: names, addresses, dates, amounts and phrases."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from faker import Faker

from hwr_ray.synthetic.glyphs import CAPITALS, CEDILLA, MARKS, SMALL_LETTERS, Glyph, Writer, draw_glyph, parse_glyph

# Codes of glyphs are explained in glyphs.py.
SIGNS = {
    ".": ("38 37", "28 38"),
    ",": ("38 2a", "~38 39 2a"),
    ":": ("34 35|38 37",),
    ";": ("34 35|38 2a",),
    "!": ("30 36|38 37",),
    "?": ("~02 20 50 62 44 36|38 37", "~11 30 52 34 36|38 37"),
    "(": ("~40 23 25 48",),
    ")": ("~20 43 45 28",),
    "/": ("60 08", "50 18"),
    "&": ("~68 13 20 41 14 06 18 38 65",),
    "+": ("32 36|14 54", "33 37|15 55"),
    "=": ("13 53|15 55",),
    "%": ("60 08|~10 01 12 22 21 10|~56 47 58 67 56",),
    '"': ("20 22|40 42",),
    "@": ("~55 43 24 26 46 54|~54 57 66 63 40 11 04 07 38 68",),
    "#": ("20 18|50 48|03 63|05 65",),
    "*": ("31 35|12 54|14 52",),
    "€": ("~61 30 12 14 16 38 67|03 43|05 45",),
    "°": ("~30 21 32 41 30",),
}
LETTERS = {
    "ß": ("~0b 03 10 40 52 34|~34 55 57 28", "~08 02 20 41 34|~34 55 47 28"),
    "æ": ("~33 13 05 07 28 36|33 37|~36 75 73 43 36 48 78",),
    "œ": ("~33 13 05 07 28 37 35 33|~36 75 73 43 36 48 78",),
    "ø": ("~33 04 06 38 66 64 33|63 08",),
    "ł": ("30 38|15 53", "~30 36 48|15 53"),
    "Æ": ("08 40 90|40 48 98|25 84",),
    "Œ": ("~40 11 04 17 48|40 90|40 48 98|44 84",),
    "Ø": ("~40 11 04 17 48 66 62 40 20|70 08",),
    "Ł": ("10 18 68|05 43",),
}
MORE_MARKS = {
    "\u030a": "~31 22 33 42 31",  # ring
    "\u0303": "~12 21 42 51",  # tilde
    "\u030c": "10 32 50",  # caron
    "\u0307": "31 32",  # dot
    "\u030b": "22 40|42 60",  # double acute
    "\u0328": "~48 39 4b 5b",  # ogonek
}
BELOW = {CEDILLA, "\u0328"}
"""Marks below their letter."""
ALL_MARKS = {**MARKS, **MORE_MARKS}
GLYPHS: dict[str, tuple[str, ...]] = {**CAPITALS, **SMALL_LETTERS, **SIGNS, **LETTERS}
DRAWABLE = frozenset(GLYPHS) | frozenset(ALL_MARKS) | {" "}
"""Characters of mixed-case lines; accented letters are composed of a letter and its marks."""
DROP = 0.36
"""Heights of a capital by which a mark over a small letter is lower than over a capital."""
TALL = frozenset("bdfhklt")
"""Small letters as tall as capitals, over which marks are not lower."""
CROSSED = frozenset("fijtx")
"""Small letters whose first stroke leads to the next letter; the others are a dot or a bar."""

MAX_LENGTH = 28
LOCALES = ("de_DE", "fr_FR", "es_ES", "it_IT", "pt_PT", "pl_PL", "cs_CZ", "sv_SE", "da_DK", "nl_NL", "hu_HU", "en_GB")
TEXTS_PER_LOCALE = 2500


@dataclass(frozen=True)
class MixedTexts:
    """Texts from Faker in twelve languages."""

    texts: tuple[str, ...]

    @classmethod
    def draw(cls, seed: int) -> "MixedTexts":
        texts: list[str] = []
        for number, locale in enumerate(LOCALES):
            fake = Faker(locale)
            fake.seed_instance(seed * len(LOCALES) + number)
            rng = np.random.default_rng((seed, number))
            texts += (text for _ in range(TEXTS_PER_LOCALE) if (text := _drawable(_text(fake, rng))))
        return cls(tuple(texts))

    def draw_one(self, rng: np.random.Generator) -> str:
        return self.texts[rng.integers(len(self.texts))]


def _text(fake: Faker, rng: np.random.Generator) -> str:
    """Returns a text as one finds it on forms, labels and notes."""
    amount = f"{rng.integers(1, 2000)},{rng.integers(100):02d}"
    kinds = (
        (0.20, fake.name),
        (0.10, fake.first_name),
        (0.10, fake.last_name),
        (0.12, fake.street_address),
        (0.10, lambda: f"{fake.postcode()} {fake.city()}"),
        (0.08, fake.city),
        (0.08, fake.date_of_birth().strftime(str(rng.choice(["%d.%m.%Y", "%d/%m/%y", "%Y-%m-%d"])))),
        (0.04, fake.phone_number),
        (0.03, fake.safe_email),
        (
            0.05,
            str(rng.choice([f"{amount} €", f"No. {rng.integers(1, 999)}", f"({amount})", f"{rng.integers(101)} %"])),
        ),
        (0.10, lambda: " ".join(fake.words(int(rng.integers(1, 4)))) + str(rng.choice(["", ".", ",", "!", "?", ":"]))),
    )
    chosen = kinds[rng.choice(len(kinds), p=[share for share, _ in kinds])][1]
    return chosen if isinstance(chosen, str) else str(chosen())


def _drawable(text: str) -> str:
    """Returns the text in composed characters, or "" if it is too long or has a character without a glyph."""
    plain = " ".join(text.replace("’", "'").replace("–", "-").split())
    can_draw = all(character in DRAWABLE for character in unicodedata.normalize("NFD", plain))
    return unicodedata.normalize("NFC", plain) if can_draw and len(plain) <= MAX_LENGTH else ""


def draw_mixed_line(text: str, rng: np.random.Generator, *, oversampling: int = 4) -> np.ndarray:
    """Returns a grayscale image (H, W) uint8 of a text, dark on light, with a ruled line below it or none.

    The image is as wide as the text needs. Raises ValueError for a character without a glyph.
    """
    writer = draw_writer(rng)
    height = round(writer.height * rng.uniform(2.2, 2.9))
    baseline, left = height * rng.uniform(0.62, 0.72), rng.uniform(3, 14)
    strokes = write_freely(text, writer, rng, left=left, baseline=baseline)
    points = np.concatenate(strokes) if strokes else np.array([[left, baseline]])
    width = max(24, round(points[:, 0].max() + rng.uniform(4, 20)))
    strokes = [stroke - (min(0.0, points[:, 0].min() - 3), 0) for stroke in strokes]
    ink: np.ndarray = np.zeros((height * oversampling, width * oversampling), np.uint8)
    curves = [np.rint(stroke * oversampling).astype(np.int32) for stroke in strokes]
    cv2.polylines(ink, curves, isClosed=False, color=255, thickness=max(1, round(writer.pen * oversampling)))
    if writer.fading:
        grain = rng.random((height // 2, width // 2), np.float32)
        ink[cv2.resize(grain, ink.shape[::-1], interpolation=cv2.INTER_LINEAR) < writer.fading] = 0
    softness = int(rng.choice([1, 3, 5]))
    ink = cv2.resize(cv2.blur(ink, (softness, softness)), (width, height), interpolation=cv2.INTER_AREA)
    paper = rng.normal(rng.uniform(205, 252), rng.uniform(0, 5), (height, width))
    if rng.random() < 0.4:
        row = round(baseline + rng.uniform(1, 4))
        paper[row : row + 1, :: int(rng.choice([1, 1, 2, 4]))] -= rng.uniform(30, 110)
    darkness = rng.uniform(0.55, 1.0)
    return np.clip(paper * (1 - darkness * ink / 255.0), 0, 255).astype(np.uint8)


def draw_writer(rng: np.random.Generator) -> Writer:
    """Draws a writer of separate letters without boxes, whose letters are narrower and more slanted than on forms."""
    pen = float(np.clip(1.1 * np.exp(0.4 * rng.standard_normal()), 0.6, 3.0))
    return replace(
        Writer.draw(rng),
        height=float(np.clip(rng.normal(17, 3), 11, 25)),
        width=float(np.clip(rng.normal(0.72, 0.12), 0.45, 1.0)),
        pen=pen,
        slant=rng.normal(0.15, 0.18),
        tilt=rng.normal(0, 0.012),
        smallness=0.0,
    )


def write_freely(
    text: str, writer: Writer, rng: np.random.Generator, *, left: float, baseline: float
) -> list[np.ndarray]:
    """Returns the strokes of a text, each (points, 2) in pixels, x then y, with letters as far apart as they are wide.

    Some writers join small letters. Raises ValueError for a character without a glyph.
    """
    spacing = writer.height * rng.uniform(0.10, 0.24)
    is_joined, space = rng.random() < 0.35, writer.height * rng.uniform(0.35, 0.7)
    strokes: list[np.ndarray] = []
    x, before, end_of_letter = left, "", np.zeros(2)
    for letter, marks in _clusters(text):
        if letter == " ":
            x, before = x + space, " "
            continue
        points = draw_glyph(glyph := _glyph_of(letter, marks, writer), writer, rng)
        points += (x - points[:, 0].min(), baseline - writer.tilt * (x - left))
        if is_joined and letter in SMALL_LETTERS and before in SMALL_LETTERS:
            strokes.append(np.stack([end_of_letter, points[0]]))
        drawn, centre = np.split(points, glyph.ends[:-1]), (points[:, 0].min() + points[:, 0].max()) / 2
        end_of_letter = drawn[0 if letter in CROSSED else -1][-1]
        end = points[:, 0].max()
        for mark in marks:
            shape = parse_glyph(ALL_MARKS[mark])
            accent = draw_glyph(shape, writer, rng, is_above=mark not in BELOW)
            is_low = mark not in BELOW and letter in SMALL_LETTERS and letter not in TALL
            accent += (centre, baseline + (DROP * writer.height if is_low else 0.0))
            drawn = [*np.split(accent, shape.ends[:-1]), *drawn]
        strokes += drawn
        x, before = end + spacing * rng.uniform(0.6, 1.4), letter
    return strokes


def _clusters(text: str) -> Iterator[tuple[str, str]]:
    """Yields each letter of a text with its marks."""
    decomposed = unicodedata.normalize("NFD", text)
    start = 0
    while start < len(decomposed):
        stop = start + 1
        while stop < len(decomposed) and decomposed[stop] in ALL_MARKS:
            stop += 1
        if decomposed[start] not in GLYPHS and decomposed[start] != " ":
            raise ValueError(f"there is no glyph for {decomposed[start]!r} in {text!r}")
        yield decomposed[start], decomposed[start + 1 : stop]
        start = stop


def _glyph_of(letter: str, marks: str, writer: Writer) -> Glyph:
    """Returns the writer's shape of a letter; i and j with a mark above have no dot."""
    variants = GLYPHS[letter]
    code = variants[int(writer.habits[ord(letter) % len(writer.habits)] * len(variants))]
    has_no_dot = letter in "ij" and any(mark not in BELOW for mark in marks)
    return parse_glyph(code.rpartition("|")[0] if has_no_dot else code)
