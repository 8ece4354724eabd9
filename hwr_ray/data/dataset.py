"""Prepared data sets: Parquet shards of line images and their metadata in dataset.json."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
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
            "warning": pa.string(),  # one of hwr_ray.images.line_warnings.WARNINGS, or null
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

    @property
    def num_lines(self) -> dict[Split, int]:
        """Numbers of prepared lines of the splits that have any."""
        splits = self.metadata["splits"].items()
        return {split: figures["prepared"] for split, figures in splits if figures["prepared"]}

    def require_lines(self, split: Split) -> int:
        """Returns the number of prepared lines of a split. Raises UserError if it has none."""
        if split not in self.num_lines:
            others = ", ".join(f"{number} {name} lines" for name, number in self.num_lines.items()) or "none at all"
            raise UserError(f"there are no {split} lines in {self.path}, but {others}: pass --split or prepare some")
        return self.num_lines[split]

    def folder(self, split: Split) -> str:
        return storage.absolute(storage.join(self.path, split))

    def read(self, split: Split) -> ray.data.Dataset:
        """Returns the lines of a split in blocks of at least one shard."""
        filesystem, inner = storage.locate(self.folder(split))
        return ray.data.read_parquet(inner, filesystem=filesystem, num_cpus=0.25)

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


@dataclass(frozen=True)
class PreparedSets:
    """One or more prepared data sets to train on together. An id is unique within its set and split only.

    Raises UserError if there is no set or two have the same lines, if the sets differ in canvas or storage, or if a set
    has neither training nor validation lines.
    """

    paths: tuple[str, ...]
    """Absolute paths or URIs, because workers run in their own working directories."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "paths", tuple(map(storage.absolute, self.paths)))
        if not self.paths:
            raise UserError("--data names no data set: pass at least one")
        first, *others = self.sets
        for other in others:
            if other.canvas != first.canvas:
                raise UserError(
                    f"{first.path} has the canvas {first.canvas}, but {other.path} has {other.canvas}: prepare one of "
                    "them again with the --canvas and --stretch of the other"
                )
            if storage.locate(other.path)[0] != storage.locate(first.path)[0]:
                raise UserError(f"{first.path} and {other.path} are on different storage: copy one to the other's")
        same: dict[str, str] = {}
        for one in self.sets:
            if (content := one.metadata["content_hash"]) in same:
                raise UserError(f"--data names the same lines twice, in {same[content]} and {one.path}: omit one")
            same[content] = one.path
            if not one.num_lines.keys() & {"train", "validation"}:
                raise UserError(f"{one.path} has neither training nor validation lines: omit it")

    @cached_property
    def sets(self) -> tuple[Prepared, ...]:
        return tuple(map(Prepared, self.paths))

    @property
    def names(self) -> list[str]:
        """Names of the sets: of their folders, or their paths if folders of two sets have the same name."""
        folders = [PurePosixPath(path).name for path in self.paths]
        return folders if len(set(folders)) == len(folders) else list(self.paths)

    @property
    def canvas(self) -> Canvas:
        return self.sets[0].canvas

    @property
    def charset(self) -> str:
        """All characters of the sets: those of the first set, then those that a later set adds."""
        return "".join(dict.fromkeys("".join(one.charset for one in self.sets)))

    @property
    def content_hash(self) -> str:
        """Hash of the rows of all sets: the sum of theirs, which are sums over rows themselves."""
        total = sum(int(one.metadata["content_hash"], 16) for one in self.sets)
        return f"{total % 2**256:064x}"

    @property
    def num_lines(self) -> dict[Split, int]:
        """Numbers of prepared lines of the splits that have any."""
        return dict(sum((Counter(one.num_lines) for one in self.sets), Counter[Split]()))

    @property
    def warning_shares(self) -> dict[str, float]:
        """Share of the training lines with each warning, 0 to 1, of the sets that count them, as those of version 0.1
        do not."""
        counts, num_lines = Counter[str](), 0
        for figures in (one.metadata["splits"]["train"] for one in self.with_lines("train")):
            counts.update(figures.get("warnings", {}))
            num_lines += figures["prepared"] if "warnings" in figures else 0
        return {warning: number / num_lines for warning, number in counts.items()}

    @property
    def invert(self) -> bool:
        """Whether light writing on dark was inverted in a set."""
        return any(one.metadata["settings"].get("invert") for one in self.sets)

    @property
    def bytes_per_line(self) -> int:
        return self.canvas.height * self.canvas.width

    def require_lines(self, split: Split) -> int:
        """Returns the number of prepared lines of a split in all sets. Raises UserError if there is none."""
        if split not in self.num_lines:
            remedy = "prepare the lines again without --split" if split == "validation" else "prepare some"
            raise UserError(f"there are no {split} lines in {' and '.join(self.paths)}: {remedy}")
        return self.num_lines[split]

    def with_lines(self, split: Split) -> list[Prepared]:
        """Returns the sets that have lines of a split."""
        return [one for one in self.sets if split in one.num_lines]

    def read_shuffled(self, split: Split, *, seed: int) -> ray.data.Dataset:
        """Returns `id`, `text` and `image` of the lines of a split, in blocks of at least one shard, with the shards of
        all sets in random order."""
        places = [storage.locate(one.folder(split)) for one in self.with_lines(split)]
        return ray.data.read_parquet(
            [inner for _, inner in places],
            filesystem=places[0][0],
            columns=["id", "text", "image"],
            num_cpus=0.25,
            shuffle=ray.data.FileShuffleConfig(seed=seed),
        )

    def tables(self, split: Split, columns: list[str], *, rows: int) -> Iterator[pa.Table]:
        """Yields columns of all lines of a split in tables of at most `rows` rows, one set after the other."""
        for one in self.with_lines(split):
            yield from one.tables(split, columns, rows=rows)

    def table(self, split: Split, columns: list[str], *, ids: list[str] | None = None) -> pa.Table:
        """Returns columns of all lines of a split, or of those with the ids, in this process."""
        return pa.concat_tables([one.table(split, columns, ids=ids) for one in self.with_lines(split)])
