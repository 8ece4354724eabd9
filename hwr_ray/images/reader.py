"""The reader of line images that prepare, transcribe and the demo share. It turns files into images on the canvas."""

import errno
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from pyarrow import fs

from hwr_ray.errors import UserError
from hwr_ray.files.storage import join, locate
from hwr_ray.images.decode import UndecodableImageError, decode
from hwr_ray.images.line_warnings import warning_of
from hwr_ray.images.lines import Canvas, fit_with_levels

READ_THREADS = 32
"""Number of threads that read files."""
FILES_AT_ONCE = 128
"""Number of files that threads read ahead of decoding."""
NUM_PROBED, QUICK_SECONDS = 8, 0.0005
"""Number of local files that are read first, and the seconds per file below which threads cost more than they save."""
MOST_TOGETHER, MOST_BYTES_TOGETHER = 64, 16 << 20
"""Maximum number and bytes of a group of files, or of their decoded images; the item that reaches either ends a group.
Each step processes a group before the next step begins, which takes a fifth less time than one file at a time
(benchmarks/results/processes.md)."""
MAX_BYTES = 128 << 20
"""Maximum bytes of an image file; a larger one is not read."""
FILE_ERRORS = frozenset((errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP))
"""Errors that concern one file. All others, such as an unreachable server, may be temporary and must not become a
result."""
PAUSES = (0.5, 2.0, 8.0)
"""Seconds to wait before each retry of a file that can't be read."""


class Line(NamedTuple):
    """The result of reading one image file: an image, or the reason why there is none."""

    image: np.ndarray | None = None
    """Image (H, W) uint8 on the canvas."""
    height: int | None = None
    """Height in pixels before fitting."""
    width: int | None = None
    """Width in pixels before fitting."""
    warning: str | None = None
    """One of hwr_ray.images.line_warnings.WARNINGS, if the image does not look like a line of dark text on light paper;
    never `upside_down`, which only a model can tell."""
    reason: str | None = None
    """`missing_image`, `undecodable_image` or `unsafe_path`; None if there is an image."""
    detail: str | None = None
    """One sentence that explains the reason."""


Item = TypeVar("Item", bound=bytes | np.ndarray | Line)


def read_files(folder: str, names: Sequence[str]) -> Iterator[bytes | Line]:
    """Yields the bytes of files below a folder or URI, or a Line with the reason, in order. Few are in memory at once.

    A bad file raises no error. Raises UserError for an error that may concern other files and persists after retries.
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
        futures = deque[Future[bytes | Line]]()
        for path in paths:
            futures.append(pool.submit(_read, filesystem, path))
            if len(futures) == FILES_AT_ONCE:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()


def lines_of(files: Iterable[bytes | Line], canvas: Canvas, *, invert: bool = False) -> Iterator[Line]:
    """Decodes image files and fits them to the canvas, in order. Yields items that are already a Line unchanged.

    `invert` turns light writing on dark into dark on light. Processes files in groups and never raises for a bad one.
    The previous group is in memory while the next is built.
    """
    cv2.setNumThreads(1)  # OpenCV's own threads only slow down small images
    for group in in_groups(files):
        for images in in_groups(map(_decode_file, group)):
            yield from [image if isinstance(image, Line) else line_of(image, canvas, invert=invert) for image in images]


def in_groups(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Yields the items, in order, in groups that should go through a step together."""
    group, num_bytes = list[Item](), 0
    for item in items:
        group.append(item)
        num_bytes += 0 if isinstance(item, Line) else memoryview(item).nbytes  # type: ignore[arg-type]
        if len(group) == MOST_TOGETHER or num_bytes >= MOST_BYTES_TOGETHER:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def _decode_file(file: bytes | Line) -> np.ndarray | Line:
    if isinstance(file, Line):
        return file
    try:
        return decode(file)
    except UndecodableImageError as error:
        return Line(reason="undecodable_image", detail=str(error))


def line_of(image: np.ndarray, canvas: Canvas, *, invert: bool = False) -> Line:
    """Returns a decoded grey image (h, w) uint8 fitted to the canvas, with its warning."""
    fitted, levels = fit_with_levels(image, canvas)
    warning = warning_of(image, levels)
    if invert and warning == "light_on_dark":
        image = 255 - image
        fitted, levels = fit_with_levels(image, canvas)
        warning = warning_of(image, levels) or "inverted"
    height, width = image.shape
    return Line(image=fitted, height=height, width=width, warning=warning)


def _read(filesystem: fs.FileSystem, path: str) -> bytes | Line:
    for pause in (*PAUSES, None):
        try:
            # open_input_stream would decompress files named *.gz.
            with filesystem.open_input_file(path) as file:
                if file.size() > MAX_BYTES:
                    return Line(reason="undecodable_image", detail=f"the file is larger than {MAX_BYTES >> 20} MiB")
                return file.read()
        except FileNotFoundError:
            return Line(reason="missing_image", detail="there is no such file")
        except OSError as error:
            is_local = isinstance(filesystem, fs.LocalFileSystem)
            if error.errno in FILE_ERRORS or (is_local and Path(path).is_dir()):  # Arrow sets no errno for folders
                return Line(reason="undecodable_image", detail=f"the file can't be read: {error}")
            if pause is None:
                raise UserError(f"{path} can't be read: {error}; run the same command again") from error
            time.sleep(pause)
    raise AssertionError
