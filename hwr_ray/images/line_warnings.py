"""Warnings about images that are not a single line of dark text on light paper, from cheap statistics of their pixels.

benchmarks/results/warnings.json has the share of such images that are found, and of real lines that are not spared.
"""

from collections.abc import Iterator, Mapping

import cv2
import numpy as np

from hwr_ray.images.lines import Levels

WARNINGS = {
    "blank": "the image has no writing, or hardly any",
    "light_on_dark": "the writing is lighter than its background",
    "inverted": "the writing was lighter than its background; the image was inverted",
    "vertical": "the image is more than twice as high as wide",
    "page": "the image has three or more lines of text",
    "upside_down": "the text is read with more confidence if the image is rotated by 180 degrees",
}
"""Warnings with their explanations."""
REMEDIES = {
    "light_on_dark": "--invert auto inverts such images",
    "vertical": "rotate them by 90 degrees",
    "page": "cut them into lines",
    "upside_down": "rotate them",
}
"""What the user of a job can do about a warning."""

CONTRAST, CLEAR_CONTRAST = 20, 40
"""Minimum difference from the background, in grey levels, of a pixel that may be ink, and of ink that is obvious."""
POLARITY_RATIO = 2
"""How many times the contrast of ink exceeds that of pixels on the other side of the paper's grey."""
BACKGROUND, PAGE_BACKGROUND = 25, 61
"""Side in pixels of the square whose mean is the local background. On a page it must be larger than thick strokes."""
MAX_SIDE, POLARITY_SIDE = 320, 128
"""Maximum side in pixels of the image to count ink in, and to compare light and dark pixels in."""
MIN_INK = 24
"""Pixels of ink that a line has at least; fewer if it is under 44 pixels high."""
LINE_SHAPE, VERTICAL_SHAPE, LINE_HEIGHT = 0.35, 2.0, 96
"""Height divided by width up to which an image is one line, and above which it is vertical; height in pixels up to
which it is one line."""
NUM_STRIPS, PAGE_LINES = 4, 3
"""Vertical strips in which text lines are counted, since lines may slope, and the median count of a page."""
GAP = 0.35
"""Ink in the rows between two lines of text, relative to the rows with much ink (their 80th percentile)."""


def warning_of(image: np.ndarray, levels: Levels) -> str | None:
    """Returns one of WARNINGS, except `inverted` and `upside_down`, for a decoded image (h, w) uint8, or None.

    `levels` are those of the image or of a smaller version of it. Most lines need nothing else.
    """
    height, width = image.shape
    if height > VERTICAL_SHAPE * width:
        return "vertical"
    dark, light = levels.paper - levels.darkest, levels.lightest - levels.paper
    may_be_page = height > max(LINE_HEIGHT, LINE_SHAPE * width)
    is_dark_on_light = dark >= max(CLEAR_CONTRAST, POLARITY_RATIO * light)
    if is_dark_on_light and not may_be_page:
        return None
    small = _within(image, MAX_SIDE)
    if cv2.countNonZero(_ink(small, BACKGROUND)) < min(MIN_INK, len(small) ** 2 / 80):
        return "blank"
    if light >= max(CLEAR_CONTRAST, POLARITY_RATIO * dark) or (
        not is_dark_on_light and _is_light_on_dark(image, levels.paper)
    ):
        return "light_on_dark"
    return "page" if may_be_page and _num_text_lines(_ink(small, PAGE_BACKGROUND)) >= PAGE_LINES else None


def warning_messages(counts: Mapping[str, int]) -> Iterator[str]:
    """Yields a sentence for each warning with its number of images and its remedy."""
    for warning, number in counts.items():
        remedy = f" ({REMEDIES[warning]})" if warning in REMEDIES else ""
        yield f"warning {warning} for {number} image{'s' if number > 1 else ''}: {WARNINGS[warning]}{remedy}"


def _within(image: np.ndarray, side: int) -> np.ndarray:
    """Returns the image, shrunk if a side is longer than `side`."""
    height, width = image.shape
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _ink(image: np.ndarray, side: int) -> np.ndarray:
    """Returns a mask (h, w) uint8, 0 or 255, of the pixels that differ from the mean of a square around them."""
    background = cv2.blur(image, (side, side))
    return _above_contrast(cv2.absdiff(cv2.blur(image, (3, 3)), background))


def _above_contrast(difference: np.ndarray) -> np.ndarray:
    return cv2.threshold(difference, CONTRAST, 255, cv2.THRESH_BINARY)[1]


def _is_light_on_dark(image: np.ndarray, paper: int) -> bool:
    """Returns whether more pixels are lighter than the median around them than darker, which shadows do not change."""
    if image.max() < paper + CONTRAST:
        return False
    image = _within(image, POLARITY_SIDE)
    background = cv2.medianBlur(image, min(2 * min(image.shape) + 1, 255))
    lighter, darker = (
        cv2.countNonZero(_above_contrast(cv2.subtract(*pair))) for pair in ((image, background), (background, image))
    )
    return lighter > POLARITY_RATIO * darker


def _num_text_lines(ink: np.ndarray) -> float:
    """Returns the number of text lines in a mask (h, w) uint8: the median count of vertical strips of the text."""
    left, top, width, height = cv2.boundingRect(ink)
    if not width:
        return 0.0
    text = ink[top : top + height, left : left + width]
    strips = cv2.blur(cv2.resize(text, (NUM_STRIPS, height), interpolation=cv2.INTER_AREA), (1, 3)).T
    much = np.sort(strips)[:, int(0.8 * height), None]
    is_text = np.pad(strips > GAP * much, ((0, 0), (1, 2)))
    is_line = is_text[:, :-2] & is_text[:, 1:-1] & is_text[:, 2:]  # three rows at least
    return float(np.median((is_line[:, 1:] & ~is_line[:, :-1]).sum(1)))
