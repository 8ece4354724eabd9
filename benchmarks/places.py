"""Writes place names of mixed case, up to 37 characters in images of 64x256 pixels, to try `--canvas auto`.

Run as `python -m benchmarks.places --out FOLDER`. Then prepare the folder with --keep lowercase --max-length 40, with
and without --canvas auto, and fine-tune the shipped model on both.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from hwr_ray.cli import run_job

NUM_LINES, NUM_WRITERS = {"train": 5000, "test": 939}, {"train": 31, "test": 6}
FIRST = (
    "Ober",
    "Unter",
    "Neu",
    "Alt",
    "Groß",
    "Klein",
    "Hohen",
    "Nieder",
    "Wald",
    "Stein",
    "Grün",
    "König",
    "Müh",
    "Schön",
    "Frei",
    "Lang",
    "Rot",
    "Weiß",
    "Heil",
)
SECOND = (
    "berg",
    "burg",
    "dorf",
    "heim",
    "hausen",
    "kirchen",
    "stadt",
    "feld",
    "bach",
    "brück",
    "münster",
    "ried",
    "leben",
    "walde",
    "furt",
    "lingen",
    "rode",
)
THIRD = [" am Main", " an der Saale", " (Thüringen)", " bei Göttingen", "-Süd", " (Württemberg)", " Krs. Gießen"]
HEIGHT, WIDTH, MOST_CHARACTERS = 64, 256, 37


@dataclass(frozen=True, kw_only=True)
class PlacesSettings:
    out: str
    """Folder for train/ and test/, each with images and metadata.csv."""
    seed: int = 7
    """Seed of names and writers."""


@dataclass(frozen=True)
class Writer:
    font: str
    size: int
    slant: float
    gap: float
    wave: float
    ink: int
    blur: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> "Writer":
        fonts = sorted(Path(matplotlib.get_data_path(), "fonts/ttf").glob("DejaVuS*.ttf"))
        font = str(rng.choice([str(path) for path in fonts if "Display" not in path.name]))
        return cls(
            font,
            int(rng.integers(26, 36)),
            rng.uniform(-0.1, 0.4),
            rng.uniform(-1.5, 1.5),
            rng.uniform(0, 2.5),
            int(rng.integers(0, 90)),
            rng.uniform(0.3, 1.1),
        )

    def write(self, text: str, rng: np.random.Generator) -> Image.Image:
        """Returns a text as ink on transparent paper, RGBA, squeezed to fit."""
        font, x, phase = ImageFont.truetype(self.font, self.size), 10.0, rng.uniform(0, 6)
        mask = Image.new("L", (1800, HEIGHT), 0)
        draw = ImageDraw.Draw(mask)
        for character in text:
            draw.text((x, 12 + self.wave * np.sin(phase + x / 25) + rng.normal(0, 0.7)), character, font=font, fill=255)
            x += font.getlength(character) + self.gap + rng.normal(0, 0.6)
        alpha = np.asarray(mask)[:, : int(x) + 14]
        shear = np.array([[1, -self.slant, self.slant * 40], [0, 1, 0]], np.float32)
        alpha = cv2.warpAffine(alpha, shear, (alpha.shape[1] + 30, HEIGHT))
        width = int(np.clip(alpha.shape[1] * rng.uniform(0.55, 0.8), 30, WIDTH - 6))
        full = np.zeros((HEIGHT, WIDTH), np.uint8)
        full[:, 3 : 3 + width] = cv2.resize(alpha, (width, HEIGHT), interpolation=cv2.INTER_AREA)
        blurred = np.asarray(Image.fromarray(full).filter(ImageFilter.GaussianBlur(self.blur)), np.float32)
        alpha = np.clip(1.4 * blurred + rng.normal(0, 6, full.shape), 0, 255).astype(np.uint8)
        grey = np.full_like(alpha, self.ink)
        return Image.fromarray(np.dstack([grey, grey, grey, alpha]), "RGBA")


def name(rng: np.random.Generator) -> str:
    text = rng.choice(FIRST) + rng.choice(SECOND)
    if rng.random() < 0.45:
        text += rng.choice(THIRD)
    if rng.random() < 0.15:
        text = f"{rng.choice(FIRST)}{rng.choice(SECOND)}-{text}"
    return text[:MOST_CHARACTERS]


def places(settings: PlacesSettings) -> str:
    """Writes the two splits, by different writers, and returns their folder."""
    rng = np.random.default_rng(settings.seed)
    for split, number in NUM_LINES.items():
        folder = Path(settings.out, split)
        folder.mkdir(parents=True)
        writers = [Writer.drawn(rng) for _ in range(NUM_WRITERS[split])]
        with (folder / "metadata.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["file_name", "text"])
            for n in range(number):
                text = name(rng)
                writers[n % len(writers)].write(text, rng).save(folder / f"{n:05}.png")
                rows.writerow([f"{n:05}.png", text])
    return settings.out


if __name__ == "__main__":
    run_job(PlacesSettings, places)
