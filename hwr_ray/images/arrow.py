"""Conversion between line images and a column of an Arrow table."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hwr_ray.images.lines import Canvas


def images_of(table: pa.Table, canvas: Canvas) -> np.ndarray:
    """Returns the `image` column as a read-only array (N, H, W) uint8; rows without an image are white."""
    size = canvas.height * canvas.width
    column = table["image"].cast(pa.binary(size))  # a view if the column has this type, like the steps below
    column = pc.fill_null(column, pa.scalar(b"\xff" * size, column.type))
    chunk = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    pixels = np.frombuffer(chunk.buffers()[1], np.uint8, len(chunk) * size, chunk.offset * size)
    return pixels.reshape(-1, canvas.height, canvas.width)


def column_of(images: Sequence[np.ndarray | None], canvas: Canvas) -> pa.Array:
    """Returns images (H, W) uint8 on the canvas as an `image` column, with null for None."""
    size = canvas.height * canvas.width
    empty = bytes(size)
    pixels = b"".join(empty if image is None else image.data for image in images)  # the only copy
    is_valid = np.array([image is not None for image in images], bool)
    buffers = [pa.py_buffer(np.packbits(is_valid, bitorder="little")), pa.py_buffer(pixels)]
    return pa.Array.from_buffers(pa.binary(size), len(images), buffers)
