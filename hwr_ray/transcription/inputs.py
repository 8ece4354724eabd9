"""Inputs of a batch job: image files from a folder, a glob or a manifest, or images stored in Parquet files."""

import posixpath
import re
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, groupby, islice
from operator import itemgetter
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.files.csv import read_csv
from hwr_ray.files.parquet import ParquetFile
from hwr_ray.files.paths import is_safe
from hwr_ray.images.reader import Line, read_files

INPUTS = pa.schema(
    {
        "id": pa.string(),  # unique key from --id-column, or FILE#ROW for an image in a Parquet file; else null
        "path": pa.string(),  # path of the image file, as in the transcript; null for an image in a Parquet file
        "source": pa.string(),  # Parquet file that contains the image, relative to the folder; null for an image file
        "row": pa.int64(),  # row of the image in `source`, from 0; null for an image file
    }
)
"""One row per image; `id`, or `path` if there is no `id`, is unique."""
NO_IMAGE = Line(reason="missing_image", detail="the row holds no image")
ROWS_PER_TABLE = 8192
IMAGES_AT_ONCE = 64
"""Images of a Parquet file that are held in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    images: str
    """Path or URI of a folder with images at any depth, a glob ('scans/**/*.png'), an image, a manifest of paths (.csv
    or .parquet), or Parquet files with images (--image-column). Hidden files (.name) are skipped."""
    path_column: str = "path"
    """Column of a manifest that contains the image paths, relative to --root."""
    root: str | None = None
    """Folder or URI that a manifest's paths are relative to and must not leave; by default the manifest's folder."""
    id_column: str | None = None
    """Column with a unique key per row, in a manifest or in Parquet files with images. By default the key is the path,
    or FILE#ROW for an image in a Parquet file."""
    image_column: str | None = None
    """Column of Parquet files whose cells each contain the bytes of one image file."""
    invert: Literal["auto"] | None = None
    """`auto` inverts images with light writing on a dark background; by default they get a warning only."""

    def __post_init__(self) -> None:
        if self.root and not self.is_manifest:
            raise UserError("--root requires a manifest (a .csv or .parquet file)")
        if self.id_column and not (self.is_manifest or self.image_column):
            raise UserError("--id-column requires a manifest or --image-column")

    @property
    def has_keys(self) -> bool:
        """Whether the user supplies the keys, which may therefore repeat."""
        return self.is_manifest or self.id_column is not None

    @property
    def is_manifest(self) -> bool:
        return not self.image_column and self.images.lower().endswith((".csv", ".parquet"))

    @property
    def folder(self) -> str:
        """The folder or file that contains the images, which every process must be able to read."""
        absolute = self.absolute()
        path = absolute.root or absolute.images
        return storage.split_glob(path)[0] if storage.has_wildcard(path) and not storage.is_folder(path) else path

    def absolute(self) -> "InputSettings":
        """Returns these settings with paths that do not depend on the working directory."""
        images, root = storage.absolute(self.images), None
        if self.is_manifest:
            root = storage.absolute(self.root) if self.root else posixpath.dirname(images)
        return replace(self, images=images, root=root)


class Inputs(Protocol):
    """Images that are listed once, then fetched partition by partition."""

    def tables(self) -> Iterator[pa.Table]:
        """Yields tables of the schema INPUTS that list all images, always in the same order."""
        ...

    def fetch(self, table: pa.Table) -> Iterator[bytes | Line]:
        """Yields the bytes of each image of a table from `tables` (or of a slice of one), or a Line with the error.

        Raises UserError if the storage fails; a single unreadable file is no error.
        """
        ...

    def holds(self, out: str, names: Sequence[str]) -> bool:
        """Returns whether any of the files `names` in the folder `out` would be listed as an input."""
        ...


