"""Ray Data actors that recognize line images, each with its own model."""

import gc
import time
from collections.abc import Callable
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from hwr_ray.data.selection import folds_of
from hwr_ray.decoding.decoder import Reading, placed_characters
from hwr_ray.images.arrow import images_of
from hwr_ray.images.decode import PAPER
from hwr_ray.transcription.settings import ReadingSettings
from hwr_ray.transcription.transcripts import ALTERNATIVES, CHARACTERS, store_partition

ROWS_PER_BLOCK = 512
"""Rows per block. Smaller blocks cost Ray more time per row; larger ones leave models idle at the end."""
PARTITIONS_AT_ONCE = 2
"""Partitions that a model's process works on at a time if it waits for storage or a GPU: see `partitions_at_once`."""

Loader = Callable[[pa.Table], pa.Table]


class LineReader:
    """Actor that loads a bundle once and adds predictions to tables with an `image` column."""

    def __init__(self, bundle_path: str, settings: ReadingSettings) -> None:
        self.recognizer, self.settings = settings.recognizer(bundle_path), settings
        canvas = self.recognizer.canvas
        # The first batch loads numba's compiled code, which is part of the start-up, not of the first partition.
        self.recognizer.read_lines(
            np.full((settings.batch_size, canvas.height, canvas.width), PAPER, np.uint8),
            num_best=settings.num_best,
            characters=settings.characters,
        )
        gc.collect()
        gc.freeze()  # else a full collection scans all loaded objects: a tenth of a second every few partitions

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns the table without `image`, with `prediction`, `confidence`, `alternatives`, `characters` and
        `warning`, which replaces that of the images, if there is one.

        These are null in rows without an image. `height` and `width` must be those of the image files.
        """
        has_image = table["image"].is_valid()
        readings = iter(self._read(table.filter(has_image) if table["image"].null_count else table))
        rows = [next(readings) if is_valid else None for is_valid in has_image.to_pylist()]
        return (
            table.drop_columns([name for name in ("image", "warning") if name in table.column_names])
            .append_column("prediction", pa.array([r.text if r else None for r in rows], pa.string()))
            .append_column("confidence", pa.array([r.confidence if r else None for r in rows], pa.float32()))
            .append_column("alternatives", pa.array([_alternatives(r) if r else None for r in rows], ALTERNATIVES))
            .append_column("characters", self._characters(table, rows))
            .append_column("warning", pa.array([r.warning if r else None for r in rows], pa.string()))
        )

    def _read(self, table: pa.Table) -> list[Reading]:
        images, settings = images_of(table, self.recognizer.canvas), self.settings
        has_warnings = "warning" in table.column_names  # prepared sets of version 0.1 have none
        warnings = table["warning"].to_pylist() if has_warnings else [None] * len(table)
        return self.recognizer.read_lines(
            images, warnings=warnings, num_best=settings.num_best, characters=settings.characters
        )

    def _characters(self, table: pa.Table, readings: list[Reading | None]) -> pa.Array:
        """Returns the characters of each reading, or nulls unless the settings ask for them."""
        if not self.settings.characters:
            return pa.nulls(len(table), CHARACTERS)
        sizes = zip(table["height"].to_pylist(), table["width"].to_pylist(), strict=True)
        rows = [
            placed_characters(reading, self.recognizer.canvas, *size) if reading else None
            for reading, size in zip(readings, sizes, strict=True)
        ]
        return pa.array(rows, CHARACTERS)


def _alternatives(reading: Reading) -> list[dict[str, Any]]:
    return [{"text": text, "share": share} for text, share in reading.alternatives]


class PartitionReader:
    """Actor that loads a bundle once, then recognizes the images of partitions and stores their transcripts.

    `load` maps the row of a partition to the rows with its images.
    """

    def __init__(
        self, bundle_path: str, settings: ReadingSettings, load: Loader, out: str, threshold: float | None
    ) -> None:
        self.reader, self.load, self.out, self.threshold = LineReader(bundle_path, settings), load, out, threshold
        self.model_lock, self.ready = Lock(), time.monotonic()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns the row of `store_partition` and the seconds since this actor became ready. Thread-safe."""
        table = self.load(table)
        with self.model_lock:
            start = time.monotonic()
            predictions = self.reader(table)
            seconds = time.monotonic() - start
        predictions = predictions.append_column("model_seconds", pa.array([seconds] * len(table)))
        model_id = self.reader.recognizer.model_id
        stored = store_partition(predictions, out=self.out, model_id=model_id, threshold=self.threshold)
        return stored.append_column("ready_seconds", pa.array([time.monotonic() - self.ready]))


