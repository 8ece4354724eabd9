"""The `prepare` job: reads, cleans, decodes, fits and writes labelled line images in one pass of Ray Data."""

import logging
import shlex
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import pyarrow.compute as pc
import pyarrow.dataset as ds

from hwr_ray.cluster.connection import check_shared, connect
from hwr_ray.cluster.resources import ClusterSettings, Needs, preflight
from hwr_ray.data.canvas_choice import choose_canvas, poor_canvas
from hwr_ray.data.cleaning import REASONS, CleaningSettings
from hwr_ray.data.labels import LabelFile, Split, find_label_files, label_file, read_rows
from hwr_ray.data.report import write_preparation_report
from hwr_ray.data.shards import LABEL_CPUS, SHARD_CPUS, check_whole, write_shards
from hwr_ray.data.statistics import DatasetStatistics
from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.files.staging import staged
from hwr_ray.images.line_warnings import warning_messages
from hwr_ray.images.lines import Canvas
from hwr_ray.model.architecture import num_frames
from hwr_ray.versions import versions

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    out: str
    """Folder or URI of the prepared data set."""
    data: str | None = None
    """Folder with labels and images: NAME.gt.txt beside NAME.png, metadata.csv or metadata.jsonl (Hugging Face
    imagefolder), Parquet files with images, or the layout of Kaggle's landlord/handwriting-recognition."""
    labels: str | None = None
    """Label file to read instead of --data: CSV, TSV, JSON Lines or Parquet, by its suffix."""
    images: str | None = None
    """Folder of the images that --labels refers to; by default the folder of the label file."""
    split: Split | None = None
    """Split to put all rows of --labels into; by default a hash of the file name assigns each row (80 : 10 : 10)."""
    validation_share: float = 0.1
    """Share of training rows to use for validation, by a hash of the file name, if there are no validation rows."""
    columns: tuple[str, str] | None = None
    """Names of the columns with the image and the label, or their numbers in a file without a header. By default common
    names such as file_name and text are recognized."""
    delimiter: str | None = None
    """Character that separates the columns of a CSV, or `tab`; detected by default."""
    no_header: bool = False
    """Treat the first row of a CSV as data, not column names; the default if it contains an image's file name."""
    encoding: str | None = None
    """Text encoding of the labels; by default UTF-8, or UTF-16 with a byte order mark."""
    canvas: tuple[int, int] | Literal["auto"] = (Canvas.height, Canvas.width)
    """Height and width of every prepared image in pixels, or `auto`, which measures a sample of the lines and chooses
    width and --stretch."""
    stretch: float = 1.0
    """Factor by which all images are widened, for long texts in small images."""
    invert: Literal["auto"] | None = None
    """`auto` inverts images with light writing on a dark background; by default they get a warning only."""
    cleaning: CleaningSettings = field(default_factory=CleaningSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    overwrite: bool = False
    """Replace an existing data set in --out."""

    def __post_init__(self) -> None:
        if self.canvas != "auto":
            canvas = Canvas(*self.canvas, self.stretch)
            num_frames(canvas.height, canvas.width)
        elif self.stretch != 1:
            raise UserError("--canvas auto chooses the --stretch itself: omit it")
        if (self.data is None) == (self.labels is None):
            raise UserError("pass either --data or --labels")
        if self.labels is None and (self.images or self.split):
            raise UserError("--images and --split go with --labels")
        if not 0 < self.validation_share < 1:
            raise UserError(f"--validation-share must be above 0 and below 1, not {self.validation_share}")
        if self.delimiter not in (None, "tab") and len(self.delimiter) != 1:
            raise UserError(f"--delimiter must be one character or tab, not {self.delimiter!r}")

    def label_files(self) -> list[LabelFile]:
        """Returns the label files to read. Raises UserError if --data contains none."""
        if self.labels is not None:
            files = [label_file(self.labels, self.images, self.split)]
        else:
            files = find_label_files(str(self.data))
        splits = {file.split for file in files}
        share = 0.0 if splits & {None, "validation"} or self.split else self.validation_share
        return [
            replace(
                file,
                path=storage.absolute(file.path),
                images=storage.absolute(file.images) if file.images else None,
                validation_share=share if file.split == "train" else 0.0,
                columns=self.columns,
                delimiter="\t" if self.delimiter == "tab" else self.delimiter,
                header=False if self.no_header else None,
                encoding=self.encoding,
            )
            for file in files
        ]


def prepare(settings: PrepareSettings) -> str:
    """Writes the prepared data set and returns its path. Raises UserError for errors that the user can fix."""
    files = settings.label_files()
    for file in files:
        next(read_rows(file))  # rejects an invalid label file before Ray starts
    if settings.canvas == "auto":
        canvas = choose_canvas(files, settings.cleaning)
    else:
        canvas = Canvas(*settings.canvas, settings.stretch)
    with staged(storage.absolute(settings.out), mark="dataset.json", overwrite=settings.overwrite) as out:
        connect()
        needs = Needs(num_workers=1, cpus_per_worker=SHARD_CPUS, other_cpus=LABEL_CPUS)
        preflight(needs, wait_minutes=settings.cluster.wait_minutes)
        check_shared(out, *(path for file in files for path in (file.path, file.images) if path))
        statistics = write_shards(files, out, settings.cleaning, canvas, invert=settings.invert is not None)
        check_whole(out, statistics)
        if not any(reason == "prepared" for _, reason in statistics.rows):
            raise UserError(nothing_prepared(out, storage.absolute(settings.out), statistics))
        metadata: dict[str, Any] = {
            "canvas": canvas.to_list(),
            "charset": settings.cleaning.charset or statistics.charset(),
            "splits": statistics.splits(),
            "content_hash": f"{statistics.digest:064x}",
            "settings": {**asdict(settings), "label_files": [asdict(file) for file in files]},
            "versions": versions(),
        }
        write_preparation_report(out, metadata=metadata, statistics=statistics)
        storage.write_json(storage.join(out, "dataset.json"), metadata)
    if problem := poor_canvas(statistics, canvas):
        log.warning("%s", problem)
    if share := max(file.validation_share for file in files):
        log.info(
            "there are no validation lines: %g %% of the training lines are taken, by the hash of their ids",
            100 * share,
        )
    for split, figures in metadata["splits"].items():
        rejected = ", ".join(f"{reason} {n}" for reason, n in figures["rejected"].items()) or "none"
        log.info("%s: %s rows, %s prepared, rejected: %s", split, figures["rows"], figures["prepared"], rejected)
    for sentence in warning_messages(statistics.warning_counts()):
        log.warning("%s", sentence)
    return storage.absolute(settings.out)


def nothing_prepared(folder: str, out: str, statistics: DatasetStatistics) -> str:
    """Returns the sentence for a data set of which all rows were rejected, with an example of the first reason.

    Moves the rejected rows from the staging `folder` to OUT.rejected, to be looked at.
    """
    reasons = Counter[str]()
    for (_, reason), number in statistics.rows.items():
        reasons[reason] += number
    told = ", ".join(f"{number} as {reason}" for reason, number in reasons.most_common())
    first, _ = reasons.most_common(1)[0]
    filesystem, inner = storage.locate(storage.join(folder, "rejected"))
    rejected = ds.dataset(inner, filesystem=filesystem, format="parquet")
    example = rejected.filter(pc.field("reason") == first).head(1).to_pylist()[0]
    what = example["detail"] or REASONS[first]
    kept = f"{out}.rejected"
    for name in storage.list_files(storage.join(folder, "rejected")):
        storage.write_bytes(storage.join(kept, name), storage.read_bytes(storage.join(folder, "rejected", name)))
    return (
        f"all {statistics.rows.total()} rows were rejected ({told}), such as row {example['row']} with the label "
        f"{example['text']!r}: {what}; see {kept}"
    )


def prepare_command(settings: dict[str, Any]) -> str:
    """Returns the command line of `prepare` for the settings of a dataset.json."""
    nested = [group for group in settings.values() if isinstance(group, dict)]
    given = {name: value for group in (settings, *nested) for name, value in group.items()}
    words = ["python", "jobs/prepare.py"]
    for name, value in given.items():
        flag = "--labels" if name == "csv" else f"--{name.replace('_', '-')}"  # as version 0.1 called it
        if value is True:
            words.append(flag)
        elif value not in (None, False, [], ()) and value not in nested and name != "label_files":
            words += [flag, *map(str, value if isinstance(value, list | tuple) else [value])]
    return shlex.join(words)
