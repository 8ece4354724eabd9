"""Line images: bytes of a file to a grey picture, a grey picture to the canvas."""

import io
import struct
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageOps

from hwr_ray.errors import UserError

MIN_SIDE = 8
"""Pixels. Nothing can be read in a picture lower or narrower than this."""
MAX_PIXELS = 40_000_000
"""A header that promises more is refused before a pixel is decoded (decompression bombs)."""

PAPER = 255
SAMPLED_EVERY = 31
"""Of the pixels that a picture's median is guessed from; no divisor of a width, which would leave out columns."""


class UndecodableImageError(Exception):
    """A file that holds no line image; its text is one sentence that says why."""


@dataclass(frozen=True)
class Canvas:
    """Height and width, in pixels, of every picture that the model sees.

    The default suits the Kaggle name crops: at the median they keep 99 % of their size, for half the cost of a canvas
    that shrinks none (benchmarks/results/canvas.md).
    """

    height: int = 48
    width: int = 320

    def __post_init__(self) -> None:
        if self.height < MIN_SIDE or self.width < MIN_SIDE:
            raise UserError(f"the canvas {self} is smaller than {MIN_SIDE}x{MIN_SIDE}")

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    def scale_for(self, height: int, width: int) -> float:
        """By how much a picture shrinks to fit: its aspect is kept and it is never enlarged, so at most 1."""
        return min(1.0, self.height / height, self.width / width)


def decode(data: bytes) -> np.ndarray:
    """The bytes of an image file (any format and depth OpenCV reads) as grey (H, W) uint8, 255 white.

    Transparent pixels turn white. Raises UndecodableImageError where the bytes hold no whole, single picture of a
    sensible size.
    """
    has_alpha = _check_header(data)
    # Only IMREAD_UNCHANGED keeps the alpha channel, and only the other flags turn a picture as its EXIF data says.
    flags = cv2.IMREAD_UNCHANGED if has_alpha else cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise UndecodableImageError("the picture is damaged") from error
    if pixels is None:
        raise UndecodableImageError("the picture is damaged")
    return _to_grey(pixels)


def _check_header(data: bytes) -> bool:
    """Whether the picture has transparency. Raises UndecodableImageError for what should not be decoded."""
    if not data:
        raise UndecodableImageError("the file is empty")
    if size := _jpeg_size(data):
        _check_size(*size)
        _check_end(data, "JPEG")
        return False
    try:
        with Image.open(io.BytesIO(data)) as picture:
            (width, height), kind, frames = picture.size, picture.format, getattr(picture, "n_frames", 1)
            has_alpha = "A" in picture.getbands() or "transparency" in picture.info
    except Image.DecompressionBombError as error:
        raise UndecodableImageError("the picture is far too large") from error
    except Exception as error:  # Pillow's plugins raise errors of any kind on damaged headers
        raise UndecodableImageError("the file is not an image") from error
    if frames > 1:
        raise UndecodableImageError(f"the file holds {frames} pictures, not one")
    _check_size(height, width)
    _check_end(data, kind)
    return has_alpha


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG of one picture; None for other files, and for what its segments leave open.

    A third of the time of Pillow, which is all that most files need.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    start = 2
    while start + 9 <= len(data) and data[start] == 0xFF:
        kind = data[start + 1]
        if kind in _SIZE_SEGMENTS:
            return struct.unpack_from(">HH", data, start + 5)
        if kind not in _OTHER_SEGMENTS or data.startswith(b"MPF\0", start + 4):  # that may hold several pictures
            return None
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return None


_SIZE_SEGMENTS = frozenset((0xC0, 0xC1, 0xC2))
"""Markers of the frame headers that OpenCV decodes: baseline, extended and progressive."""
_OTHER_SEGMENTS = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))
"""Of tables, comments and applications, which may come before it."""


