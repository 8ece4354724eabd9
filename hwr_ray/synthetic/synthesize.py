"""The `synthesize` job: draws a data set of handwritten lines in the Kaggle layout, with known faulty rows."""

import csv
import io
import logging
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
from faker import Faker

from hwr_ray.data.labels import SPLITS
from hwr_ray.errors import UserError
from hwr_ray.files.staging import staged
from hwr_ray.files.storage import absolute, join, write_bytes, write_json
from hwr_ray.synthetic.forms import draw_line, draw_scribble
from hwr_ray.synthetic.glyphs import DRAWABLE, MARKS
from hwr_ray.synthetic.mixed_case import MixedTexts, draw_mixed_line

log = logging.getLogger(__name__)

Fault = Literal[
    "missing_text", "unreadable", "empty_field", "lowercase", "too_long", "missing_image", "undecodable_image"
]
FAULTS: tuple[Fault, ...] = get_args(Fault)
NAME_FAULTS = {"lowercase", "too_long"}
"""Faults of names only: mixed-case lines have small letters and up to 28 characters."""
FAULT_SHARE = 0.006
"""Share of the rows of a split that have a given fault."""
MIN_ROWS_WITH_FAULTS = 50
MAX_LENGTH = 20
"""Maximum number of characters in a label, except in rows with the fault `too_long`."""
LOCALES = ("fr_FR",) * 5 + ("fr_CA", "it_IT", "es_ES", "de_DE", "pt_PT", "nl_NL", "tr_TR", "en_US", "hr_HR", "ro_RO")
NAMES_PER_LOCALE = 600
JPEG_QUALITY = (88, 96)
SECONDS_BETWEEN_REPORTS = 2.0


@dataclass(frozen=True, kw_only=True)
class SynthesisSettings:
    out: str
    """Output folder of the data set."""
    lines: int = 5000
    """Total number of rows, split into 80 % training, 10 % validation and 10 % test."""
    style: Literal["names", "mixed"] = "names"
    """`names`: uppercase names on school forms. `mixed`: mixed-case names, addresses, dates, amounts and phrases in
    twelve European languages on ruled or plain paper, with accents, digits and signs."""
    seed: int = 0
    """Random seed; the same seed produces identical files."""
    overwrite: bool = False
    """Replace an existing data set in --out."""

    def __post_init__(self) -> None:
        if self.lines < 10:
            raise UserError(f"--lines must be at least 10 (each split needs a row), not {self.lines}")
        if self.seed < 0:
            raise UserError(f"--seed must not be negative, not {self.seed}")

    def rows(self) -> dict[str, int]:
        """Returns the number of rows of each split."""
        tenth = self.lines // 10
        return dict(zip(SPLITS, (self.lines - 2 * tenth, tenth, tenth), strict=True))


class Names(NamedTuple):
    """Names from Faker in capitals, with the accents that can be drawn."""

    first: tuple[str, ...]
    last: tuple[str, ...]

    @classmethod
    def draw(cls, seed: int) -> "Names":
        first: list[str] = []
        last: list[str] = []
        for number, locale in enumerate(LOCALES):
            fake = Faker(locale)
            fake.seed_instance(seed * len(LOCALES) + number)
            first += (fake.first_name() for _ in range(NAMES_PER_LOCALE))
            last += (fake.last_name() for _ in range(NAMES_PER_LOCALE))
        return cls(*(tuple(name for name in map(_in_capitals, names) if name) for names in (first, last)))

    def draw_one(self, rng: np.random.Generator) -> str:
        """Returns a first or last name of at most MAX_LENGTH characters, sometimes a compound name."""
        while True:
            kind = rng.random()
            first, last = (names[rng.integers(len(names))] for names in (self.first, self.last))
            if kind < 0.48:
                text = first
            elif kind < 0.50:
                text = f"{first}{rng.choice(['-', ' '], p=[0.8, 0.2])}{self.first[rng.integers(len(self.first))]}"
            elif kind < 0.965:
                text = last
            elif kind < 0.98:
                text = f"{last}{rng.choice(['-', ' '])}{self.last[rng.integers(len(self.last))]}"
            else:
                article = (
                    "D'" if last[0] in "AEIOUH" else rng.choice(["LE ", "LA ", "DE ", "DA ", "EL ", "BEN ", "VAN "])
                )
                text = f"{article}{last}"
            if len(text) <= MAX_LENGTH:
                return text


def _in_capitals(name: str) -> str:
    """Returns the name in composed capitals without accents that have no stroke, or "" if a letter has no glyph."""
    decomposed = unicodedata.normalize("NFKD", name.upper().replace("’", "'").replace("' ", "'"))
    kept = "".join(c for c in decomposed if c in MARKS or not unicodedata.combining(c))
    is_name = all(c in DRAWABLE and not c.isdigit() for c in kept) and len(without_accents(kept)) >= 2
    return unicodedata.normalize("NFC", kept) if is_name else ""


