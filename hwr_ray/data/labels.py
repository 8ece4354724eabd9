"""Labelled lines in the forms that people have, read as rows of image and text."""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

import pyarrow as pa

from hwr_ray.data.label_forms import FORMS, TEXT_SUFFIX, Label
from hwr_ray.errors import UserError
from hwr_ray.files.paths import relative_to
from hwr_ray.files.storage import is_file, is_folder, join, list_files

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

METADATA = {"metadata.csv": "delimited", "metadata.tsv": "delimited", "metadata.jsonl": "json_lines"}
"""Label files of Hugging Face's imagefolder, with their form."""
SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
LAYOUTS = (
    f"*{TEXT_SUFFIX} beside images, metadata.csv or metadata.jsonl (Hugging Face imagefolder), Parquet files with "
    "images, or written_name_SPLIT_v2.csv (Kaggle)"
)


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


def find_label_files(data: str) -> list[LabelFile]:
    """Returns the label files of a folder. Raises UserError if it has none of the LAYOUTS."""
    if not is_folder(data):
        raise UserError(f"there is no folder {data}")
    files = [
        LabelFile(
            path=join(data, f"written_name_{split}_v2.csv"),
            form="delimited",
            images=join(data, f"{split}_v2", split),
            split=split,
        )
        for split in SPLITS
    ]
    if found := [file for file in files if is_file(file.path)]:
        return found
    if not (found := list(_in_layouts(data, list_files(data)))):
        raise UserError(f"{data} contains no labels: expected {LAYOUTS}; or pass a label file as --labels")
    return found


def label_file(path: str, images: str | None, split: Split | None) -> LabelFile:
    """Returns a label file in the form that its suffix names. Its images are in `images`, by default beside it."""
    suffix = posixpath.splitext(path.removesuffix(".gz"))[1].lower()
    if suffix == ".parquet":
        return LabelFile(path=path, form="parquet", split=split)
    form = "json_lines" if suffix in (".jsonl", ".ndjson", ".json") else "delimited"
    return LabelFile(path=path, form=form, images=images or posixpath.dirname(path) or ".", split=split)


def split_in(name: str) -> Split | None:
    """Returns the split that a file or folder name tells: `train-00000-of-00002.parquet` is train."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def _in_layouts(data: str, names: list[str]) -> Iterator[LabelFile]:
    """Yields the label files of the first layout that the names of a folder's files show."""
    metadata = [name for name in names if posixpath.basename(name) in METADATA]
    for name in metadata:
        folder = posixpath.dirname(name)
        yield LabelFile(
            path=join(data, name),
            form=METADATA[posixpath.basename(name)],
            images=join(data, folder) if folder else data,
            split=split_in(folder),
        )
    if metadata:
        return
    if pairs := [name for name in names if name.endswith(TEXT_SUFFIX)]:
        # Each folder of a split is a label file, or else the whole folder is one.
        tops = {name.split("/")[0] for name in pairs if "/" in name}
        splits = sorted(top for top in tops if split_in(top))
        if splits and (others := sum(name.split("/")[0] not in splits for name in pairs)):
            raise UserError(
                f"{data} has {others} labels outside of its folders {', '.join(splits)}: move them into one of these"
            )
        for top in splits:
            yield LabelFile(path=join(data, top), form="pairs", images=join(data, top), split=split_in(top))
        if not splits:
            yield LabelFile(path=data, form="pairs", images=data)
        return
    for name in names:
        if name.lower().endswith(".parquet"):
            yield LabelFile(path=join(data, name), form="parquet", split=split_in(name))
