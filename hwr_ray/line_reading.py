"""Image files to pictures on the canvas: the one way in which prepare, transcribe and the demo read lines."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

import cv2
import numpy as np
from pyarrow import fs

from hwr_ray.line_images import Canvas, UndecodableImageError, decode, fit
from hwr_ray.storage import join, locate

READ_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Line:
    """What came of one image file: a picture, or the reason why there is none."""

    image: np.ndarray | None = None
    """(H, W) uint8 on the canvas."""
    height: int | None = None
    """Pixels, before fitting."""
    width: int | None = None
    digest: bytes = b""
    """SHA-256 of the file's bytes; empty where it could not be read."""
    reason: str | None = None
    """`missing_image`, `undecodable_image` or `unsafe_path`, None where there is a picture."""
    detail: str | None = None
    """One sentence about the reason."""


def read_lines(folder: str, names: Sequence[str], canvas: Canvas) -> list[Line]:
    """Reads, decodes and fits image files of a folder or URI, in their order. Never raises for a bad file."""
    return lines_of(read_files(folder, names), canvas)


def read_files(folder: str, names: Sequence[str]) -> list[bytes | Line]:
    """The bytes of files of a folder or URI, or why there are none, in their order. Never raises for a bad file."""
    filesystem, inner = locate(folder)
    share = -(-len(names) // READ_THREADS) or 1
    shares = [names[start : start + share] for start in range(0, len(names), share)]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        found = pool.map(lambda some: [_read(filesystem, join(inner, name)) for name in some], shares)
        return [file for files in found for file in files]


def lines_of(files: Sequence[bytes | Line], canvas: Canvas) -> list[Line]:
    """Decodes and fits the bytes of image files, in their order. Never raises for a bad file."""
    cv2.setNumThreads(1)  # many small pictures: OpenCV's own threads only fight over them
    return [line_of(file, canvas) if isinstance(file, bytes) else file for file in files]


def line_of(data: bytes, canvas: Canvas) -> Line:
    """Decodes and fits the bytes of one image file."""
    digest = sha256(data).digest()
    try:
        picture = decode(data)
    except UndecodableImageError as error:
        return Line(digest=digest, reason="undecodable_image", detail=str(error))
    height, width = picture.shape
    return Line(image=fit(picture, canvas), height=height, width=width, digest=digest)


def _read(filesystem: fs.FileSystem, path: str) -> bytes | Line:
    try:
        with filesystem.open_input_stream(path) as stream:
            return stream.read()
    except FileNotFoundError:
        return Line(reason="missing_image", detail="there is no such file")
    except OSError as error:
        return Line(reason="undecodable_image", detail=f"the file can't be read: {error}")
