"""The prepared data set: Parquet shards of line images and their metadata in dataset.json."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import ray.data

from hwr_ray.data.labels import Split
from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.images.arrow import images_of
from hwr_ray.images.lines import Canvas


def schema(canvas: Canvas) -> pa.Schema:
    """Returns the columns of PREPARED/{train,validation,test}/*.parquet."""
    return pa.schema(
        {
            "id": pa.string(),  # file name as in the label CSV; unique within its split
            "path": pa.string(),  # path or URI of the image file
            "text": pa.string(),  # normalized label
            "height": pa.int32(),  # height of the image file in pixels
            "width": pa.int32(),  # width of the image file in pixels
            "image": pa.binary(canvas.height * canvas.width),  # (H, W) uint8 on the canvas, row-major; 255 is white
        }
    )


REJECTED = pa.schema(
    {
        "split": pa.string(),
        "row": pa.int64(),  # row number in its CSV; 1 is the first row below the header
        "id": pa.string(),
        "path": pa.string(),
        "text": pa.string(),  # label as in the CSV
        "reason": pa.string(),  # one of hwr_ray.data.cleaning.REASONS
        "detail": pa.string(),  # explanation of the reason, or null
    }
)
"""Columns of PREPARED/rejected/*.parquet."""


@dataclass(frozen=True)
class Prepared:
    """A complete prepared data set. Raises UserError if `path` does not contain one."""

    path: str
    """Absolute path or URI, because workers run in their own working directories."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", storage.absolute(self.path))
        if not storage.is_folder(self.path):
            raise UserError(f"there is no folder {self.path}")
        if not storage.is_file(storage.join(self.path, "dataset.json")):
            raise UserError(f"{self.path} is not a prepared data set (no dataset.json): write one with jobs/prepare.py")
        object.__setattr__(self, "metadata", storage.read_json(storage.join(self.path, "dataset.json")))

    metadata: dict[str, Any] = None  # type: ignore[assignment]
    """Content of dataset.json."""

    @property
    def canvas(self) -> Canvas:
        return Canvas(*self.metadata["canvas"])

    @property
    def charset(self) -> str:
        return self.metadata["charset"]

    def num_lines(self, split: Split) -> int:
        """Returns the number of prepared lines of a split. Raises UserError if it has none."""
        lines = self.metadata["splits"].get(split, {}).get("prepared", 0)
        if not lines:
            remedy = "prepare the lines again without --split" if split == "validation" else "prepare some"
            raise UserError(f"{self.path} has no {split} lines: {remedy}")
        return lines

    def num_bytes(self, num_lines: int) -> int:
        """Returns the size of `num_lines` line images in bytes."""
        return num_lines * self.canvas.height * self.canvas.width

    def folder(self, split: Split) -> str:
        return storage.absolute(storage.join(self.path, split))

    def read(self, split: Split, *, shuffle_seed: int | None = None) -> ray.data.Dataset:
        """Returns the lines of a split in blocks of at least one shard; a seed shuffles the order of the shards."""
        filesystem, inner = storage.locate(self.folder(split))
        shuffle = None if shuffle_seed is None else ray.data.FileShuffleConfig(seed=shuffle_seed)
        return ray.data.read_parquet(inner, filesystem=filesystem, num_cpus=0.25, shuffle=shuffle)

    def tables(self, split: Split, columns: list[str], *, rows: int) -> Iterator[pa.Table]:
        """Yields columns of all lines of a split in tables of at most `rows` rows, in a fixed order."""
        filesystem, inner = storage.locate(self.folder(split))
        shards = ds.dataset(inner, filesystem=filesystem, format="parquet")
        for batch in shards.to_batches(columns=columns, batch_size=rows):
            if len(batch):
                yield pa.Table.from_batches([batch])

    def table(self, split: Split, columns: list[str] | None = None, *, ids: list[str] | None = None) -> pa.Table:
        """Returns all lines of a split, or those with the ids, in this process. Reads only `columns` if given."""
        filesystem, inner = storage.locate(self.folder(split))
        shards = ds.dataset(inner, filesystem=filesystem, format="parquet")
        return shards.to_table(
            columns=columns, filter=None if ids is None else pc.field("id").isin(pa.array(ids, pa.string()))
        )

    def images(self, split: Split, ids: list[str]) -> dict[str, np.ndarray]:
        """Returns the line images (H, W) uint8 with the given ids, by id."""
        table = self.table(split, ["id", "image"], ids=ids)
        return dict(zip(table["id"].to_pylist(), images_of(table, self.canvas), strict=True))
