"""The warnings about images that are no line: how often they are false on real lines, and how often they are found on
the same lines inverted, emptied, turned and pasted into pages.

Run as `python -m benchmarks.line_warnings --data FOLDER`. The result contains no image and no label.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.machine import ROOT, commit, hardware
from hwr_ray.cli import run_job
from hwr_ray.data.cleaning import CleaningSettings, reason_for
from hwr_ray.data.labels import Split, find_label_files, read_rows
from hwr_ray.files.storage import write_json
from hwr_ray.images.decode import decode
from hwr_ray.recognition.recognizer import Recognizer
from hwr_ray.versions import versions

EVERY = 11
"""One in this many training lines is altered."""
LINES_OF_A_PAGE = (4, 6, 10, 20)
NUM_PAGES = 200


@dataclass(frozen=True, kw_only=True)
class WarningsBenchmark:
    data: str
    """Folder with the labelled lines, in the Kaggle layout."""
    out: str = str(ROOT / "benchmarks/results/warnings.json")
    """JSON file of the result."""


def photographed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns an image (h, w) uint8 on greyer paper, with a shadow across it and noise."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    angle = rng.uniform(0, 2 * np.pi)
    shadow = 50 * (x / image.shape[1] * np.cos(angle) + y / image.shape[0] * np.sin(angle))
    grey = 60 + 140 * (image / 255.0) - shadow + rng.normal(0, 6, image.shape)
    return grey.clip(0, 255).astype(np.uint8)


def page_of(lines: list[np.ndarray]) -> np.ndarray:
    """Returns a portrait page with lines one below the other at its left, 20 pixels apart."""
    height = sum(len(line) + 20 for line in lines)
    width = max(height * 5 // 7, *(line.shape[1] for line in lines))
    rows = [np.pad(line, ((10, 10), (0, width - line.shape[1])), constant_values=255) for line in lines]
    return np.vstack(rows)


def turned(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[::-1, ::-1])


def altered(lines: list[np.ndarray], rng: np.random.Generator) -> Iterator[tuple[str, str | None, list[np.ndarray]]]:
    """Yields ways to alter lines, each with the warning that should be given and the altered images."""
    photos = [photographed(line, rng) for line in lines]
    yield "photographed", None, photos
    margins = [tuple(map(tuple, rng.integers(20, 200, (2, 2)))) for _ in lines]
    yield "with wide margins", None, [np.pad(i, m, constant_values=255) for i, m in zip(lines, margins, strict=True)]
    yield "inverted", "light_on_dark", [255 - line for line in lines]
    yield "photographed and inverted", "light_on_dark", [255 - photo for photo in photos]
    sheets = [np.full_like(line, 255) for line in lines]
    yield "blank", "blank", sheets
    yield "blank and photographed", "blank", [photographed(sheet, rng) for sheet in sheets]
    yield "turned by 90 degrees", "vertical", [np.ascontiguousarray(np.rot90(line)) for line in lines]
    for number in LINES_OF_A_PAGE:
        pages = [page_of([lines[n] for n in rng.integers(0, len(lines), number)]) for _ in range(NUM_PAGES)]
        yield f"pages of {number} lines", "page", pages


def read_images(folder: str, split: Split) -> list[np.ndarray]:
    """Returns the images of a split whose labels the cleaning rules keep."""
    (file,) = (file for file in find_label_files(folder) if file.split == split)
    keeps: Callable[[str], str | None] = partial(reason_for, settings=CleaningSettings(), is_training=True)
    rows = (row for table in read_rows(file) for row in table.to_pylist())
    paths = (Path(row["path"]) for row in rows if row["reason"] is None and not keeps(row["text"]))
    return [decode(path.read_bytes()) for path in paths]


def shares(warnings: Iterable[str | None]) -> dict[str, float]:
    """Returns the share of images with each warning, 0 to 1."""
    counts = Counter(warning or "none" for warning in warnings)
    return {warning: round(number / counts.total(), 5) for warning, number in counts.most_common()}


def measure(settings: WarningsBenchmark) -> str:
    """Measures the warnings with the shipped model and writes the result."""
    rng, recognizer = np.random.default_rng(0), Recognizer()
    training, validation = read_images(settings.data, "train"), read_images(settings.data, "validation")

    def warnings(images: list[np.ndarray]) -> dict[str, float]:
        return shares(reading.warning for reading in recognizer.read(images))

    result = {
        "command": f"python -m benchmarks.line_warnings --data {Path(settings.data).name}",
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "false": {
            "training lines": {"number": len(training), **warnings(training)},
            "validation lines, unseen by the model": {"number": len(validation), **warnings(validation)},
        },
        "altered training lines": [
            {"altered": name, "expected": expected, "number": len(images), **warnings(images)}
            for name, expected, images in altered(training[::EVERY], rng)
        ],
        "altered validation lines": [
            {
                "altered": "turned by 180 degrees",
                "expected": "upside_down",
                "number": len(validation),
                **warnings([turned(image) for image in validation]),
            }
        ],
    }
    write_json(settings.out, result)
    return settings.out


if __name__ == "__main__":
    run_job(WarningsBenchmark, measure)
