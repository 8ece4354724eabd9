"""Label CSVs and images to a prepared data set: read, clean, decode, fit, write, in one pass of Ray Data."""

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import ray.data
from ray.data import Datasink

from hwr_ray import prepared, storage
from hwr_ray.cleaning import REASONS, CleaningSettings, normalize, reason_for
from hwr_ray.cluster import Needs, connect, preflight
from hwr_ray.errors import UserError
from hwr_ray.labels import ROWS, LabelFile, Split, find_label_files, read_rows
from hwr_ray.line_images import Canvas
from hwr_ray.line_reading import read_lines
from hwr_ray.provenance import versions
from hwr_ray.reports import write_preparation_report
from hwr_ray.tally import Tally

log = logging.getLogger(__name__)

MOST_ROWS, SHARD_BYTES = 2048, 32 << 20
"""Of a shard, before compression: a task, which Ray takes up to 0.1 s to follow by another."""
LABEL_CPUS, TASK_CPUS = 0.1, 0.4
"""Ray's logical CPUs of what reads the CSVs, and of each process that prepares their rows: two processes a CPU, since
each waits for its next task now and then."""


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    out: str
    """Folder or URI of the prepared data set."""
    data: str | None = None
    """Folder in the layout of Kaggle's landlord/handwriting-recognition, any of its three splits."""
    csv: str | None = None
    """A label CSV, instead of --data."""
    images: str | None = None
    """Folder of the images that --csv names."""
    split: Split | None = None
    """Split of all rows of --csv; by default they are dealt out 80 : 10 : 10 by the hash of the file name."""
    columns: tuple[str, str] = ("FILENAME", "IDENTITY")
    """Names of the CSV's columns with the file name and the text."""
    encoding: str = "utf-8"
    """Encoding of the CSVs."""
    canvas: tuple[int, int] = (Canvas.height, Canvas.width)
    """Height and width in pixels of every prepared image."""
    cleaning: CleaningSettings = field(default_factory=CleaningSettings)
    overwrite: bool = False
    """Replace a finished data set."""

    def __post_init__(self) -> None:
        Canvas(*self.canvas)
        if (self.data is None) == (self.csv is None):
            raise UserError("name either --data or --csv")
        if (self.csv is None) != (self.images is None):
            raise UserError("--csv and --images go together")

    def label_files(self) -> list[LabelFile]:
        """The CSVs to read. Raises UserError where --data holds none."""
        if self.csv is not None and self.images is not None:
            files = [LabelFile(csv=self.csv, images=self.images, split=self.split)]
        else:
            files = find_label_files(str(self.data))
        return [
            replace(
                file,
                csv=storage.absolute(file.csv),
                images=storage.absolute(file.images),
                columns=self.columns,
                encoding=self.encoding,
            )
            for file in files
        ]


