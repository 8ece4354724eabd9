"""Finds the label files of a folder, in the layouts in which data sets come."""

import logging
import posixpath
import re
from collections.abc import Iterator

from hwr_ray.data.label_forms import TEXT_SUFFIX
from hwr_ray.data.labels import SPLITS, LabelFile, Split
from hwr_ray.errors import UserError
from hwr_ray.files.storage import is_file, is_folder, join, list_files

log = logging.getLogger(__name__)

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