def without_accents(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def draw_row(texts: Names | MixedTexts, fault: Fault | None, rng: np.random.Generator) -> tuple[str, bytes | None]:
    """Returns the label of a row and the bytes of its JPEG file, or None if the image is to be missing."""
    text, is_mixed = texts.draw_one(rng), isinstance(texts, MixedTexts)
    draw = draw_mixed_line if is_mixed else draw_line
    if fault == "lowercase":
        text = text.title()
    while fault == "too_long" and not MAX_LENGTH < len(text) <= MAX_LENGTH + 10:
        text = f"{texts.draw_one(rng)} {texts.draw_one(rng)}"
    label = text if is_mixed else without_accents(text)
    if fault == "unreadable":
        return "UNREADABLE", encode_jpeg(draw_scribble(rng), rng)
    if fault == "empty_field":
        return "EMPTY", encode_jpeg(draw("", rng), rng)
    if fault == "missing_image":
        return label, None
    # The labels of the Kaggle data set omit the accents that pupils wrote.
    written = text if is_mixed or rng.random() < 0.5 else label
    picture = encode_jpeg(draw(written, rng), rng)
    if fault == "undecodable_image":
        picture = _cut(picture, rng)
    return "" if fault == "missing_text" else label, picture


def encode_jpeg(picture: np.ndarray, rng: np.random.Generator) -> bytes:
    """Returns a grayscale image (H, W) uint8 as a JPEG file with three equal channels."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(*JPEG_QUALITY))]
    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR), quality)[1].tobytes()


def _cut(jpeg: bytes, rng: np.random.Generator) -> bytes:
    """Returns the file cut off in its header, or within the pixels, where OpenCV still decodes it."""
    scan = jpeg.index(b"\xff\xda")
    if rng.random() < 0.5:
        return jpeg[: rng.integers(2, scan)]
    return jpeg[: scan + int((len(jpeg) - scan) * rng.uniform(0.2, 0.8))]


def assign_faults(rows: int, rng: np.random.Generator, faults: Sequence[Fault] = FAULTS) -> dict[int, Fault]:
    """Returns the fault of each faulty row, by row number from 1: all faults equally often, at most one per row."""
    if rows < MIN_ROWS_WITH_FAULTS:
        return {}
    each = max(1, round(rows * FAULT_SHARE))
    numbers = rng.permutation(rows)[: each * len(faults)] + 1
    return {int(number): faults[i % len(faults)] for i, number in enumerate(numbers)}


def synthesize(settings: SynthesisSettings) -> str:
    """Writes label CSVs, images and synthesis.json, with settings and counts of faulty rows, and returns the folder."""
    start = time.monotonic()
    report = _progress(settings.lines)
    texts = (Names if settings.style == "names" else MixedTexts).draw(settings.seed)
    with staged(settings.out, mark="synthesis.json", overwrite=settings.overwrite) as folder:
        splits = {
            split: _write_split(folder, split, rows, texts, (settings.seed, index), report)
            for index, (split, rows) in enumerate(settings.rows().items())
        }
        write_json(
            join(folder, "synthesis.json"),
            {
                "settings": {"lines": settings.lines, "seed": settings.seed, "style": settings.style},
                "splits": splits,
            },
        )
    faulty = sum(counts[fault] for counts in splits.values() for fault in FAULTS)
    seconds = time.monotonic() - start
    log.info("wrote %s: %d lines, %d of them faulty, in %.1f s", settings.out, settings.lines, faulty, seconds)
    return absolute(settings.out)


def _write_split(
    folder: str, split: str, rows: int, texts: Names | MixedTexts, seed: tuple[int, int], report: Callable[[], None]
) -> dict[str, int]:
    """Writes one CSV and its images. Returns the number of rows and of each fault."""
    possible = [fault for fault in FAULTS if isinstance(texts, Names) or fault not in NAME_FAULTS]
    faults = assign_faults(rows, np.random.default_rng((*seed, 0)), possible)
    labels = io.StringIO(newline="")
    table = csv.writer(labels, lineterminator="\n")
    table.writerow(("FILENAME", "IDENTITY"))
    for number in range(1, rows + 1):
        file = f"{split.upper()}_{number:0{5 if split == 'train' else 4}d}.jpg"
        label, picture = draw_row(texts, faults.get(number), np.random.default_rng((*seed, number)))
        table.writerow((file, label))
        if picture is not None:
            write_bytes(join(folder, f"{split}_v2", split, file), picture)
        report()
    write_bytes(join(folder, f"written_name_{split}_v2.csv"), labels.getvalue().encode())
    return {"rows": rows, **dict.fromkeys(FAULTS, 0), **Counter(faults.values())}


def _progress(total: int) -> Callable[[], None]:
    """Returns a function to call after each line; it logs the rate every SECONDS_BETWEEN_REPORTS."""
    start = last = time.monotonic()
    done = 0

    def report() -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_REPORTS:
            last = now
            log.info("%d of %d lines, %.0f lines/s", done, total, done / (now - start))

    return report
