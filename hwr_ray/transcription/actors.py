"""A stage of Ray Data that reads line images: actors that each hold one model."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from hwr_ray.cluster.resources import Needs, WorkerSettings, per_node, preflight, threads_among
from hwr_ray.data.folds import folds_of
from hwr_ray.decoding.decoder import NUM_CANDIDATES, Reading, lexicon_for, placed_characters
from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.images.arrow import images_of
from hwr_ray.images.lines import PAPER
from hwr_ray.recognition.bundle_config import BundleConfig
from hwr_ray.transcription.transcripts import ALTERNATIVES, CHARACTERS, store_partition

if TYPE_CHECKING:
    from hwr_ray.recognition.recognizer import Recognizer

ROWS_PER_BLOCK = 512
"""Rows that go to a model together: fewer cost Ray time for each, more leave models idle at the end."""
WORKER_CPUS = 0.45
"""Ray's logical CPUs for each model by default: a node full of models leaves some for what feeds them."""
FEED_CPUS = 1
"""Logical CPUs that must be left for what feeds the models: Ray Data lists Parquet files with a whole one."""

Loader = Callable[[pa.Table], pa.Table]


@dataclass(frozen=True, kw_only=True)
class ReadingSettings:
    num_workers: int | None = None
    """Processes that each hold a model; by default one for each CPU of the cluster, or for each GPU."""
    workers: WorkerSettings = field(default_factory=lambda: WorkerSettings(cpus_per_worker=WORKER_CPUS))
    batch_size: int = 64
    """Lines that a model reads at once."""
    greedy: bool = False
    """Read without the bundle's language model: faster, and less well."""
    lexicon: str | None = None
    """File of known names, one a line or `name,count`: candidates among them are raised, others are not forbidden."""
    num_best: int = 1
    """Candidates of each line that are told: the reading and num-best - 1 `alternatives`."""
    characters: bool = False
    """Tell the `characters` of each text: how sure each is, and where it stands."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "batch_size", "num_best"):
            if (given := getattr(self, name)) is not None and given <= 0:
                raise UserError(f"--{name.replace('_', '-')} must be positive, not {given}")
        if self.greedy and (self.lexicon or self.num_best > 1):
            raise UserError("--greedy gives one candidate and knows no names: leave --lexicon and --num-best out")
        if self.num_best > NUM_CANDIDATES:
            raise UserError(f"--num-best can be {NUM_CANDIDATES} at most, not {self.num_best}")

    def recognizer(self, bundle_path: str) -> "Recognizer":
        """The bundle as these settings read it, with this worker's share of its node's threads. Raises UserError where
        it can't be read so."""
        import torch  # not in the driver, which only names this class

        from hwr_ray.recognition.recognizer import Recognizer

        torch.set_num_threads(threads_among(per_node(self.num_workers or 1)))
        device = self.workers.device
        return Recognizer(
            bundle_path, device=device, batch_size=self.batch_size, greedy=self.greedy, lexicon=self.lexicon
        )

    def for_workers(self, bundle_path: str, config: BundleConfig) -> "ReadingSettings":
        """The same for processes with a working folder of their own. Raises UserError where they can't read the bundle
        so."""
        settings = replace(self, lexicon=storage.absolute(self.lexicon) if self.lexicon else None)
        is_greedy = self.greedy or config.decoding.language_model is None
        if is_greedy and self.num_best > 1:
            raise UserError(f"{bundle_path} has no language model and gives one candidate: leave --num-best out")
        lexicon_for(bundle_path, settings.lexicon, config.codec, is_greedy=is_greedy)
        return settings

    def admitted(self, feed_cpus: float = FEED_CPUS) -> "ReadingSettings":
        """The same with a number of workers, by default what the cluster holds beside `feed_cpus`.

        Raises UserError where it can't hold them, or not one.
        """
        preflight(self.needs(feed_cpus), wait_minutes=self.workers.wait_minutes)
        if self.num_workers:
            return self
        cluster = ray.cluster_resources()
        cpus = cluster["CPU"]
        fitting = min(cpus, (cpus - feed_cpus) / self.workers.cpus_per_worker)
        sized = replace(self, num_workers=max(1, int(cluster["GPU"] if self.workers.use_gpu else fitting)))
        preflight(sized.needs(feed_cpus))
        return sized

    def needs(self, feed_cpus: float = FEED_CPUS) -> Needs:
        """What they need at least beside `feed_cpus`."""
        return self.workers.needs(self.num_workers or 1, other_cpus=feed_cpus)


