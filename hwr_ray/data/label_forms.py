"""Readers of the forms in which label files come: each turns a file into labels, one for each row."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from hwr_ray.errors import UserError
from hwr_ray.files.csv import read_csv, read_lines
from hwr_ray.files.parquet import ParquetFile
from hwr_ray.files.storage import is_file, is_folder, join, walk_files

if TYPE_CHECKING:
    from hwr_ray.data.labels import LabelFile

IMAGE_COLUMNS = ("file_name", "filename", "file", "image", "image_path", "image_file", "path", "img")
TEXT_COLUMNS = ("text", "label", "identity", "transcription", "transcript", "ground_truth", "gt", "words")
"""Usual names of the columns, whatever their case, the most usual first."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".jp2", ".pgm", ".ppm")
"""Suffixes of image files, in lower case."""
TEXT_SUFFIX = ".gt.txt"
IMAGES_AT_ONCE = 64
REMEDY = "save it as UTF-8, or pass its --encoding"


class Label(NamedTuple):
    """A row of a label file."""

    row: int
    id: str
    text: str | None
    file: bytes | None = None
    """Bytes of the image file, if the label file holds them."""
    reason: str | None = None
    detail: str | None = None


def read_delimited(file: LabelFile) -> Iterator[Label]:
    """Yields the rows of a CSV or TSV file, with or without a header."""
    _check_images(file)

    def is_header(first: list[str]) -> bool:
        if file.header is not None:
            return file.header
        return not any(field.strip().lower().endswith(SUFFIXES) for field in first)

    table = read_csv(
        file.path,
        columns=file.columns or (),
        delimiter=file.delimiter,
        encoding=file.encoding,
        is_header=is_header,
        remedy=REMEDY,
    )
    has_header = table.header != [str(number) for number in range(1, len(table.header) + 1)]
    columns = file.columns or (_usual(file.path, table.header) if has_header else _first_two(file.path, table.header))
    image, text = (table.header.index(column) for column in columns)
    for number, row in enumerate(table.rows, start=1):
        fields = row.fields + [""] * len(table.header)
        if problem := table.problem(row):
            detail = f"line {row.line}: {problem}"
            yield Label(number, fields[image], fields[text], reason="malformed_row", detail=detail)
        else:
            yield Label(number, fields[image], fields[text])


def read_json_lines(file: LabelFile) -> Iterator[Label]:
    """Yields the rows of a file with a JSON object in each line."""
    _check_images(file)
    columns = file.columns
    lines = (
        (number, line) for number, line in read_lines(file.path, encoding=file.encoding, remedy=REMEDY) if line.strip()
    )
    for number, (line_number, line) in enumerate(lines, start=1):
        try:
            fields = json.loads(line)
            problem = None if isinstance(fields, dict) else "not a JSON object"
        except ValueError as error:
            problem = f"not JSON: {error}"
        if problem:
            yield Label(number, "", None, reason="malformed_row", detail=f"line {line_number}: {problem}")
            continue
        columns = columns or _usual(file.path, list(fields))
        values = [fields.get(column) for column in columns]
        if not isinstance(values[0], str) or not isinstance(values[1], str | None):
            what = f"line {line_number}: {columns[0]} and {columns[1]} are not both texts"
            yield Label(number, str(values[0] or ""), None, reason="malformed_row", detail=what)
            continue
        yield Label(number, values[0], values[1])


def read_pairs(file: LabelFile) -> Iterator[Label]:
    """Yields a row for each text file `NAME.gt.txt` of a folder, at any depth, beside the image `NAME.png`.

    The image may have any usual suffix and a second one in front of it, such as `.bin.png` or `.nrm.png`.
    """
    row = 0
    for folder, paths in groupby(walk_files(file.path), key=posixpath.dirname):
        names = [posixpath.basename(path) for path in paths]
        images: dict[str, str] = {}
        for name in names:
            stem, suffix = posixpath.splitext(name)
            if suffix.lower() in SUFFIXES:
                for known in (stem, posixpath.splitext(stem)[0]):
                    images.setdefault(known, name)
        for name in (name for name in names if name.endswith(TEXT_SUFFIX)):
            row += 1
            stem = name.removesuffix(TEXT_SUFFIX)
            image = posixpath.join(folder, images.get(stem, f"{stem}.png"))
            lines = [
                line for _, line in read_lines(join(file.path, folder, name), encoding=file.encoding, remedy=REMEDY)
            ]
            yield Label(row, image, " ".join(lines))


def read_parquet(file: LabelFile) -> Iterator[Label]:
    """Yields the rows of a Parquet file with an image column (bytes, or structs with `bytes` and `path`) and a text
    column."""
    table = ParquetFile.open(file.path, file.columns or ())
    image, text = file.columns or _usual(file.path, table.file.schema_arrow.names)
    name, row = posixpath.basename(file.path), 0
    for batch in table.batches(IMAGES_AT_ONCE, columns=[image, text]):
        images, texts = batch[image].to_pylist(), batch[text].cast(pa.string()).to_pylist()
        for value, label in zip(images, texts, strict=True):
            row += 1
            data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
            if isinstance(data, str):
                raise UserError(f"{file.path}: the column {image!r} holds text, not the bytes of images")
            label_id = posixpath.basename(path) if path else f"{name}#{row - 1}"
            if data is None:
                what = "the row holds no image"
                yield Label(row, label_id, label, file=b"", reason="missing_image", detail=what)
                continue
            yield Label(row, label_id, label, file=data)


FORMS: dict[str, Callable[[LabelFile], Iterator[Label]]] = {
    "delimited": read_delimited,
    "json_lines": read_json_lines,
    "pairs": read_pairs,
    "parquet": read_parquet,
}


def _check_images(file: LabelFile) -> None:
    if not is_file(file.path):
        raise UserError(f"there is no file {file.path}")
    if not is_folder(str(file.images)):
        raise UserError(f"there is no image folder {file.images} for {file.path}: check --images")


def _usual(path: str, names: Sequence[str]) -> tuple[str, str]:
    """Returns the columns with usual names. Raises UserError if there are none."""
    known = {name.lower(): name for name in reversed(names)}
    found = [next((known[name] for name in usual if name in known), None) for usual in (IMAGE_COLUMNS, TEXT_COLUMNS)]
    if None in found:
        what = "image" if found[0] is None else "text"
        raise UserError(
            f"{path}: which column holds the {what}? Pass --columns IMAGE TEXT, two of {', '.join(map(str, names))}"
        )
    return str(found[0]), str(found[1])


def _first_two(path: str, names: Sequence[str]) -> tuple[str, str]:
    if len(names) < 2:
        raise UserError(f"{path} has one column: it needs a file name and a text in each row, check its --delimiter")
    return names[0], names[1]