def _check_size(height: int, width: int) -> None:
    if min(height, width) < MIN_SIDE:
        raise UndecodableImageError(f"{width}x{height} pixels are too few for a line")
    if height * width > MAX_PIXELS:
        raise UndecodableImageError(f"{width}x{height} pixels are more than {MAX_PIXELS // 10**6} million")


def _check_end(data: bytes, kind: str | None) -> None:
    # Decoders fill the lost part of a cut JPEG or PNG with grey; only their end markers tell.
    if kind == "JPEG" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise UndecodableImageError("the JPEG is cut off before its end")
    if kind == "PNG" and b"IEND" not in data[-1024:]:
        raise UndecodableImageError("the PNG is cut off before its end")


def _to_grey(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise UndecodableImageError(f"pixels of type {pixels.dtype} are not supported")
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] == 1:
        return pixels[:, :, 0]
    grey = cv2.cvtColor(pixels[:, :, :3], cv2.COLOR_BGR2GRAY)
    if pixels.shape[2] == 4:
        alpha = pixels[:, :, 3].astype(np.float32) / 255
        grey = np.rint(grey * alpha + PAPER * (1 - alpha)).astype(np.uint8)
    return grey


def grey(image: np.ndarray | Image.Image) -> np.ndarray:
    """An image of a program's own as grey (H, W) uint8, 255 white, as `decode` gives that of a file.

    An array is (H, W), (H, W, 3) in RGB or (H, W, 4) in RGBA, of uint8 or uint16. Transparent pixels turn white. Raises
    TypeError for what is no image, and ValueError for an array of another form or an image too small to read.
    """
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        if image.mode not in ("L", "I;16"):
            has_alpha = "A" in image.getbands() or "transparency" in image.info
            image = image.convert("RGBA" if has_alpha else "L" if image.mode == "1" else "RGB")
        image = np.asarray(image)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image is a numpy array or of Pillow, not {type(image).__name__}")
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,), (4,)):
        raise ValueError(
            f"an image is (height, width), with 3 or 4 channels or none, of uint8 or uint16: not {image.shape} of "
            f"{image.dtype}; several images go into a list"
        )
    if min(image.shape[:2]) < MIN_SIDE:
        raise ValueError(f"{image.shape[1]}x{image.shape[0]} pixels are too few for a line: {MIN_SIDE} are the fewest")
    channels = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
    return _to_grey(np.ascontiguousarray(image[:, :, channels[image.shape[2]]]) if image.ndim == 3 else image)


def fit(picture: np.ndarray, canvas: Canvas) -> np.ndarray:
    """A grey picture (h, w) uint8 on the canvas (H, W): shrunk if it must be, at the left, centred in height.

    The rest is filled with the picture's median grey, its paper.
    """
    height, width = picture.shape
    scale = canvas.scale_for(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        height, width = picture.shape
    fitted = np.full((canvas.height, canvas.width), _median(picture), np.uint8)
    top = (canvas.height - height) // 2
    fitted[top : top + height, :width] = picture
    return fitted


def _median(picture: np.ndarray) -> int:
    """The median of a picture (h, w) uint8, rounded down.

    Counted from the median of some pixels on, which is right or close where most are paper, and at most 255 steps away.
    Counting is quick on any processor; np.partition and np.median are so only where numpy has vectorized them.
    """
    pixels = picture.ravel()
    half, some = (len(pixels) - 1) // 2, pixels[::SAMPLED_EVERY]
    median = int(np.partition(some, len(some) // 2)[len(some) // 2])
    while np.count_nonzero(pixels < median) > half:
        median -= 1
    while (reached := np.count_nonzero(pixels <= median)) <= half:
        median += 1
    upper = median if len(pixels) % 2 or reached > half + 1 else int(pixels[pixels > median].min())
    return (median + upper) // 2


def encode_png(picture: np.ndarray) -> bytes:
    """A grey picture (H, W) uint8 as the bytes of a PNG file."""
    _, data = cv2.imencode(".png", picture)
    return data.tobytes()