def open_inputs(settings: InputSettings) -> Inputs:
    """Returns the inputs of the settings. Raises UserError if they do not exist."""
    path = storage.absolute(settings.images)
    if settings.image_column:
        return ImageTables(path, settings.image_column, settings.id_column)
    if settings.is_manifest:
        if not storage.is_file(path):
            raise UserError(f"there is no manifest {path}: check --images")
        return Manifest(path, settings.absolute().root or "", settings.path_column, settings.id_column)
    if storage.is_folder(path):
        return ImageFiles(path)
    if storage.is_file(path):
        return ImageFiles(posixpath.dirname(path), name=posixpath.basename(path))
    if storage.has_wildcard(path):
        folder, pattern = storage.split_glob(path)
        return ImageFiles(folder, pattern=pattern)
    raise UserError(f"there is no image folder {path}: check --images")


@dataclass(frozen=True)
class ImageFiles:
    """Image files of a folder: all at any depth, those whose relative path matches `pattern`, or only `name`."""

    folder: str
    pattern: re.Pattern[str] | None = None
    name: str | None = None

    def holds(self, out: str, names: Sequence[str]) -> bool:
        inside = None if self.name else storage.path_within(out, self.folder)
        if inside is None or self.pattern is None:
            return inside is not None
        return any(self.pattern.match(posixpath.normpath(f"{inside}/{name}")) for name in names)

    def tables(self) -> Iterator[pa.Table]:
        files = iter([self.name]) if self.name else storage.walk_files(self.folder)
        seen = (path for path in files if not posixpath.basename(path).startswith("."))
        chosen = (path for path in seen if self.pattern is None or self.pattern.match(path))
        while paths := list(islice(chosen, ROWS_PER_TABLE)):
            yield _table(len(paths), path=paths)

    def fetch(self, table: pa.Table) -> Iterator[bytes | Line]:
        return read_files(self.folder, table["path"].to_pylist())


@dataclass(frozen=True)
class Manifest:
    """A CSV or Parquet file that lists paths of image files."""

    path: str
    root: str
    path_column: str
    id_column: str | None

    def tables(self) -> Iterator[pa.Table]:
        """Raises UserError if the manifest can't be read, a column is missing, or a row has no path or no key."""
        first = 1
        for rows in self._rows():
            for number, fields in enumerate(rows, start=first):
                if not all(fields):
                    what = self.path_column if not fields[0] else self.id_column
                    raise UserError(f"{self.path}: row {number} has no {what}")
            yield _table(len(rows), path=[r[0] for r in rows], id=[r[-1] for r in rows] if self.id_column else None)
            first += len(rows)

    def fetch(self, table: pa.Table) -> Iterator[bytes | Line]:
        """Rejects paths outside the root as `unsafe_path`, without reading them."""
        inside = [path.removeprefix(storage.join(self.root, "")) for path in table["path"].to_pylist()]
        files = read_files(self.root, [path for path in inside if is_safe(path)])
        unsafe = Line(reason="unsafe_path", detail=f"the path is outside {self.root}")
        return (next(files) if is_safe(path) else unsafe for path in inside)

    def holds(self, out: str, names: Sequence[str]) -> bool:
        return False

    def _rows(self) -> Iterator[list[tuple[str, ...]]]:
        """Yields the path and, with an id column, the key of each row, in chunks."""
        columns = [self.path_column, *([self.id_column] if self.id_column else [])]
        if self.path.lower().endswith(".parquet"):
            for batch in ParquetFile.open(self.path, columns).batches(ROWS_PER_TABLE, columns=columns):
                yield list(zip(*(batch[name].cast(pa.string()).to_pylist() for name in columns), strict=True))
            return
        rows = read_csv(self.path, columns=columns).columns(*columns)
        while chunk := list(islice(rows, ROWS_PER_TABLE)):
            yield chunk


