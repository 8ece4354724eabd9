"""Reading of label CSVs as rows of file name and text, with errors that name the faulty line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Literal

import pyarrow as pa

from hwr_ray.errors import UserError
from hwr_ray.files import csv as csv_files
from hwr_ray.files.paths import is_safe
from hwr_ray.files.storage import is_file, is_folder, join

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

ROWS = pa.schema(
    {
        "split": pa.string(),
        "row": pa.int64(),  # row number in its CSV; 1 is the first row below the header
        "id": pa.string(),  # file name as in the CSV; unique within its split
        "folder": pa.string(),  # path or URI of the image folder that `id` is relative to
        "path": pa.string(),  # path or URI of the image; null if `id` is an unsafe path
        "text": pa.string(),  # label as in the CSV
        "reason": pa.string(),  # reason to reject the row, or null
        "detail": pa.string(),  # explanation of the reason, or null
    }
)


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """A label CSV and the folder that its file names are relative to."""

    csv: str
    images: str
    split: Split | None
    """Split of all rows; None assigns each row by the hash of its file name, 80 : 10 : 10."""
    columns: tuple[str, str] = ("FILENAME", "IDENTITY")
    """Names of the columns with the file name and the text."""
    encoding: str = "utf-8"


def find_label_files(data: str) -> list[LabelFile]:
    """Returns the label files of a folder in the Kaggle layout. Raises UserError if it has none of the splits."""
    if not is_folder(data):
        raise UserError(f"there is no folder {data}")
    files = [
        LabelFile(csv=join(data, f"written_name_{split}_v2.csv"), images=join(data, f"{split}_v2", split), split=split)
        for split in SPLITS
    ]
    found = [file for file in files if is_file(file.csv)]
    if not found:
        raise UserError(f"{data} contains no label CSV: expected one of {', '.join(f.csv for f in files)}")
    return found


def read_rows(file: LabelFile, *, rows_per_table: int = 4096) -> Iterator[pa.Table]:
    """Yields all rows of a label CSV as tables of the schema ROWS, with the reasons that follow from the CSV alone.

    Raises UserError if the file, its image folder or a column is missing, if the file has no rows, or if it is not
    text in the given encoding.
    """
    if not is_file(file.csv):
        raise UserError(f"there is no file {file.csv}")
    if not is_folder(file.images):
        raise UserError(f"there is no image folder {file.images} for {file.csv}")
    yield from _tables(file, csv_files.rows(file.csv, encoding=file.encoding), rows_per_table)


def _tables(file: LabelFile, rows: Iterator[list[str]], rows_per_table: int) -> Iterator[pa.Table]:
    header = csv_files.header(file.csv, rows, file.columns)
    seen: set[str] = set()
    numbered = enumerate(rows, start=1)
    while chunk := list(islice(numbered, rows_per_table)):
        found = [_row(file, header, number, fields, seen) for number, fields in chunk]
        yield pa.Table.from_pylist(found, schema=ROWS)
    if not seen:
        raise UserError(f"{file.csv} has a header but no rows")


def _row(file: LabelFile, header: Sequence[str], number: int, fields: list[str], seen: set[str]) -> dict[str, object]:
    values = dict(zip(header, fields, strict=False))
    line, text = values.get(file.columns[0], ""), values.get(file.columns[1], "")
    reason = detail = None
    is_path = is_safe(line)
    if len(fields) != len(header):
        reason, detail = "malformed_row", f"{len(fields)} fields, not {len(header)}"
    elif not is_path:
        reason = "unsafe_path"
    elif line in seen:
        reason = "duplicate_id"
    seen.add(line)
    return {
        "split": file.split or _assign_split(line),
        "row": number,
        "id": line,
        "folder": file.images,
        "path": join(file.images, line) if is_path else None,
        "text": text,
        "reason": reason,
        "detail": detail,
    }


def _assign_split(line: str) -> Split:
    """Returns the split of a line from the hash of its id: the same in every run, even if the CSV grows."""
    share = int.from_bytes(blake2b(line.encode(), digest_size=8).digest(), "big") / 2**64
    return "train" if share < 0.8 else "validation" if share < 0.9 else "test"
