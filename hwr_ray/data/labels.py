"""Labelled lines in the forms that people have, read as rows of image and text."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

import pyarrow as pa

from hwr_ray.data.label_forms import FORMS, Label
from hwr_ray.errors import UserError
from hwr_ray.files.paths import relative_to
from hwr_ray.files.storage import join

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

ROWS = pa.schema(
    {
        "split": pa.string(),
        "row": pa.int64(),  # number of the row in its label file; 1 is the first row
        "id": pa.string(),  # file name as in the label file; unique within its split
        "folder": pa.string(),  # path or URI of the image folder that `id` is relative to; null if `file` is given
        "path": pa.string(),  # path or URI of the image; null if `id` is an unsafe path, or if `file` is given
        "file": pa.binary(),  # bytes of the image file, if the label file holds them
        "text": pa.string(),  # label as in the label file
        "reason": pa.string(),  # reason to reject the row, or null
        "detail": pa.string(),  # explanation of the reason, or null
    }
)
BYTES_PER_TABLE = 64 << 20
"""Maximum number of bytes of the image files in a table of rows."""


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """A file or folder with labels, and how to read it."""

    path: str
    """Path or URI of a file, or of a folder with a text file for each image (form `pairs`)."""
    form: str
    """One of hwr_ray.data.label_forms.FORMS."""
    images: str | None = None
    """Folder that the file names are relative to; None if the file holds the images."""
    split: Split | None = None
    """Split of all rows; None assigns each row by the hash of its id, 80 : 10 : 10."""
    validation_share: float = 0.0
    """Share of the rows, by the hash of their ids, to assign to validation rather than to `split`."""
    columns: tuple[str, str] | None = None
    """Names of the columns with the image and the text; None recognizes the usual names."""
    delimiter: str | None = None
    header: bool | None = None
    encoding: str | None = None


def read_rows(file: LabelFile, *, rows_per_table: int = 4096) -> Iterator[pa.Table]:
    """Yields all rows of a label file as tables of the schema ROWS, with the reasons that follow from the file alone.

    Raises UserError if the file, its image folder or a column is missing, if the file has no rows, or if it can't be
    read in its form.
    """
    rows, num_bytes, is_empty = list[dict[str, Any]](), 0, True
    seen: set[str] = set()
    for label in FORMS[file.form](file):
        rows.append(_row(file, label, seen))
        num_bytes += len(label.file or b"")
        if len(rows) == rows_per_table or num_bytes >= BYTES_PER_TABLE:
            yield pa.Table.from_pylist(rows, schema=ROWS)
            rows, num_bytes, is_empty = [], 0, False
    if rows:
        yield pa.Table.from_pylist(rows, schema=ROWS)
    elif is_empty:
        raise UserError(f"{file.path} holds no label: check --data or --labels")


def _row(file: LabelFile, label: Label, seen: set[str]) -> dict[str, Any]:
    path = relative_to(label.id, str(file.images)) if label.file is None else None
    reason, detail = label.reason, label.detail
    if reason is None and label.file is None and path is None:
        reason, detail = "unsafe_path", f"{label.id!r} does not lie in {file.images}"
    elif reason is None and label.id in seen:
        reason = "duplicate_id"
    if reason != "malformed_row":
        seen.add(label.id)
    return {
        "split": split_of(label.id, file.split, file.validation_share),
        "row": label.row,
        "id": label.id,
        "folder": None if label.file is not None else file.images,
        "path": join(str(file.images), path) if path else None,
        "file": label.file,
        "text": label.text,
        "reason": reason,
        "detail": detail,
    }


def split_of(line_id: str, split: Split | None, validation_share: float) -> Split:
    """Returns the split of a line. It depends only on the line's id, so no line changes sides if the data grows."""
    share = int.from_bytes(blake2b(line_id.encode(), digest_size=8).digest(), "big") / 2**64
    if split is None:
        return "train" if share < 0.8 else "validation" if share < 0.9 else "test"
    return "validation" if share < validation_share else split
