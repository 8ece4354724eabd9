"""The `prepare` job: reads, cleans, decodes, fits and writes labelled line images in one pass of Ray Data."""

import logging
import pickle
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from itertools import chain, islice, tee
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import ray.data

from hwr_ray.cluster.connection import check_shared, connect, rows_of
from hwr_ray.cluster.monitoring import count_lines
from hwr_ray.cluster.progress import Progress
from hwr_ray.cluster.resources import ClusterSettings, Needs, preflight
from hwr_ray.data import dataset as prepared
from hwr_ray.data.cleaning import REASONS, CleaningSettings, reason_for
from hwr_ray.data.labels import LabelFile, Split, find_label_files, read_rows
from hwr_ray.data.report import write_preparation_report
from hwr_ray.data.statistics import DatasetStatistics
from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.files.staging import staged
from hwr_ray.images.arrow import column_of
from hwr_ray.images.lines import Canvas
from hwr_ray.images.reader import Line, lines_of, read_files
from hwr_ray.text.normalization import normalize
from hwr_ray.versions import versions

log = logging.getLogger(__name__)

MOST_ROWS, SHARD_BYTES = 4096, 64 << 20
"""Maximum rows and bytes of a shard, before compression."""
LABEL_CPUS, SHARD_CPUS = 0.1, 0.45
"""Ray's logical CPUs for each task that reads a CSV, and for each actor that prepares rows (one actor per CPU). The
actors reserve little, so that CPUs stay free when those of a lost node restart on the other nodes."""


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    out: str
    """Folder or URI of the prepared data set."""
    data: str | None = None
    """Folder in the layout of Kaggle's landlord/handwriting-recognition, with any of its three splits."""
    csv: str | None = None
    """Label CSV to read instead of --data."""
    images: str | None = None
    """Folder of the images that --csv refers to."""
    split: Split | None = None
    """Split of all rows of --csv; by default each row is assigned by the hash of its file name, 80 : 10 : 10."""
    columns: tuple[str, str] = ("FILENAME", "IDENTITY")
    """Names of the CSV columns with the file name and the text."""
    encoding: str = "utf-8"
    """Text encoding of the CSVs."""
    canvas: tuple[int, int] = (Canvas.height, Canvas.width)
    """Height and width of every prepared image, in pixels."""
    cleaning: CleaningSettings = field(default_factory=CleaningSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    overwrite: bool = False
    """Replace an existing data set in --out."""

    def __post_init__(self) -> None:
        Canvas(*self.canvas)
        if (self.data is None) == (self.csv is None):
            raise UserError("pass either --data or --csv")
        if (self.csv is None) != (self.images is None):
            raise UserError("pass --csv and --images together")

    def label_files(self) -> list[LabelFile]:
        """Returns the CSVs to read. Raises UserError if --data contains none."""
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


def prepare(settings: PrepareSettings) -> str:
    """Writes the prepared data set and returns its path. Raises UserError for errors that the user can fix."""
    files = settings.label_files()
    canvas = Canvas(*settings.canvas)
    for file in files:
        next(read_rows(file))  # rejects an invalid CSV before Ray starts
    with staged(storage.absolute(settings.out), mark="dataset.json", overwrite=settings.overwrite) as out:
        connect()
        needs = Needs(num_workers=1, cpus_per_worker=SHARD_CPUS, other_cpus=LABEL_CPUS)
        preflight(needs, wait_minutes=settings.cluster.wait_minutes)
        check_shared(out, *(path for file in files for path in (file.csv, file.images)))
        statistics = write_shards(files, out, settings.cleaning, canvas)
        check_whole(out, statistics)
        if not any(reason == "prepared" for _, reason in statistics.rows):
            (_, reason), number = statistics.rows.most_common(1)[0]
            raise UserError(
                f"all {statistics.rows.total()} rows were rejected, {number} of them as {reason} ({REASONS[reason]}): "
                "nothing was written"
            )
        metadata: dict[str, Any] = {
            "canvas": [canvas.height, canvas.width],
            "charset": settings.cleaning.charset or statistics.charset(),
            "splits": statistics.splits(),
            "content_hash": f"{statistics.digest:064x}",
            "settings": {**asdict(settings), "label_files": [asdict(file) for file in files]},
            "versions": versions(),
        }
        write_preparation_report(out, metadata=metadata, statistics=statistics)
        storage.write_json(storage.join(out, "dataset.json"), metadata)
    for split, figures in metadata["splits"].items():
        rejected = ", ".join(f"{reason} {n}" for reason, n in figures["rejected"].items()) or "none"
        log.info("%s: %s rows, %s prepared, rejected: %s", split, figures["rows"], figures["prepared"], rejected)
    return storage.absolute(settings.out)


def write_shards(files: list[LabelFile], out: str, cleaning: CleaningSettings, canvas: Canvas) -> DatasetStatistics:
    """Prepares all rows of the label files, writes them to `out` and returns their statistics."""
    rows_per_shard = max(16, min(MOST_ROWS, SHARD_BYTES // (canvas.height * canvas.width)))
    tables = chain.from_iterable(read_rows(file, rows_per_table=rows_per_shard) for file in files)
    num_writers = sum(1 for _ in islice(tables, max(1, int(ray.cluster_resources()["CPU"]))))  # at most one a shard
    items = [{"number": number, **asdict(file)} for number, file in enumerate(files)]
    # Actors, not tasks: tasks wait for the next round of Ray Data (0.1 s), and their idle processes are terminated.
    shards = (
        ray.data.from_items(items, override_num_blocks=len(files))
        .map_batches(
            _shards_of,  # type: ignore[arg-type]
            fn_kwargs={"rows_per_shard": rows_per_shard},
            batch_format="pyarrow",
            num_cpus=LABEL_CPUS,
        )
        .map_batches(
            ShardWriter,
            fn_constructor_kwargs={"out": out, "cleaning": cleaning, "canvas": canvas},
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=SHARD_CPUS,
            compute=ray.data.ActorPoolStrategy(size=num_writers),
        )
    )
    shards.context.enable_progress_bars = False
    shards.context.target_max_block_size = 1  # byte: each row, which holds a shard, becomes a block
    statistics = DatasetStatistics()
    with Progress("rows", lambda: None) as progress:
        for row in rows_of(shards):
            part = pickle.loads(row["statistics"])  # noqa: S301 - written by this job's actors
            statistics += part
            progress.advance(part.rows.total())
            count_lines("prepare", ((outcome, number) for (_, outcome), number in part.rows.items()))
    return statistics


def check_whole(out: str, statistics: DatasetStatistics) -> None:
    """Deletes partial files in `out`. Raises RuntimeError if its shards do not contain the rows that were counted."""
    for name in storage.list_files(out):
        if storage.PARTIAL in name:  # left by a process that was killed while writing
            storage.delete_file(storage.join(out, name))
    expected = {split: figures["prepared"] for split, figures in statistics.splits().items()}
    expected["rejected"] = statistics.rows.total() - sum(expected.values())
    for folder, rows in expected.items():
        filesystem, inner = storage.locate(storage.join(out, folder))
        found = pyarrow.dataset.dataset(inner, filesystem=filesystem).count_rows() if rows else 0
        if found != rows:
            raise RuntimeError(
                f"{out} contains {found} of {rows} {folder} rows: choose an --out on storage that all nodes share"
            )


def _shards_of(files: pa.Table, *, rows_per_shard: int) -> Iterable[pa.Table]:
    """Yields one table for each shard of the label files. Its single row has the `name` of the shard and its `rows` as
    an Arrow stream, which Ray Data can neither split nor merge."""
    for file in files.to_pylist():
        number = file.pop("number")
        label_file = LabelFile(**{**file, "columns": tuple(file["columns"])})
        for shard, rows in enumerate(read_rows(label_file, rows_per_table=rows_per_shard)):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, rows.schema) as stream:
                stream.write_table(rows)
            yield pa.table({"name": [f"{number:02d}-{shard:06d}.parquet"], "rows": [sink.getvalue().to_pybytes()]})


def prepare_rows(rows: pa.Table, *, cleaning: CleaningSettings, canvas: Canvas) -> list[dict[str, Any]]:
    """Returns rows of the schema ROWS cleaned, with their images decoded and fitted to the canvas.

    Adds `kept_text`, the normalized label; `height` and `width` of the image file in pixels and `image`, (H, W) uint8
    on the canvas, which are None for rejected rows; and `digest`, the SHA-256 of the file, empty if it was not read.
    Rejected rows stay in the result with their `reason`.
    """
    records = rows.to_pylist()
    for row in records:
        row["kept_text"] = normalize(row["text"])
        row["reason"] = row["reason"] or reason_for(row["kept_text"], cleaning, is_training=row["split"] == "train")
        row |= {"height": None, "width": None, "image": None, "digest": b""}
    for folder in {row["folder"] for row in records}:
        good = [row for row in records if row["reason"] is None and row["folder"] == folder]
        to_hash, to_decode = tee(read_files(folder, [row["id"] for row in good]))
        for row, file, line in zip(good, to_hash, lines_of(to_decode, canvas), strict=True):
            row |= {"reason": line.reason, "detail": line.detail, "height": line.height, "width": line.width}
            row |= {"digest": b"" if isinstance(file, Line) else sha256(file).digest(), "image": line.image}
    return records


class ShardWriter:
    """Actor that prepares tables of rows and writes each to `out`, as one shard per split and one of rejected rows."""

    def __init__(self, out: str, cleaning: CleaningSettings, canvas: Canvas) -> None:
        self.out, self.cleaning, self.canvas = out, cleaning, canvas

    def __call__(self, shards: pa.Table) -> pa.Table:
        """Writes shards (`name`, `rows` as an Arrow stream). Returns a row with the pickled statistics for each."""
        results = []
        for shard in shards.to_pylist():
            rows = pa.ipc.open_stream(shard["rows"]).read_all()
            records = prepare_rows(rows, cleaning=self.cleaning, canvas=self.canvas)
            # The name depends on neither process nor attempt, so a retry replaces the same files.
            results.append(pickle.dumps(self.write(records, shard["name"])))
        return pa.table({"statistics": results})

    def write(self, records: list[dict[str, Any]], name: str) -> DatasetStatistics:
        """Writes prepared rows to a file `name` in the folder of each split and in `rejected`. Returns statistics."""
        statistics, folders = DatasetStatistics(), defaultdict[str, list[dict[str, Any]]](list)
        for row in records:
            folders[count_row(row, statistics)].append(row)
        for folder, members in folders.items():
            schema = prepared.REJECTED if folder == "rejected" else prepared.schema(self.canvas)
            columns: dict[str, Any] = {column: [row[column] for row in members] for column in schema.names}
            if folder != "rejected":
                columns["text"] = [row["kept_text"] for row in members]
                columns["image"] = column_of(columns["image"], self.canvas)
            sink = pa.BufferOutputStream()
            pq.write_table(pa.table(columns, schema=schema), sink, compression="zstd", compression_level=1)
            storage.write_bytes(storage.join(self.out, folder, name), sink.getvalue().to_pybytes())
        return statistics


def count_row(row: dict[str, Any], statistics: DatasetStatistics) -> str:
    """Adds a prepared row to the statistics and returns the name of its output folder."""
    is_kept = row["reason"] is None
    statistics.add_row(
        split=row["split"],
        text=row["text"],
        kept_text=row["kept_text"] if is_kept else None,
        reason=row["reason"],
        size=(row["height"], row["width"]) if row["height"] else None,
        content=[row["split"].encode(), row["id"].encode(), row["text"].encode(), row["digest"]],
    )
    return row["split"] if is_kept else "rejected"
