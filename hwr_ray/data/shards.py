"""Rows of labels prepared by Ray Data and written as shards."""

import math
import pickle
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from hashlib import sha256
from itertools import chain, islice, tee
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import ray.data

from hwr_ray.cluster.connection import rows_of
from hwr_ray.cluster.monitoring import count_lines
from hwr_ray.cluster.progress import Progress
from hwr_ray.data import dataset as prepared
from hwr_ray.data.cleaning import CleaningSettings, reason_for
from hwr_ray.data.label_forms import SUFFIXES
from hwr_ray.data.labels import LabelFile, read_rows
from hwr_ray.data.statistics import DatasetStatistics
from hwr_ray.files import storage
from hwr_ray.files.paths import find_spelling
from hwr_ray.images.arrow import column_of
from hwr_ray.images.lines import Canvas
from hwr_ray.images.reader import Line, lines_of, read_files
from hwr_ray.model.architecture import WIDTH_STRIDE, num_frames
from hwr_ray.text.normalization import normalize

MOST_ROWS, SHARD_BYTES = 4096, 64 << 20
"""Maximum rows and bytes of a shard, before compression."""
LABEL_CPUS, SHARD_CPUS = 0.1, 0.45
"""Ray's logical CPUs for each task that reads a label file, and for each actor that prepares rows (one actor per CPU).
The actors reserve little, so that CPUs stay free when those of a lost node restart on the other nodes."""


def write_shards(
    files: list[LabelFile], out: str, cleaning: CleaningSettings, canvas: Canvas, *, invert: bool
) -> DatasetStatistics:
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
            fn_constructor_kwargs={"out": out, "cleaning": cleaning, "canvas": canvas, "invert": invert},
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
        label_file = LabelFile(**{**file, "columns": tuple(file["columns"]) if file["columns"] else None})
        for shard, rows in enumerate(read_rows(label_file, rows_per_table=rows_per_shard)):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, rows.schema) as stream:
                stream.write_table(rows)
            yield pa.table({"name": [f"{number:02d}-{shard:06d}.parquet"], "rows": [sink.getvalue().to_pybytes()]})


def prepare_rows(
    rows: pa.Table, *, cleaning: CleaningSettings, canvas: Canvas, invert: bool = False
) -> list[dict[str, Any]]:
    """Returns rows of the schema ROWS cleaned, with their images decoded and fitted to the canvas.

    Adds `kept_text`, the normalized label; `height` and `width` of the image file in pixels, `image`, (H, W) uint8 on
    the canvas, and its `warning`, which are None for rejected rows; and `digest`, the SHA-256 of the file, empty if it
    was not read. Rejected rows stay in the result with their `reason`. `invert` turns light writing on dark into dark
    on light.
    """
    records, frames = rows.to_pylist(), num_frames(canvas.height, canvas.width)
    for row in records:
        row["text"] = row["text"] or ""
        row["kept_text"] = normalize(row["text"], keep_joiners=cleaning.keep_joiners)
        row["reason"] = row["reason"] or reason_for(
            row["kept_text"], cleaning, is_training=row["split"] == "train", num_frames=frames
        )
        row |= {"height": None, "width": None, "image": None, "warning": None, "digest": b""}
    good = [row for row in records if row["reason"] is None]
    held = [row for row in good if row["file"] is not None]
    _take_images(held, (row["file"] for row in held), canvas, invert)
    for folder in {row["folder"] for row in good} - {None}:
        members = [row for row in good if row["folder"] == folder]
        start = len(storage.join(folder, ""))
        _take_images(members, read_files(folder, [row["path"][start:] for row in members]), canvas, invert)
        missing = [row for row in members if row["reason"] == "missing_image"]
        for row in missing:
            row["detail"] = f"there is no {row['path']}"
        spelled = [(row, find_spelling(folder, row["path"][start:], SUFFIXES)) for row in missing]
        found = [(row, name) for row, name in spelled if name]
        for row, name in found:
            row["path"] = storage.join(folder, name)
        _take_images([row for row, _ in found], read_files(folder, [name for _, name in found]), canvas, invert)
    return records


def _take_images(rows: list[dict[str, Any]], files: Iterable[bytes | Line], canvas: Canvas, invert: bool) -> None:
    """Adds what becomes of an image file to each row."""
    to_hash, to_decode = tee(files)
    for row, file, line in zip(rows, to_hash, lines_of(to_decode, canvas, invert=invert), strict=True):
        row |= {"reason": line.reason, "detail": line.detail, "height": line.height, "width": line.width}
        row |= {"digest": b"" if isinstance(file, Line) else sha256(file).digest()}
        row |= {"image": line.image, "warning": line.warning}


class ShardWriter:
    """Actor that prepares tables of rows and writes each to `out`, as one shard per split and one of rejected rows."""

    def __init__(self, out: str, cleaning: CleaningSettings, canvas: Canvas, invert: bool = False) -> None:
        self.out, self.cleaning, self.canvas, self.invert = out, cleaning, canvas, invert

    def __call__(self, shards: pa.Table) -> pa.Table:
        """Writes shards (`name`, `rows` as an Arrow stream). Returns a row with the pickled statistics for each."""
        results = []
        for shard in shards.to_pylist():
            rows = pa.ipc.open_stream(shard["rows"]).read_all()
            records = prepare_rows(rows, cleaning=self.cleaning, canvas=self.canvas, invert=self.invert)
            # The name depends on neither process nor attempt, so a retry replaces the same files.
            results.append(pickle.dumps(self.write(records, shard["name"])))
        return pa.table({"statistics": results})

    def write(self, records: list[dict[str, Any]], name: str) -> DatasetStatistics:
        """Writes prepared rows to a file `name` in the folder of each split and in `rejected`. Returns statistics."""
        statistics, folders = DatasetStatistics(), defaultdict[str, list[dict[str, Any]]](list)
        for row in records:
            folders[count_row(row, statistics, self.canvas)].append(row)
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


def count_row(row: dict[str, Any], statistics: DatasetStatistics, canvas: Canvas) -> str:
    """Adds a prepared row to the statistics and returns the name of its output folder."""
    is_kept, frames = row["reason"] is None, math.inf
    if is_kept and row["warning"] != "vertical":  # such a line needs to be rotated, not a wider canvas
        scale = canvas.scale_for(row["height"], row["width"])
        frames = row["width"] * scale * canvas.stretch / WIDTH_STRIDE
    content = row["split"].encode(), row["id"].encode(), row["text"].encode(), row["digest"]
    statistics.add_row(
        split=row["split"],
        text=row["text"],
        kept_text=row["kept_text"] if is_kept else None,
        reason=row["reason"],
        size=(row["height"], row["width"]) if row["height"] else None,
        content=[*content, *([b"inverted"] if row["warning"] == "inverted" else [])],
        num_frames=frames,
        warning=row["warning"],
    )
    return row["split"] if is_kept else "rejected"
