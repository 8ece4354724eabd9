"""School forms with one handwritten field, drawn as grayscale images."""

import unicodedata
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hwr_ray.synthetic.glyphs import MARKS, Writer, write

OVERSAMPLING = 4
"""Factor by which strokes are drawn larger, in pure black and white, before they are shrunk. The real scans seem to
have been shrunk in the same way."""
WORD_BASELINE = 10
"""Row of the baseline in the image of a printed word."""


class Printed(NamedTuple):
    text: str
    x: float
    baseline: float
    is_bold: bool = False


@dataclass(frozen=True, kw_only=True)
class Form:
    """A crop of a school form with one field to write in. Lengths are in pixels."""

    height: int
    width: int
    left: float
    """Left edge of the first letter's box."""
    baseline: float
    pitch: float
    """Distance from one letter's box to the next."""
    printed: tuple[Printed, ...] = ()
    neighbours: tuple[tuple[str, float, float], ...] = ()
    """Text, left edge and baseline of the same pupil's writing on adjacent lines, cut at the edge of the crop."""
    stamp: tuple[str, int, int] | None = None
    """Digits printed upwards along the left edge, with their x and top y."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Form":
        """Draws one of three templates, with frequencies and sizes as in 4,000 lines of the Kaggle data set."""
        draw = (_draw_narrow, _draw_bare, _draw_wide)[rng.choice(3, p=[0.38, 0.29, 0.33])]
        return draw(rng)


def _draw_narrow(rng: np.random.Generator) -> Form:
    """Draws a form 284 pixels wide: a tightly cut NOM or PRENOM, a NOM with heading, or a PRENOM with surroundings."""
    kind = rng.choice(["close", "nom", "prenom"], p=[0.55, 0.24, 0.21])
    is_nom = kind == "nom" or (kind == "close" and rng.random() < 0.5)
    if kind == "close":
        height, baseline, left = 31, np.clip(rng.normal(22, 2.2), 16, 28), rng.normal(17.5, 1.8)
    elif kind == "nom":
        height = 50 if rng.random() < 0.85 else int(rng.integers(43, 48))
        baseline, left = height - np.clip(rng.normal(8.5, 2), 3, 12), rng.normal(30, 2)
    else:
        height, baseline, left = round(rng.normal(66, 2.5)), rng.normal(51.3, 1.3), rng.normal(30.5, 2)
    x = left + rng.normal(4, 1)
    above = Printed("NOM" if is_nom else "PRENOM", x, baseline - (37 if kind == "prenom" else 20.5))
    below = Printed("PRENOM" if is_nom else "DATE DE NAISSANCE   CLASSE", x, baseline + 19)
    code, code_baseline = Printed("CODE UAI / RNE", x, baseline - 41), baseline - 38 + rng.normal(0, 1.5)
    return Form(
        height=int(np.clip(height, 31, 72)),
        width=284,
        left=left,
        baseline=baseline,
        pitch=rng.normal(15.6, 0.25),
        printed=(above, below, code) if kind == "nom" else (above, below),
        neighbours=((_school_code(rng), left + 104, code_baseline),) if kind == "nom" else (),
    )


def _draw_bare(rng: np.random.Generator) -> Form:
    """Draws a form of 324 x 44 pixels with nothing printed."""
    return Form(
        height=44, width=324, left=rng.normal(6.5, 1.3), baseline=rng.normal(28.2, 1.4), pitch=rng.normal(17.7, 0.3)
    )


def _draw_wide(rng: np.random.Generator) -> Form:
    """Draws a form 388 pixels wide: bold "NOM :" or "PRENOM :" before the name, a number along the left edge."""
    is_nom = bool(rng.random() < 0.49)
    shift = rng.normal(0 if rng.random() < 0.6 else 11, 1.5)
    if is_nom:
        height, label_baseline = 36, float(np.clip(rng.normal(29, 2.5), 22, 34.5))
        printed = [("NOM :", 4.0, 0), ("CODE RNE / UAI :", 0.0, -27), ("PRENOM :", 4.0, 25)]
        neighbours = [(_school_code(rng), 116, -25)]
    else:
        height, label_baseline = int(np.clip(rng.normal(26.5, 4.5), 16, 35)), float(rng.normal(17, 1.3))
        label_baseline = min(label_baseline, height - 2.0)
        printed = [("PRENOM :", 4.0, 0), ("NOM :", 4.0, -25), ("NE(E) LE :", 0.0, 24), ("CLASSE :", 215.0, 24)]
        neighbours = [(_digits(rng, 8), 84, 24)]
    stamp = _digits(rng, 2) + ":" + _digits(rng, 2) + ":" + _digits(rng, 2)
    return Form(
        height=height,
        width=388,
        left=shift + 83,
        baseline=label_baseline + rng.normal(0.2, 1.2),
        pitch=rng.normal(17.8, 0.25),
        printed=tuple(Printed(text, x + shift, label_baseline + y, is_bold=True) for text, x, y in printed),
        neighbours=tuple((text, x + shift, label_baseline + y + rng.normal(0, 1.5)) for text, x, y in neighbours),
        stamp=(stamp, round(shift) - 4, height - int(rng.integers(4, 60))) if rng.random() < 0.75 else None,
    )


def _digits(rng: np.random.Generator, count: int) -> str:
    return "".join(map(str, rng.integers(0, 10, count)))


def _school_code(rng: np.random.Generator) -> str:
    return f"0{_digits(rng, 6)}{chr(rng.integers(65, 91))}"


def draw_line(
    text: str, rng: np.random.Generator, *, form: Form | None = None, writer: Writer | None = None
) -> np.ndarray:
    """Returns a grayscale image (H, W) uint8 of a handwritten text, black on white, on a school form.

    The whole text lies between the left and the right edge; letters shrink if it is too long. The accents of the text
    are drawn. Raises ValueError for a character without a glyph.
    """
    form = form or Form.draw(rng)
    writer = writer or Writer.draw(rng)
    return _draw_crop(_fitted(text, form, writer, rng), form, writer, rng)


def draw_scribble(rng: np.random.Generator) -> np.ndarray:
    """Returns a grayscale image (H, W) uint8 of an illegible field: overlapping zigzags."""
    form, writer = Form.draw(rng), Writer.draw(rng)
    strokes = []
    for _ in range(rng.integers(3, 7)):
        start, end = np.sort(rng.uniform(form.left, form.width * 0.8, 2))
        x = np.linspace(start, end, int(rng.integers(8, 40))) + rng.normal(0, 4)
        strokes.append(np.stack([x, form.baseline - rng.uniform(0, writer.height, len(x))], axis=1))
    return _draw_crop(strokes, form, writer, rng)


def _fitted(text: str, form: Form, writer: Writer, rng: np.random.Generator) -> list[np.ndarray]:
    """Returns the strokes of the text, squeezed to keep the pen 1 pixel inside the left and right edge of the crop."""
    boxes = sum(character not in MARKS for character in unicodedata.normalize("NFD", text))
    pitch = min(form.pitch, (form.width - form.left - 4) / max(boxes, 1))
    writer = replace(writer, width=min(writer.width, 1.25 * pitch / writer.height))
    strokes = write(text, writer, rng, left=form.left, baseline=form.baseline, pitch=pitch)
    if not strokes:
        return []
    x = np.concatenate(strokes)[:, 0]
    margin = writer.pen / 2 + 2
    low, high = max(x.min(), margin), min(x.max(), form.width - margin)
    scale = (high - low) / max(x.max() - x.min(), 1e-6)
    return [(stroke - (x.min(), 0)) * (scale, 1) + (low, 0) for stroke in strokes]


def _draw_crop(strokes: list[np.ndarray], form: Form, writer: Writer, rng: np.random.Generator) -> np.ndarray:
    strokes = list(strokes)
    for text, left, baseline in form.neighbours:
        strokes += write(text, writer, rng, left=left, baseline=baseline, pitch=form.pitch)
    ink: np.ndarray = np.zeros((form.height * OVERSAMPLING, form.width * OVERSAMPLING), np.uint8)
    curves = [np.rint(stroke * OVERSAMPLING).astype(np.int32) for stroke in strokes]
    pressed = [curve[rng.integers(len(curve)) :] for curve in curves]
    thickness = max(1, round(writer.pen * OVERSAMPLING))
    cv2.polylines(ink, curves, isClosed=False, color=255, thickness=thickness)
    cv2.polylines(ink, pressed, isClosed=False, color=255, thickness=thickness + 2)
    if writer.fading:
        grain = rng.random((form.height // 2, form.width // 2), np.float32)
        ink[cv2.resize(grain, ink.shape[::-1], interpolation=cv2.INTER_LINEAR) < writer.fading] = 0
    softness = int(rng.choice([1, 3, 5], p=[0.3, 0.4, 0.3]))
    ink = cv2.blur(ink, (softness, softness))
    for _ in range(rng.poisson(0.2)):
        speck = int(rng.integers(0, ink.shape[1])), int(rng.integers(0, ink.shape[0]))
        cv2.circle(ink, speck, int(rng.integers(1, 3)), 255, -1)
    picture = 255 - cv2.resize(ink, (form.width, form.height), interpolation=cv2.INTER_AREA)
    for printed in form.printed:
        word = printed_word(printed.text, is_bold=printed.is_bold)
        _stamp(picture, word, round(printed.x), round(printed.baseline) - WORD_BASELINE)
    if form.stamp:
        digits, x, top = form.stamp
        _stamp(picture, np.rot90(_printed_digits(digits)), x, top)
    return picture


@cache
def printed_word(text: str, *, is_bold: bool = False) -> np.ndarray:
    """Returns the image (14, W) uint8 of a word as printed on forms, black on white, with capitals 9 pixels high."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.truetype(
        str(fonts / ("DejaVuSans-Bold.ttf" if is_bold else "DejaVuSans.ttf")), 50 if is_bold else 52
    )
    picture = Image.new("L", (int(font.getlength(text)) + 8, 14 * 4), 255)
    ImageDraw.Draw(picture).text((0, WORD_BASELINE * 4), text, fill=0, font=font, anchor="ls")
    # Regular DejaVu is narrower than the sans-serif font of the forms, bold DejaVu is wider.
    width = round(picture.width / 4 * (0.8 if is_bold else 1.04))
    return cv2.resize(np.asarray(picture), (width, 14), interpolation=cv2.INTER_AREA)


def _printed_digits(digits: str) -> np.ndarray:
    return np.hstack([printed_word(digit, is_bold=True)[:, :-1] for digit in digits])


def _stamp(picture: np.ndarray, word: np.ndarray, x: int, y: int) -> None:
    """Darkens `picture` by `word`, whose top left corner is at (x, y), clipping the word at the edges."""
    target = picture[max(y, 0) : max(y + word.shape[0], 0), max(x, 0) : max(x + word.shape[1], 0)]
    word = word[max(-y, 0) :, max(-x, 0) :][: target.shape[0], : target.shape[1]]
    np.minimum(target, word, out=target)
