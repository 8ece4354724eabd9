"""What a batch job reads: image files of a folder, a glob or a manifest, or the images that Parquet files hold."""

import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from operator import itemgetter
from typing import Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hwr_ray.errors import UserError
from hwr_ray.files import csv as csv_files
from hwr_ray.files import storage
from hwr_ray.files.paths import is_safe
from hwr_ray.images.reader import Line, read_files

INPUTS = pa.schema(
    {
        "id": pa.string(),  # key of the row, where --id-column names one
        "path": pa.string(),  # of the image file, as the transcript tells it; null for an image in a Parquet file
        "source": pa.string(),  # the Parquet file that holds the image, from the folder on; null for an image file
        "row": pa.int64(),  # of the image in its source, from 0
    }
)
"""One row for each image to read; `id`, or else `path`, is unique."""
ROWS_PER_TABLE = 8192
IMAGES_AT_ONCE, BUFFER_BYTES = 64, 1 << 20
"""Of a Parquet file with images: what is in memory of its row groups, which may be large."""


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    images: str
    """A folder with images at any depth, a glob ('scans/**/*.png'), an image, a manifest (.csv, .parquet), or Parquet
    files with the images themselves (--image-column): a path or URI. Files with a name like .this are left out."""
    path_column: str = "path"
    """Of a manifest: its column with paths, from --root on."""
    root: str | None = None
    """Of a manifest: the folder or URI that its paths must lie in, by default its own folder."""
    id_column: str | None = None
    """Of a manifest or of Parquet files with images: the unique key of each row. By default the path, or FILE#ROW."""
    image_column: str | None = None
    """Of Parquet files with images: the column with the bytes of one image file in each row."""

    def __post_init__(self) -> None:
        if self.root and not self.is_manifest:
            raise UserError("--root goes with a manifest (a .csv or .parquet file)")
        if self.id_column and not (self.is_manifest or self.image_column):
            raise UserError("--id-column goes with a manifest or with --image-column")

    @property
    def has_keys(self) -> bool:
        """Whether the user names what must be unique."""
        return self.is_manifest or self.id_column is not None

    @property
    def is_manifest(self) -> bool:
        return not self.image_column and self.images.lower().endswith((".csv", ".parquet"))

    @property
    def folder(self) -> str:
        """The folder or file that holds the images, as every process must see it."""
        given = self.absolute()
        found = given.root or given.images
        return storage.split_glob(found)[0] if storage.has_wildcard(found) and not storage.is_folder(found) else found

    def absolute(self) -> "InputSettings":
        """The same for every working folder."""
        images, root = storage.absolute(self.images), None
        if self.is_manifest:
            root = storage.absolute(self.root) if self.root else posixpath.dirname(images)
        return replace(self, images=images, root=root)


class Inputs(Protocol):
    """Images that are listed once, then read part by part."""

    def tables(self) -> Iterator[pa.Table]:
        """All of them as tables of the schema INPUTS, in an order that is always the same."""
        ...

    def fetch(self, table: pa.Table) -> Iterator[bytes | Line]:
        """The bytes of the image files of a table that `tables` gave, or of a slice of it, or why there are none.

        Raises UserError where one can't be read for a reason that is not its own.
        """
        ...

    def holds(self, out: str, names: Sequence[str]) -> bool:
        """Whether one of some files in a folder would be among them."""
        ...


def open_inputs(settings: InputSettings) -> Inputs:
    """The inputs of the settings. Raises UserError where they are not there."""
    given = storage.absolute(settings.images)
    if settings.image_column:
        return ImageTables(given, settings.image_column, settings.id_column)
    if settings.is_manifest:
        if not storage.is_file(given):
            raise UserError(f"there is no manifest {given}")
        return Manifest(given, settings.absolute().root or "", settings.path_column, settings.id_column)
    if storage.is_folder(given):
        return ImageFiles(given)
    if storage.is_file(given):
        return ImageFiles(posixpath.dirname(given), name=posixpath.basename(given))
    if storage.has_wildcard(given):
        folder, pattern = storage.split_glob(given)
        return ImageFiles(folder, pattern=pattern)
    raise UserError(f"there is no image folder {given}")


