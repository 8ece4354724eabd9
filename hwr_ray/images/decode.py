"""Decoding of image files, and of images in memory, to grey line images."""

import io
import re
import struct
import warnings

import cv2
import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from hwr_ray.images.lines import MIN_SIDE

PAPER = 255
"""Grey of paper: what shows through transparent pixels."""
MAX_PIXELS = 40_000_000
"""Maximum number of pixels. A larger image is rejected by its header, before decoding (decompression bombs)."""


class UndecodableImageError(Exception):
    """A file that is not a line image. The message is one sentence with the reason."""


def decode(data: bytes) -> np.ndarray:
    """Decodes an image file to grey (H, W) uint8, with 255 for white, upright and over white where it is transparent.

    The result is what Pillow's `exif_transpose` shows over white paper, up to the rounding of lossy formats. Data after
    the end of the image is ignored. Raises UndecodableImageError unless the data is a complete, single image of a
    supported format and size.
    """
    if not data:
        raise UndecodableImageError("the file is empty")
    if size := plain_size(data):
        _check_size(*size)
        try:
            # IMREAD_GRAYSCALE applies the EXIF orientation of a JPEG.
            flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error as error:
            raise UndecodableImageError("the image is damaged") from error
        if pixels is None or pixels.size != size[0] * size[1]:  # decoded otherwise than its header says
            raise UndecodableImageError("the image is damaged")
        return _to_grey(pixels)
    return _decode_with_pillow(data)


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Returns height and width of an image that OpenCV decodes as Pillow does, in a third of the time: a JPEG, or a PNG
    without transparency and EXIF data. None for others. Raises UndecodableImageError if it is truncated."""
    if data.startswith(b"\xff\xd8"):
        return _jpeg_size(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png_size(data)
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Returns height and width of the first image of a JPEG, such as an MPO file; None if Pillow must look at it."""
    size, start = None, 2
    while start + 4 <= len(data):
        if data[start] != 0xFF:
            return None
        kind, length = data[start + 1], int.from_bytes(data[start + 2 : start + 4], "big")
        if kind in _SIZE_SEGMENTS and start + 9 <= len(data):
            size = struct.unpack_from(">HH", data, start + 5)
        elif kind == 0xD9:
            return size
        elif kind not in _OTHER_SEGMENTS:
            return None
        start += 2 + length
        if kind == 0xDA and data.endswith(b"\xff\xd9"):
            return size
        if kind == 0xDA:  # a scan follows, and then other data or nothing
            found = _MARKER.search(data, start)
            if not found:
                break
            start = found.start()
            if data[start + 1] == 0xD9:
                return size
    # Decoders fill the missing part with grey. Only the missing end marker reveals it.
    raise UndecodableImageError("the JPEG is truncated")


_SIZE_SEGMENTS = frozenset((0xC0, 0xC1, 0xC2))
"""Markers of the frame headers that OpenCV decodes: baseline, extended and progressive."""
_OTHER_SEGMENTS = frozenset((0xC4, 0xDA, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)))
"""Markers of tables, scans, comments and application data."""
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""What ends the data of a scan: a marker other than a restart, not an escaped 0xff."""


def _png_size(data: bytes) -> tuple[int, int] | None:
    size, is_plain, start = None, True, 8
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        if kind == b"IHDR" and length == 13 and start + 25 <= len(data):
            width, height, _, color = struct.unpack_from(">IIBB", data, start + 8)
            size, is_plain = (height, width), color in (0, 2, 3)
        elif kind in (b"tRNS", b"eXIf", b"acTL"):
            is_plain = False
        elif kind == b"IEND":
            return size if is_plain else None
        start += 12 + length
    raise UndecodableImageError("the PNG is truncated")


FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "AVIF")
"""Formats that Pillow decodes here. It knows others that start programs, such as EPS."""


def _decode_with_pillow(data: bytes) -> np.ndarray:
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"):
        raise UndecodableImageError("the image is a HEIC file: convert it to JPEG or PNG")
    if data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little"):
        raise UndecodableImageError("the WebP is truncated")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd but readable files
            image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(image.height, image.width)
            if (frames := _num_pages(image)) > 1:
                raise UndecodableImageError(f"the file contains {frames} images, not one")
            image.load()
            inverted = _tiff_tag(image, PHOTOMETRIC) == WHITE_IS_ZERO and image.mode.startswith("I;16")
            if image.format in ("BMP", "DIB") and image.mode == "RGBA" and not np.asarray(image)[:, :, 3].any():
                image = image.convert("RGB")  # the fourth byte is unused
            if image.mode in ("I", "F") and image.format == "TIFF":
                raise UndecodableImageError("pixels of 32 bits are not supported")
            pixels = grey(image)
    except UndecodableImageError:
        raise
    except Image.DecompressionBombError as error:
        raise UndecodableImageError("the image is far too large") from error
    except Image.UnidentifiedImageError as error:
        raise UndecodableImageError("the file is not an image") from error
    except ValueError as error:
        raise UndecodableImageError(str(error)) from error
    except Exception as error:  # Pillow's plugins raise errors of any kind on damaged data
        raise UndecodableImageError("the image is damaged") from error
    return PAPER - pixels if inverted else pixels


def _num_pages(image: Image.Image) -> int:
    """Returns the number of images in a file, without reduced versions of a page and further images of an MPO file."""
    if image.format == "MPO":
        return 1
    frames = getattr(image, "n_frames", 1)
    if image.format != "TIFF" or frames == 1:
        return frames
    reduced = 0
    for frame in range(1, frames):
        image.seek(frame)
        reduced += (_tiff_tag(image, NEW_SUBFILE_TYPE) or 0) & 1
    image.seek(0)
    return frames - reduced


NEW_SUBFILE_TYPE, PHOTOMETRIC, WHITE_IS_ZERO = 254, 262, 0


def _tiff_tag(image: Image.Image, number: int) -> int | None:
    return image.tag_v2.get(number) if isinstance(image, TiffImageFile) else None


def _check_size(height: int, width: int) -> None:
    if min(height, width) < MIN_SIDE:
        raise UndecodableImageError(f"{width}x{height} pixels are too few for a line")
    if height * width > MAX_PIXELS:
        raise UndecodableImageError(f"{width}x{height} pixels are more than {MAX_PIXELS // 10**6} million")


def _to_grey(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint16:
        # Scanners store 12 bits in 16.
        pixels = (pixels >> (4 if pixels.max() < 1 << 12 else 8)).astype(np.uint8)
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
        if image.mode.startswith("I;16"):
            image = np.asarray(image).astype(np.uint16)  # also of the other byte order
        elif image.mode == "I" and np.asarray(image).min() >= 0 and np.asarray(image).max() < 1 << 16:
            image = np.asarray(image).astype(np.uint16)
        elif image.mode not in ("L", "I", "F"):
            has_alpha = "A" in image.getbands() or "transparency" in image.info
            image = image.convert("RGBA" if has_alpha else "L" if image.mode == "1" else "RGB")
        elif "transparency" in image.info:
            image = image.convert("RGBA")
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