def prepare(settings: PrepareSettings) -> None:
    """Writes the prepared data set of the settings. Raises UserError for what its user can mend."""
    files = settings.label_files()
    canvas = Canvas(*settings.canvas)
    for file in files:
        next(read_rows(file))  # what is wrong with a CSV shows before Ray starts
    with storage.staged(storage.absolute(settings.out), mark="dataset.json", overwrite=settings.overwrite) as out:
        connect()
        preflight(Needs(num_workers=1, cpus_per_worker=TASK_CPUS, other_cpus=LABEL_CPUS))
        sink = PreparedSink(out, canvas)
        rows_per_shard = max(16, min(MOST_ROWS, SHARD_BYTES // (canvas.height * canvas.width)))
        (
            ray.data.from_items([asdict(file) for file in files], override_num_blocks=len(files))
            .map_batches(_label_tables, batch_format="pyarrow", num_cpus=LABEL_CPUS)
            .repartition(target_num_rows_per_block=rows_per_shard)
            .map_batches(
                prepare_table,  # type: ignore[arg-type]
                batch_format="pyarrow",
                fn_kwargs={"cleaning": settings.cleaning, "canvas": canvas},
                num_cpus=TASK_CPUS,
            )
            .write_datasink(sink, ray_remote_args={"num_cpus": TASK_CPUS})
        )
        tally = sink.tally
        check_whole(out, tally)
        if not any(reason == "prepared" for _, reason in tally.rows):
            (_, reason), number = tally.rows.most_common(1)[0]
            raise UserError(
                f"none of {tally.rows.total()} rows could be prepared, {number} of them for {reason} "
                f"({REASONS[reason]}): nothing was written"
            )
        facts: dict[str, Any] = {
            "canvas": [canvas.height, canvas.width],
            "charset": settings.cleaning.charset or tally.charset(),
            "splits": tally.splits(),
            "content_hash": f"{tally.digest:064x}",
            "settings": {**asdict(settings), "label_files": [asdict(file) for file in files]},
            "versions": versions(),
        }
        write_preparation_report(out, facts=facts, tally=tally)
        storage.write_json(storage.join(out, "dataset.json"), facts)
    for split, figures in facts["splits"].items():
        rejected = ", ".join(f"{reason} {n}" for reason, n in figures["rejected"].items()) or "none"
        log.info("%s: %s rows, %s prepared, rejected: %s", split, figures["rows"], figures["prepared"], rejected)
    print(storage.absolute(settings.out))


def check_whole(out: str, tally: Tally) -> None:
    """Raises RuntimeError where the shards in `out` do not hold the rows that the tasks counted."""
    expected = {split: figures["prepared"] for split, figures in tally.splits().items()}
    expected["rejected"] = tally.rows.total() - sum(expected.values())
    for folder, rows in expected.items():
        filesystem, inner = storage.locate(storage.join(out, folder))
        found = pyarrow.dataset.dataset(inner, filesystem=filesystem).count_rows() if rows else 0
        if found != rows:
            raise RuntimeError(
                f"{found} of {rows} {folder} rows are in {out}: is --out on storage that all nodes share?"
            )


def _label_tables(files: pa.Table) -> Iterable[pa.Table]:
    """LabelFiles, as Ray Data carries them, to tables of their rows."""
    for file in files.to_pylist():
        yield from read_rows(LabelFile(**{**file, "columns": tuple(file["columns"])}))


def prepare_table(rows: pa.Table, *, cleaning: CleaningSettings, canvas: Canvas) -> pa.Table:
    """Rows (schema ROWS) cleaned, their images decoded and fitted.

    Adds `kept_text`, `height`, `width`, `image` and `digest`, the hash of the image file. Every row stays; those that
    are to leave carry their reason.
    """
    records = rows.to_pylist()
    for row in records:
        row["kept_text"] = normalize(row["text"])
        row["reason"] = row["reason"] or reason_for(row["kept_text"], cleaning, is_training=row["split"] == "train")
    for folder in {row["folder"] for row in records}:
        good = [row for row in records if row["reason"] is None and row["folder"] == folder]
        for row, line in zip(good, read_lines(folder, [row["id"] for row in good], canvas), strict=True):
            row |= {"reason": line.reason, "detail": line.detail, "height": line.height, "width": line.width}
            row |= {"digest": line.digest, "image": line.image}
    images = prepared.column_of([row.pop("image", None) for row in records], canvas)
    columns = pa.schema([*ROWS, *(pa.field(n, t) for n, t in _ADDED.items())])
    return pa.Table.from_pylist(records, schema=columns).append_column("image", images)


_ADDED = {"kept_text": pa.string(), "height": pa.int32(), "width": pa.int32(), "digest": pa.binary()}


class PreparedSink(Datasink[Tally]):
    """Writes a shard of kept rows for each split and one of rejected rows a task, and adds up their tallies."""

    def __init__(self, out: str, canvas: Canvas) -> None:
        self.out, self.canvas, self.tally = out, canvas, Tally()

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> Tally:
        tally = Tally()
        for number, block in enumerate(blocks):
            # The name depends on the task alone: one that runs again writes the same files again.
            name = f"{ctx.task_idx:06d}-{number:03d}.parquet"
            folders = [self._count(row, tally) for row in block.drop_columns("image").to_pylist()]
            for folder in dict.fromkeys(folders):
                rows = block.filter(pa.array([other == folder for other in folders]))
                if folder != "rejected":
                    rows = rows.set_column(rows.column_names.index("text"), "text", rows["kept_text"])
                columns = prepared.REJECTED if folder == "rejected" else prepared.schema(self.canvas)
                self._write(folder, name, rows.select(columns.names).cast(columns))
        return tally

    def _count(self, row: dict[str, Any], tally: Tally) -> str:
        """Adds a row to the tally; returns the folder that it goes to."""
        is_kept = row["reason"] is None
        tally.add_row(
            split=row["split"],
            text=row["text"],
            kept_text=row["kept_text"] if is_kept else None,
            reason=row["reason"],
            size=(row["height"], row["width"]) if row["height"] else None,
            content=[row["split"].encode(), row["id"].encode(), row["text"].encode(), row["digest"] or b""],
        )
        return row["split"] if is_kept else "rejected"

    def _write(self, folder: str, name: str, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", compression_level=1)
        storage.write_bytes(storage.join(self.out, folder, name), sink.getvalue().to_pybytes())

    def on_write_complete(self, write_result: Any) -> None:
        self.tally = sum(write_result.write_returns, Tally())