class LineReader:
    """The actor: loads a bundle once, then turns tables with an `image` column into tables with readings."""

    def __init__(self, bundle_path: str, settings: ReadingSettings) -> None:
        self.recognizer, self.settings = settings.recognizer(bundle_path), settings
        canvas = self.recognizer.canvas
        # The first batch loads what numba compiled: that is part of the start, not of the first partition.
        self.recognizer.read_lines(
            np.full((settings.batch_size, canvas.height, canvas.width), PAPER, np.uint8),
            num_best=settings.num_best,
            characters=settings.characters,
        )
        gc.collect()
        gc.freeze()  # a full collection would scan all that is loaded, for a tenth of a second every few partitions

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table without its `image`, with `prediction`, `confidence`, `alternatives` and `characters`, null without
        an image; `height` and `width` are those of the image files."""
        has_image = table["image"].is_valid()
        readings = iter(self._read(table.filter(has_image) if table["image"].null_count else table))
        found = [next(readings) if here else None for here in has_image.to_pylist()]
        return (
            table.drop_columns("image")
            .append_column("prediction", pa.array([r.text if r else None for r in found], pa.string()))
            .append_column("confidence", pa.array([r.confidence if r else None for r in found], pa.float32()))
            .append_column("alternatives", pa.array([_alternatives(r) if r else None for r in found], ALTERNATIVES))
            .append_column("characters", self._characters(table, found))
        )

    def _read(self, table: pa.Table) -> list[Reading]:
        images, settings = images_of(table, self.recognizer.canvas), self.settings
        return self.recognizer.read_lines(images, num_best=settings.num_best, characters=settings.characters)

    def _characters(self, table: pa.Table, readings: list[Reading | None]) -> pa.Array:
        """Null unless they are asked for."""
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
    """The actor: loads a bundle once, then reads the pictures of partitions and stores their transcripts.

    `load` turns the row that names a partition into its pictures; None where the tables hold them (with GPUs).
    """

    def __init__(
        self, bundle_path: str, settings: ReadingSettings, load: Loader | None, out: str, threshold: float | None
    ) -> None:
        self.reader, self.load, self.out, self.threshold = LineReader(bundle_path, settings), load, out, threshold
        self.model_is_free, self.ready = Lock(), time.monotonic()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Returns the row of `store_partition`, and for how many seconds this actor has been ready. Thread-safe."""
        table = self.load(table) if self.load else table
        with self.model_is_free:
            start = time.monotonic()
            read = self.reader(table)
            seconds = time.monotonic() - start
        read = read.append_column("model_seconds", pa.array([seconds] * len(table)))
        model_id = self.reader.recognizer.model_id
        stored = store_partition(read, out=self.out, model_id=model_id, threshold=self.threshold)
        return stored.append_column("ready_seconds", pa.array([time.monotonic() - self.ready]))


class FoldReader:
    """The actor: loads the bundle of each fold once, then compares tables of training lines out of fold."""

    def __init__(self, bundle_paths: list[str], settings: ReadingSettings) -> None:
        self.recognizers = [settings.recognizer(path) for path in bundle_paths]

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table without its `image`, its rows by fold, each compared by the model that did not train on it.

        Adds `prediction`, `confidence`, `text_log_prob`, `prediction_log_prob` and `fold`.
        """
        folds = folds_of(table["id"].to_pylist(), len(self.recognizers))
        compared = [self._compare(table.filter(pa.array(folds == fold)), fold) for fold in range(len(self.recognizers))]
        return pa.concat_tables(compared)

    def _compare(self, table: pa.Table, fold: int) -> pa.Table:
        recognizer = self.recognizers[fold]
        found = recognizer.compare(images_of(table, recognizer.canvas), table["text"].to_pylist())
        return (
            table.drop_columns("image")
            .append_column("prediction", pa.array([c.reading.text for c in found], pa.string()))
            .append_column("confidence", pa.array([c.reading.confidence for c in found], pa.float32()))
            .append_column("text_log_prob", pa.array([c.text_log_prob for c in found], pa.float64()))
            .append_column("prediction_log_prob", pa.array([c.prediction_log_prob for c in found], pa.float64()))
            .append_column("fold", pa.array([fold] * len(table), pa.int32()))
        )


def read_lines_with(
    dataset: ray.data.Dataset, bundle_path: str, settings: ReadingSettings, *, num_blocks: int
) -> ray.data.Dataset:
    """The data set, of so many blocks, with its `image` column read: see LineReader."""
    return _read(dataset, LineReader, (bundle_path, settings), settings, num_blocks)


def read_partitions_with(
    partitions: ray.data.Dataset,
    bundle_path: str,
    settings: ReadingSettings,
    *,
    load: Loader | None,
    out: str,
    threshold: float | None,
    num_blocks: int,
    calls_at_once: int,
) -> ray.data.Dataset:
    """Returns a row for each partition, of which each is a block. An actor works on `calls_at_once` of them."""
    args = (bundle_path, settings, load, out, threshold)
    return _read(partitions, PartitionReader, args, settings, num_blocks, calls_at_once=calls_at_once)


def compare_out_of_fold(
    dataset: ray.data.Dataset, bundle_paths: list[str], settings: ReadingSettings, *, num_blocks: int
) -> ray.data.Dataset:
    """The data set of training lines read by the bundles of all folds, in the folds' order: see FoldReader."""
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
        batch_size=None,  # whole blocks: the network takes its batches from them
        compute=ray.data.ActorPoolStrategy(
            size=min(settings.num_workers or 1, num_blocks),
            max_concurrent_calls_per_actor=calls_at_once,
            enable_true_multi_threading=calls_at_once > 1,
        ),
        **settings.workers.options,
    )
