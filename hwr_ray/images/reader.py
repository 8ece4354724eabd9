"""Image files to pictures on the canvas: the one way in which prepare, transcribe and the demo read lines."""

import errno
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from pyarrow import fs

from hwr_ray.errors import UserError
from hwr_ray.files.storage import join, locate
from hwr_ray.images.lines import Canvas, UndecodableImageError, decode, fit

READ_THREADS = 32
FILES_AT_ONCE = 128
"""Whose bytes threads hold ahead of those that are decoded."""
NUM_PROBED, QUICK_SECONDS = 8, 0.0005
"""Local files that are read first, and the time of one below which threads would cost more than they save."""
MOST_TOGETHER, MOST_BYTES_TOGETHER = 64, 16 << 20
"""Files, or the pictures in them, that go through a step before the next step begins: a group ends with the one that
reaches either. It saves a fifth of the time of one after another (benchmarks/results/processes.md)."""
MAX_BYTES = 128 << 20
"""Of an image file; a larger one is not read."""
OF_THE_FILE = frozenset((errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP))
"""Errors of one file alone. All others, such as a server that is away, may pass, and must not become a result."""
PAUSES = (0.5, 2.0, 8.0)
"""Seconds before a file that can't be read is tried again."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """What came of one image file: a picture, or the reason why there is none."""

    image: np.ndarray | None = None
    """(H, W) uint8 on the canvas."""
    height: int | None = None
    """Pixels, before fitting."""
    width: int | None = None
    reason: str | None = None
    """`missing_image`, `undecodable_image` or `unsafe_path`, None where there is a picture."""
    detail: str | None = None
    """One sentence about the reason."""


Item = TypeVar("Item", bound=bytes | np.ndarray | Line)


def read_files(folder: str, names: Sequence[str]) -> Iterator[bytes | Line]:
    """The bytes of files of a folder or URI, or why there are none, in their order; few are in memory at once.

    A bad file is no error. Raises UserError where one can't be read, after a while, for a reason that is not its own.
    """
    filesystem, inner = locate(folder)
    paths = [join(inner, name) for name in names]
    if isinstance(filesystem, fs.LocalFileSystem):
        start = time.monotonic()
        yield from [_read(filesystem, path) for path in paths[:NUM_PROBED]]
        paths, seconds = paths[NUM_PROBED:], time.monotonic() - start
        if seconds < NUM_PROBED * QUICK_SECONDS:
            yield from (_read(filesystem, path) for path in paths)
            return
    with ThreadPoolExecutor(READ_THREADS) as pool:
        begun = deque[Future[bytes | Line]]()
        for path in paths:
            begun.append(pool.submit(_read, filesystem, path))
            if len(begun) == FILES_AT_ONCE:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


def lines_of(files: Iterable[bytes | Line], canvas: Canvas) -> Iterator[Line]:
    """Decodes and fits the bytes of image files, in their order; what is a line already stays.

    Takes files in groups, and never raises for a bad one. While a group is made, the one before is still in memory.
    """
    cv2.setNumThreads(1)  # many small pictures: OpenCV's own threads only fight over them
    for group in in_groups(files):
        for pictures in in_groups(map(_picture_of, group)):
            yield from [_line_of(picture, canvas) for picture in pictures]


def in_groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items, in their order, in groups that should go through a step together."""
    group, num_bytes = list[Item](), 0
    for item in items:
        group.append(item)
        num_bytes += 0 if isinstance(item, Line) else memoryview(item).nbytes  # type: ignore[arg-type]
        if len(group) == MOST_TOGETHER or num_bytes >= MOST_BYTES_TOGETHER:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def _picture_of(file: bytes | Line) -> np.ndarray | Line:
    if isinstance(file, Line):
        return file
    try:
        return decode(file)
    except UndecodableImageError as error:
        return Line(reason="undecodable_image", detail=str(error))


def _line_of(picture: np.ndarray | Line, canvas: Canvas) -> Line:
    if isinstance(picture, Line):
        return picture
    height, width = picture.shape
    return Line(image=fit(picture, canvas), height=height, width=width)


def _read(filesystem: fs.FileSystem, path: str) -> bytes | Line:
    for pause in (*PAUSES, None):
        try:
            # Not open_input_stream: it unpacks what is named *.gz.
            with filesystem.open_input_file(path) as file:
                if file.size() > MAX_BYTES:
                    return Line(reason="undecodable_image", detail=f"the file has more than {MAX_BYTES >> 20} MiB")
                return file.read()
        except FileNotFoundError:
            return Line(reason="missing_image", detail="there is no such file")
        except OSError as error:
            is_local = isinstance(filesystem, fs.LocalFileSystem)
            if error.errno in OF_THE_FILE or (is_local and Path(path).is_dir()):  # Arrow gives folders no number
                return Line(reason="undecodable_image", detail=f"the file can't be read: {error}")
            if pause is None:
                raise UserError(f"{path} can't be read: {error}; the same command goes on") from error
            time.sleep(pause)
    raise AssertionError