@dataclass(frozen=True)
class ImageTables:
    """One or more Parquet files with an image file in each row: its bytes, or a struct with a field `bytes`."""

    path: str
    image_column: str
    id_column: str | None

    def tables(self) -> Iterator[pa.Table]:
        """Raises UserError if a file can't be read, a column is missing, or a row has no key."""
        for name in self._names():
            row = 0
            for ids in self._keys(name):
                rows = range(row, row + len(ids))
                if None in ids:
                    raise UserError(f"{self._join(name)}: row {rows[ids.index(None)]} has no {self.id_column}")
                yield _table(len(ids), id=ids, source=[name] * len(ids), row=rows)
                row = rows.stop

    def _keys(self, name: str) -> Iterator[list[str | None]]:
        """Yields the keys of a file's rows, in chunks: the values of the id column, or FILE#ROW without one."""
        columns = [self.image_column, *([self.id_column] if self.id_column else [])]
        table = ParquetFile.open(self._join(name), columns)
        kind = table.file.schema_arrow.field(self.image_column).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise UserError(f"{self._join(name)}: {self.image_column} holds {kind}, not bytes")
        if self.id_column:
            for batch in table.batches(ROWS_PER_TABLE, columns=[self.id_column]):
                yield batch[0].cast(pa.string()).to_pylist()
            return
        for start in range(0, table.file.metadata.num_rows, ROWS_PER_TABLE):
            end = min(start + ROWS_PER_TABLE, table.file.metadata.num_rows)
            yield [f"{name}#{row}" for row in range(start, end)]

    def fetch(self, table: pa.Table) -> Iterator[bytes | Line]:
        for name, rows in groupby(table.select(["source", "row"]).to_pylist(), key=itemgetter("source")):
            for image in self._images(name, [row["row"] for row in rows]):
                yield image or NO_IMAGE

    def holds(self, out: str, names: Sequence[str]) -> bool:
        return storage.path_within(out, self.path) is not None

    def pass_of(self, table: pa.Table) -> str:
        """Returns the row group of the first row. Tables that share it should be fetched together, in order, because
        Parquet decodes a row group from its start."""
        (first,) = table.slice(0, 1).to_pylist()
        ends = _row_group_ends(self._join(first["source"]))
        return f"{first['source']}#{bisect(ends, first['row'])}"

    def _names(self) -> list[str]:
        if storage.is_file(self.path):
            return [posixpath.basename(self.path)]
        names = [name for name in storage.walk_files(self.path) if name.lower().endswith(".parquet")]
        if names := [name for name in names if not posixpath.basename(name).startswith(".")]:
            return names
        raise UserError(f"there is no Parquet file {self.path}, nor a folder that contains any: check --images")

    def _join(self, name: str) -> str:
        return storage.join(posixpath.dirname(self.path) if storage.is_file(self.path) else self.path, name)

    def _images(self, name: str, rows: list[int]) -> Iterator[bytes | None]:
        """Yields the images of some rows (ascending) of a file, in one pass over the row groups that contain them."""
        table = ParquetFile.open(self._join(name), [self.image_column])
        wanted, start = np.array(rows), 0
        for group in range(table.file.num_row_groups):
            end = start + table.file.metadata.row_group(group).num_rows
            first, last = np.searchsorted(wanted, [start, end])
            if first < last:
                for batch in table.batches(IMAGES_AT_ONCE, row_groups=[group], columns=[self.image_column]):
                    stop = np.searchsorted(wanted, start + len(batch))
                    images = batch[0].take(pa.array(wanted[first:stop] - start))
                    is_struct = pa.types.is_struct(images.type)
                    yield from (pc.struct_field(images, "bytes") if is_struct else images).to_pylist()
                    first, start = stop, start + len(batch)
                    if first == last:
                        break
            start = end


@lru_cache
def _row_group_ends(path: str) -> list[int]:
    """Returns the number of rows up to the end of each row group of a Parquet file."""
    metadata = ParquetFile.open(path).file.metadata
    return list(accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)))


def keys_of(table: pa.Table) -> list[str]:
    """Returns the key of each row of a table with `id` and `path`: the id, or the path if the id is null."""
    return pc.coalesce(table["id"], table["path"]).to_pylist()


def _table(num_rows: int, **columns: Sequence | None) -> pa.Table:
    arrays = [pa.array(columns.get(f.name) or [None] * num_rows, f.type) for f in INPUTS]
    return pa.Table.from_arrays(arrays, schema=INPUTS)
