"""Decoding of image files to grey line images, and fitting of images to the canvas."""

import io
import struct
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageOps

from hwr_ray.errors import UserError

MIN_SIDE = 8
"""Minimum height and width of an image in pixels. A smaller one is not legible."""
MAX_PIXELS = 40_000_000
"""Maximum number of pixels. A larger image is rejected by its header, before decoding (decompression bombs)."""

PAPER = 255
SAMPLED_EVERY = 31
"""Stride of the pixels from which an image's median is estimated. A stride that divides the width would leave out
columns."""


class UndecodableImageError(Exception):
    """A file that is not a line image. The message is one sentence with the reason."""


@dataclass(frozen=True)
class Canvas:
    """Height and width, in pixels, of every image that the model receives.

    The default suits the Kaggle name crops: at the median they keep 99 % of their size, at half the cost of a canvas
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
        """Returns the factor that scales an image to fit with its aspect ratio; at most 1, as images never grow."""
        return min(1.0, self.height / height, self.width / width)


def decode(data: bytes) -> np.ndarray:
    """Decodes an image file (any format and depth that OpenCV reads) to grey (H, W) uint8, with 255 for white.

    Transparent pixels become white. Raises UndecodableImageError unless the data is a complete, single image of a
    supported size.
    """
    has_alpha = _check_header(data)
    # Only IMREAD_UNCHANGED keeps the alpha channel, and only the other flags apply the EXIF orientation.
    flags = cv2.IMREAD_UNCHANGED if has_alpha else cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise UndecodableImageError("the image is damaged") from error
    if pixels is None:
        raise UndecodableImageError("the image is damaged")
    return _to_grey(pixels)


def _check_header(data: bytes) -> bool:
    """Returns whether the image has transparency. Raises UndecodableImageError if it should not be decoded."""
    if not data:
        raise UndecodableImageError("the file is empty")
    if size := _jpeg_size(data):
        _check_size(*size)
        _check_end(data, "JPEG")
        return False
    try:
        with Image.open(io.BytesIO(data)) as image:
            (width, height), kind, frames = image.size, image.format, getattr(image, "n_frames", 1)
            has_alpha = "A" in image.getbands() or "transparency" in image.info
    except Image.DecompressionBombError as error:
        raise UndecodableImageError("the image is far too large") from error
    except Exception as error:  # Pillow's plugins raise errors of any kind on damaged headers
        raise UndecodableImageError("the file is not an image") from error
    if frames > 1:
        raise UndecodableImageError(f"the file contains {frames} images, not one")
    _check_size(height, width)
    _check_end(data, kind)
    return has_alpha


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Returns height and width of a JPEG with one image; None for other files, or if its segments are inconclusive.

    It takes a third of Pillow's time and suffices for most files.
    """
    if not data.startswith(b"\xff\xd8"):
        return None
    start = 2
    while start + 9 <= len(data) and data[start] == 0xFF:
        kind = data[start + 1]
        if kind in _SIZE_SEGMENTS:
            return struct.unpack_from(">HH", data, start + 5)
        if kind not in _OTHER_SEGMENTS or data.startswith(b"MPF\0", start + 4):  # it may contain several images
            return None
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    return None


_SIZE_SEGMENTS = frozenset((0xC0, 0xC1, 0xC2))
"""Markers of the frame headers that OpenCV decodes: baseline, extended and progressive."""
_OTHER_SEGMENTS = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))
"""Markers of the segments that may precede a frame header: tables, comments and application data."""


def _check_size(height: int, width: int) -> None:
    if min(height, width) < MIN_SIDE:
        raise UndecodableImageError(f"{width}x{height} pixels are too few for a line")
    if height * width > MAX_PIXELS:
        raise UndecodableImageError(f"{width}x{height} pixels are more than {MAX_PIXELS // 10**6} million")


def _check_end(data: bytes, kind: str | None) -> None:
    # Decoders fill the missing part of a truncated JPEG or PNG with grey. Only the missing end marker reveals it.
    if kind == "JPEG" and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise UndecodableImageError("the JPEG is truncated")
    if kind == "PNG" and b"IEND" not in data[-1024:]:
        raise UndecodableImageError("the PNG is truncated")


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
    """Converts an image in memory to grey (H, W) uint8, with 255 for white, like `decode` for a file.

    An array is (H, W), (H, W, 3) in RGB or (H, W, 4) in RGBA, of uint8 or uint16. Transparent pixels become white.
    Raises TypeError if it is not an image, ValueError if an array has another shape or type or the image is too small.
    """
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        if image.mode not in ("L", "I;16"):
            has_alpha = "A" in image.getbands() or "transparency" in image.info
            image = image.convert("RGBA" if has_alpha else "L" if image.mode == "1" else "RGB")
        image = np.asarray(image)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image must be a numpy array or a Pillow image, not {type(image).__name__}")
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,), (4,)):
        raise ValueError(
            f"an image must be (height, width) with 3, 4 or no channels, of uint8 or uint16, not {image.shape} of "
            f"{image.dtype}; pass several images as a list"
        )
    if min(image.shape[:2]) < MIN_SIDE:
        raise ValueError(f"{image.shape[1]}x{image.shape[0]} pixels are too few for a line: each side needs {MIN_SIDE}")
    channels = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
    return _to_grey(np.ascontiguousarray(image[:, :, channels[image.shape[2]]]) if image.ndim == 3 else image)


def fit(image: np.ndarray, canvas: Canvas) -> np.ndarray:
    """Returns a grey image (h, w) uint8 on the canvas (H, W): shrunk if necessary, left-aligned, vertically centred.

    The rest is filled with the median grey of the image, which is its paper.
    """
    height, width = image.shape
    scale = canvas.scale_for(height, width)
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        height, width = image.shape
    fitted = np.full((canvas.height, canvas.width), _median(image), np.uint8)
    top = (canvas.height - height) // 2
    fitted[top : top + height, :width] = image
    return fitted


def _median(image: np.ndarray) -> int:
    """Returns the median of an image (h, w) uint8, rounded down.

    The search starts from the median of a sample, which is exact or close if most pixels are paper, and takes at most
    255 steps. Each step counts pixels, which is fast on any processor; np.partition and np.median are fast only where
    numpy has vectorized them.
    """
    pixels = image.ravel()
    half, sample = (len(pixels) - 1) // 2, pixels[::SAMPLED_EVERY]
    median = int(np.partition(sample, len(sample) // 2)[len(sample) // 2])
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
