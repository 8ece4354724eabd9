"""The prepared data set: Parquet shards of line images, and what its dataset.json says of them."""

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
    """Columns of PREPARED/{train,validation,test}/*.parquet."""
    return pa.schema(
        {
            "id": pa.string(),  # file name as the label CSV has it; unique in its split
            "path": pa.string(),  # path or URI of the image file
            "text": pa.string(),  # the label, normalized
            "height": pa.int32(),  # of the image file, in pixels
            "width": pa.int32(),
            "image": pa.binary(canvas.height * canvas.width),  # (H, W) uint8 on the canvas, row by row, 255 white
        }
    )


REJECTED = pa.schema(
    {
        "split": pa.string(),
        "row": pa.int64(),  # number of the row in its CSV, 1 for the first below the header
        "id": pa.string(),
        "path": pa.string(),
        "text": pa.string(),  # the label as the CSV has it
        "reason": pa.string(),  # one of hwr_ray.data.cleaning.REASONS
        "detail": pa.string(),  # more about the reason, or null
    }
)
"""Columns of PREPARED/rejected/*.parquet."""


@dataclass(frozen=True)
class Prepared:
    """A prepared data set that is there and whole. Raises UserError where it is not."""

    path: str
    """Absolute: workers run in folders of their own."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", storage.absolute(self.path))
        if not storage.is_folder(self.path):
            raise UserError(f"there is no folder {self.path}")
        if not storage.is_file(storage.join(self.path, "dataset.json")):
            raise UserError(f"{self.path} is no prepared data set: it has no dataset.json (jobs/prepare.py makes one)")
        object.__setattr__(self, "metadata", storage.read_json(storage.join(self.path, "dataset.json")))

    metadata: dict[str, Any] = None  # type: ignore[assignment]
    """dataset.json."""

    @property
    def canvas(self) -> Canvas:
        return Canvas(*self.metadata["canvas"])

    @property
    def charset(self) -> str:
        return self.metadata["charset"]

    def num_lines(self, split: Split) -> int:
        """Prepared lines of a split. Raises UserError where the set has none."""
        lines = self.metadata["splits"].get(split, {}).get("prepared", 0)
        if not lines:
            raise UserError(f"{self.path} has no {split} lines")
        return lines

    def num_bytes(self, num_lines: int) -> int:
        """Bytes of that many line images."""
        return num_lines * self.canvas.height * self.canvas.width

    def folder(self, split: Split) -> str:
        return storage.absolute(storage.join(self.path, split))

    def read(self, split: Split, *, shuffle_seed: int | None = None) -> ray.data.Dataset:
        """The lines of a split, in blocks of a shard or more; with a seed, shard files come in its random order."""
        filesystem, inner = storage.locate(self.folder(split))
        shuffle = None if shuffle_seed is None else ray.data.FileShuffleConfig(seed=shuffle_seed)
        return ray.data.read_parquet(inner, filesystem=filesystem, num_cpus=0.25, shuffle=shuffle)

    def tables(self, split: Split, columns: list[str], *, rows: int) -> Iterator[pa.Table]:
        """Some columns of all lines of a split, up to `rows` at a time, always in the same order."""
        filesystem, inner = storage.locate(self.folder(split))
        shards = ds.dataset(inner, filesystem=filesystem, format="parquet")
        for batch in shards.to_batches(columns=columns, batch_size=rows):
            if len(batch):
                yield pa.Table.from_batches([batch])

    def table(self, split: Split, columns: list[str] | None = None, *, ids: list[str] | None = None) -> pa.Table:
        """All or some columns of all lines of a split, or of those with the ids, in this process; reads no other."""
        filesystem, inner = storage.locate(self.folder(split))
        shards = ds.dataset(inner, filesystem=filesystem, format="parquet")
        return shards.to_table(
            columns=columns, filter=None if ids is None else pc.field("id").isin(pa.array(ids, pa.string()))
        )

    def images(self, split: Split, ids: list[str]) -> dict[str, np.ndarray]:
        """Line images (H, W) uint8 of some lines of a split, by id."""
        table = self.table(split, ["id", "image"], ids=ids)
        return dict(zip(table["id"].to_pylist(), images_of(table, self.canvas), strict=True))
