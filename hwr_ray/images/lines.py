"""The canvas, and fitting of grey line images to it."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from hwr_ray.errors import UserError

MIN_SIDE = 8
"""Minimum height and width of an image in pixels. A smaller one is not legible."""

MAX_STRETCH = 4.0
SAMPLED_EVERY = 61
"""Stride of the pixels whose grey levels are sampled. It is prime, so that few widths are a multiple of it, which would
leave out columns. Twice as many pixels take 3 microseconds longer and find the same warnings."""


@dataclass(frozen=True)
class Canvas:
    """Height and width, in pixels, of every image that the model receives.

    The default suits the Kaggle name crops: at the median they keep 99 % of their size, at half the cost of a canvas
    that shrinks none (benchmarks/results/canvas.md).
    """

    height: int = 48
    width: int = 320
    stretch: float = 1.0
    """Factor by which all images are widened, which gives short images with long texts more frames."""

    def __post_init__(self) -> None:
        if self.height < MIN_SIDE or self.width < MIN_SIDE:
            raise UserError(f"the canvas {self} is smaller than {MIN_SIDE}x{MIN_SIDE}")
        if not 1 <= self.stretch <= MAX_STRETCH:
            raise UserError(f"--stretch must be between 1 and {MAX_STRETCH:g}, not {self.stretch:g}")

    def __str__(self) -> str:
        return f"{self.height}x{self.width}" + (f" stretched by {self.stretch:g}" if self.stretch != 1 else "")

    def to_list(self) -> list[float]:
        """Returns the arguments of the canvas, as JSON files hold them."""
        return [self.height, self.width, *([self.stretch] if self.stretch != 1 else [])]

    def scale_for(self, height: int, width: int) -> float:
        """Returns the factor that scales an image before it is stretched; at most 1, as images never grow in height."""
        return min(1.0, self.height / height, self.width / (self.stretch * width))


class Levels(NamedTuple):
    """Grey levels of an image, from a sample of its pixels."""

    darkest: int
    """Almost the darkest grey of the sample: that of ink on light paper."""
    paper: int
    """The median."""
    lightest: int
    """Almost the lightest grey."""


def levels_of(image: np.ndarray) -> Levels:
    """Returns the grey levels of an image (h, w) uint8."""
    sample = image.ravel()[::SAMPLED_EVERY].copy()
    sample.sort()
    number, outliers = len(sample), len(sample) // 128
    return Levels(sample.item(outliers), sample.item(number // 2), sample.item(number - 1 - outliers))


def fit(image: np.ndarray, canvas: Canvas) -> np.ndarray:
    """Returns a grey image (h, w) uint8 on the canvas (H, W): shrunk if necessary, then stretched, left-aligned and
    vertically centred.

    The rest is filled with the median grey of the image, which is its paper.
    """
    return fit_with_levels(image, canvas)[0]


def fit_with_levels(image: np.ndarray, canvas: Canvas) -> tuple[np.ndarray, Levels]:
    """Returns the image on the canvas, as `fit` does, and the levels of its pixels there."""
    height, width = image.shape
    scale = canvas.scale_for(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        height, width = image.shape
    if canvas.stretch != 1:
        width = min(canvas.width, max(1, round(width * canvas.stretch)))
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    levels = levels_of(image)
    fitted = np.full((canvas.height, canvas.width), _median(image, levels.paper), np.uint8)
    top = (canvas.height - height) // 2
    fitted[top : top + height, :width] = image
    return fitted, levels


def squeezed(image: np.ndarray, stretch: float) -> np.ndarray:
    """Returns a line image (H, W) uint8 narrower by the factor of a canvas, which widens it again."""
    height, width = image.shape
    return cv2.resize(image, (round(width / stretch), height), interpolation=cv2.INTER_AREA)


def resized(images: np.ndarray, factor: float) -> np.ndarray:
    """Returns line images (N, H, W) uint8 with their content resized about the middle of their left edge.

    What the content leaves free is filled with the image's median grey, which is its paper.
    """
    height, width = images.shape[1:]
    matrix = np.array([[factor, 0, 0], [0, factor, (1 - factor) * height / 2]])
    papers = [_median(image, levels_of(image).paper) for image in images]
    return np.stack(
        [
            cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=paper)
            for image, paper in zip(images, papers, strict=True)
        ]
    )


def _median(image: np.ndarray, estimate: int) -> int:
    """Returns the median of an image (h, w) uint8, rounded down, given an estimate.

    The estimate from a sample is exact or close if most pixels are paper. The search takes at most 255 steps. Each step
    counts pixels, which is fast on any processor; np.partition and np.median are fast only where numpy has vectorized
    them.
    """
    pixels = image.ravel()
    half, median = (len(pixels) - 1) // 2, estimate
    while np.count_nonzero(pixels < median) > half:
        median -= 1
    while (reached := np.count_nonzero(pixels <= median)) <= half:
        median += 1
    upper = median if len(pixels) % 2 or reached > half + 1 else int(pixels[pixels > median].min())
    return (median + upper) // 2


def encode_png(image: np.ndarray) -> bytes:
    """Returns a grey image (H, W) uint8 as the bytes of a PNG file."""
    _, data = cv2.imencode(".png", image)
    return data.tobytes()