@dataclass(frozen=True)
class ImageFiles:
    """The files of a folder: all at any depth, those whose path from the folder on matches a pattern, or one."""

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
    """A CSV or Parquet file with the paths of image files in a folder."""

    path: str
    root: str
    path_column: str
    id_column: str | None

    def tables(self) -> Iterator[pa.Table]:
        """Raises UserError where the manifest can't be read or lacks a column, or a row has no path or no key."""
        first = 1
        for rows in self._rows():
            for number, fields in enumerate(rows, start=first):
                if not all(fields):
                    what = self.path_column if not fields[0] else self.id_column
                    raise UserError(f"{self.path}: row {number} has no {what}")
            yield _table(len(rows), path=[r[0] for r in rows], id=[r[-1] for r in rows] if self.id_column else None)
            first += len(rows)

    def fetch(self, table: pa.Table) -> Iterator[bytes | Line]:
        """Paths that leave the root are not read: they fail as `unsafe_path`."""
        inside = [path.removeprefix(storage.join(self.root, "")) for path in table["path"].to_pylist()]
        files = read_files(self.root, [path for path in inside if is_safe(path)])
        unsafe = Line(reason="unsafe_path", detail=f"it does not lie in {self.root}")
        return (next(files) if is_safe(path) else unsafe for path in inside)

    def holds(self, out: str, names: Sequence[str]) -> bool:
        return False

    def _rows(self) -> Iterator[list[tuple[str, ...]]]:
        """Path and, where there is one, key of the rows."""
        columns = [self.path_column, *([self.id_column] if self.id_column else [])]
        if self.path.lower().endswith(".parquet"):
            for batch in _open(self.path, columns).iter_batches(ROWS_PER_TABLE, columns=columns):
                yield list(zip(*(batch[name].cast(pa.string()).to_pylist() for name in columns), strict=True))
            return
        rows = csv_files.rows(self.path)
        header = csv_files.header(self.path, rows, columns)
        places = [header.index(name) for name in columns]
        numbered = enumerate(rows, start=1)
        while chunk := list(islice(numbered, ROWS_PER_TABLE)):
            for number, fields in chunk:
                if len(fields) != len(header):
                    raise UserError(f"{self.path}: row {number} has {len(fields)} fields, not {len(header)}")
            yield [tuple(fields[place] for place in places) for _, fields in chunk]


@dataclass(frozen=True)
class ImageTables:
    """Parquet files, or one, with the bytes of an image file in each row, as such or as `bytes` of a struct."""

    path: str
    image_column: str
    id_column: str | None

    def tables(self) -> Iterator[pa.Table]:
        """Raises UserError where a file can't be read or lacks a column, or a row has no key."""
        for name in self._names():
            row = 0
            for ids in self._keys(name):
                rows = range(row, row + len(ids))
                if None in ids:
                    raise UserError(f"{self._join(name)}: row {rows[ids.index(None)]} has no {self.id_column}")
                yield _table(len(ids), id=ids, source=[name] * len(ids), row=rows)
                row = rows.stop

    def _keys(self, name: str) -> Iterator[list[str | None]]:
        """Of the rows of a file: those of its id column, or else its name and their numbers."""
        file = _open(self._join(name), [self.image_column, *([self.id_column] if self.id_column else [])])
        kind = file.schema_arrow.field(self.image_column).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise UserError(f"{self._join(name)}: {self.image_column} holds {kind}, not bytes")
        if self.id_column:
            for batch in file.iter_batches(ROWS_PER_TABLE, columns=[self.id_column]):
                yield batch[0].cast(pa.string()).to_pylist()
            return
        for start in range(0, file.metadata.num_rows, ROWS_PER_TABLE):
            end = min(start + ROWS_PER_TABLE, file.metadata.num_rows)
            yield [f"{name}#{row}" for row in range(start, end)]

    def fetch(self, table: pa.Table) -> Iterator[bytes | Line]:
        for name, rows in groupby(table.select(["source", "row"]).to_pylist(), key=itemgetter("source")):
            for image in self._images(name, [row["row"] for row in rows]):
                yield image or Line(reason="missing_image", detail="the row holds no image")

    def holds(self, out: str, names: Sequence[str]) -> bool:
        return storage.path_within(out, self.path) is not None

    def _names(self) -> list[str]:
        if storage.is_file(self.path):
            return [posixpath.basename(self.path)]
        if names := [name for name in storage.walk_files(self.path) if name.endswith(".parquet")]:
            return names
        raise UserError(f"there is no Parquet file {self.path}, and no folder with any")

    def _join(self, name: str) -> str:
        return storage.join(posixpath.dirname(self.path) if storage.is_file(self.path) else self.path, name)

    def _images(self, name: str, rows: list[int]) -> Iterator[bytes | None]:
        """The images of some rows of a file, in ascending order; reads the row groups that they are in, and no more."""
        file, start = _open(self._join(name), [self.image_column]), 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            wanted = [row for row in rows if start <= row < end]
            batches = file.iter_batches(IMAGES_AT_ONCE, row_groups=[group], columns=[self.image_column])
            for batch in batches if wanted else ():
                there = [row - start for row in wanted if start <= row < start + len(batch)]
                images = batch[0].take(pa.array(there, pa.int64()))
                yield from (pc.struct_field(images, "bytes") if pa.types.is_struct(images.type) else images).to_pylist()
                start += len(batch)
                if start > wanted[-1]:
                    break
            start = end


def keys_of(table: pa.Table) -> list[str]:
    """What names each row of a table with `id` and `path`: the id, or else the path."""
    return pc.coalesce(table["id"], table["path"]).to_pylist()


def _table(num_rows: int, **columns: Sequence | None) -> pa.Table:
    arrays = [pa.array(columns.get(f.name) or [None] * num_rows, f.type) for f in INPUTS]
    return pa.Table.from_arrays(arrays, schema=INPUTS)


def _open(path: str, columns: Sequence[str]) -> pq.ParquetFile:
    filesystem, inner = storage.locate(path)
    try:
        file = pq.ParquetFile(inner, filesystem=filesystem, buffer_size=BUFFER_BYTES)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} can't be read as Parquet: {error}") from error
    for column in columns:
        if column not in file.schema_arrow.names:
            raise UserError(f"{path} has no column {column}: it has {', '.join(file.schema_arrow.names)}")
    return file