class FoldReader:
    """Actor that loads the bundle of each fold once, or a single bundle, then compares labels with its predictions."""

    def __init__(self, bundle_paths: list[str], settings: ReadingSettings) -> None:
        self.recognizers = [settings.recognizer(path) for path in bundle_paths]

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns the table without `image`, sorted by fold; the model of its fold predicts a row.

        Adds `prediction`, `confidence`, `text_log_prob`, `prediction_log_prob` and `fold`.
        """
        folds = folds_of(table["id"].to_pylist(), len(self.recognizers))
        compared = [self._compare(table.filter(pa.array(folds == fold)), fold) for fold in range(len(self.recognizers))]
        return pa.concat_tables(compared)

    def _compare(self, table: pa.Table, fold: int) -> pa.Table:
        recognizer = self.recognizers[fold]
        rows = recognizer.compare(images_of(table, recognizer.canvas), table["text"].to_pylist())
        return (
            table.drop_columns("image")
            .append_column("prediction", pa.array([c.reading.text for c in rows], pa.string()))
            .append_column("confidence", pa.array([c.reading.confidence for c in rows], pa.float32()))
            .append_column("text_log_prob", pa.array([c.text_log_prob for c in rows], pa.float64()))
            .append_column("prediction_log_prob", pa.array([c.prediction_log_prob for c in rows], pa.float64()))
            .append_column("fold", pa.array([fold] * len(table), pa.int32()))
        )


def read_lines_with(
    dataset: ray.data.Dataset, bundle_path: str, settings: ReadingSettings, *, num_blocks: int
) -> ray.data.Dataset:
    """Returns the dataset, which has `num_blocks` blocks, with the columns that LineReader adds."""
    return _read(dataset, LineReader, (bundle_path, settings), settings, num_blocks)


def read_partitions_with(
    partitions: ray.data.Dataset,
    bundle_path: str,
    settings: ReadingSettings,
    *,
    load: Loader,
    out: str,
    threshold: float | None,
    num_blocks: int,
    calls_at_once: int,
) -> ray.data.Dataset:
    """Returns a row for each partition (see PartitionReader).

    Each partition is a block. An actor works on `calls_at_once` of them at a time.
    """
    args = (bundle_path, settings, load, out, threshold)
    return _read(partitions, PartitionReader, args, settings, num_blocks, calls_at_once=calls_at_once)


def compare_out_of_fold(
    dataset: ray.data.Dataset, bundle_paths: list[str], settings: ReadingSettings, *, num_blocks: int
) -> ray.data.Dataset:
    """Returns the dataset of training lines with the columns that FoldReader adds; `bundle_paths` are by fold."""
    return _read(dataset, FoldReader, (bundle_paths, settings), settings, num_blocks)


def _read(
    dataset: ray.data.Dataset,
    actor: type,
    args: tuple[Any, ...],
    settings: ReadingSettings,
    num_blocks: int,
    *,
    calls_at_once: int = 1,
) -> ray.data.Dataset:
    return dataset.map_batches(
        actor,
        fn_constructor_args=args,
        batch_format="pyarrow",
        batch_size=None,  # whole blocks; the recognizer splits them into its batches
        compute=ray.data.ActorPoolStrategy(
            size=min(settings.num_workers or 1, num_blocks),
            max_concurrent_calls_per_actor=calls_at_once,
            enable_true_multi_threading=calls_at_once > 1,
        ),
        **settings.workers.options,
    )


def partitions_at_once(images: str, out: str, *, use_gpu: bool) -> int:
    """Returns how many partitions an actor works on at a time, to fetch the next one while it transcribes one.

    With files on local disks there is little to wait for, and two threads on one CPU slow each other down
    (benchmarks/results/processes.md).
    """
    return PARTITIONS_AT_ONCE if use_gpu or "://" in images + out else 1
