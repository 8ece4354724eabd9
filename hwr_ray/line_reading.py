"""Image files to pictures on the canvas: the one way in which prepare, transcribe and the demo read lines."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from pyarrow import fs

from hwr_ray.line_images import Canvas, UndecodableImageError, decode, fit
from hwr_ray.storage import locate

READ_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class Line:
    """What came of one image file: a picture, or the reason why there is none."""

    image: np.ndarray | None = None
    """(H, W) uint8 on the canvas."""
    height: int | None = None
    """Pixels, before fitting."""
    width: int | None = None
    data: bytes = b""
    """The file's bytes."""
    reason: str | None = None
    """`missing_image` or `undecodable_image`, None where there is a picture."""
    detail: str | None = None
    """One sentence about the reason."""


def read_lines(paths: Sequence[str], canvas: Canvas) -> list[Line]:
    """Reads, decodes and fits image files, given by path or URI, in their order. Never raises for a bad file."""
    if not paths:
        return []
    cv2.setNumThreads(1)  # many small pictures: OpenCV's own threads only fight over them
    filesystem, _ = locate(paths[0])
    with ThreadPoolExecutor(READ_THREADS) as pool:
        return list(pool.map(lambda path: _read_line(filesystem, locate(path)[1], canvas), paths))


def line_of(data: bytes, canvas: Canvas) -> Line:
    """Decodes and fits the bytes of one image file."""
    try:
        picture = decode(data)
    except UndecodableImageError as error:
        return Line(data=data, reason="undecodable_image", detail=str(error))
    height, width = picture.shape
    return Line(image=fit(picture, canvas), height=height, width=width, data=data)


def _read_line(filesystem: fs.FileSystem, path: str, canvas: Canvas) -> Line:
    try:
        with filesystem.open_input_stream(path) as stream:
            data = stream.read()
    except FileNotFoundError:
        return Line(reason="missing_image", detail="there is no such file")
    except OSError as error:
        return Line(reason="undecodable_image", detail=f"the file can't be read: {error}")
    return line_of(data, canvas)
