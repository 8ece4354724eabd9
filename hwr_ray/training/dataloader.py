"""Data loading in a training worker: its share of each training batch and of the validation lines."""

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
import pyarrow as pa
import ray
import ray.train
import torch
import torch.distributed as dist
from torch import Tensor

from hwr_ray.cluster.shared_file import SharedFile
from hwr_ray.data.dataset import PreparedSets
from hwr_ray.data.selection import Selection
from hwr_ray.errors import UserError
from hwr_ray.images.arrow import images_of
from hwr_ray.training.settings import KEPT_SHARE, TrainSettings

READ_BATCH = 256
"""Rows per table when reading lines."""
SHUFFLE_WINDOW = 16_384
"""Streamed lines that a worker shuffles at a time, in addition to the random order of the shards."""
MOST_KEPT_BYTES = 1 << 30
"""Maximum bytes of validation lines that a worker keeps in memory."""
BATCHES_AHEAD = 4
"""Streamed batches that a worker fetches ahead."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class WorkerShard:
    """A worker's rank in its group, and which items of a batch are its own."""

    rank: int
    world_size: int

    def of(self, number: int) -> slice:
        """Returns the slice of `number` items that belongs to this worker. Sizes differ by at most one."""
        return slice(number * self.rank // self.world_size, number * (self.rank + 1) // self.world_size)


@dataclass(frozen=True)
class Batch:
    """A worker's share of a batch of training lines."""

    images: Tensor
    """Line images (N, H, W) uint8, 255 paper, on the worker's device."""
    ids: list[str]
    texts: list[str]


class Lines(Protocol):
    """Source of a worker's share of the batches."""

    steps: int
    """Batches per epoch, the same number for all workers."""

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yields the batches of an epoch from step `start` on."""


def training_lines(
    prepared: PreparedSets,
    settings: TrainSettings,
    shard: WorkerShard,
    device: torch.device,
    *,
    num_lines: int,
    selection: Selection,
    runs_at_once: int,
    may_stream: bool,
) -> Lines:
    """Returns the training lines: on the device if they fit, else in the node's memory if they fit, else streamed by
    Ray Data if `may_stream`.

    All workers must call it, and all keep the lines in the same place.
    """
    places = [device] if device.type == "cpu" else [device, torch.device("cpu")]
    for place in [] if settings.stream else places:
        fits = torch.tensor(
            int(num_lines * prepared.bytes_per_line <= KEPT_SHARE * _memory(place, runs_at_once)), device=device
        )
        if shard.world_size > 1:
            dist.all_reduce(fits, dist.ReduceOp.MIN)
        if fits:
            break
    else:
        if may_stream:
            return StreamedLines(prepared, settings, shard, device, num_lines)
        place = places[-1]  # a node with less memory joined after the decision
    shared = SharedFile.of_node() if place.type == "cpu" and shard.world_size > 1 else None
    return KeptLines(
        prepared, settings, shard, device, kept_on=place, num_lines=num_lines, selection=selection, shared=shared
    )


def _memory(place: torch.device, runs_at_once: int) -> float:
    """Returns the free bytes of a GPU, or the part of its node's memory that is this run's, of `runs_at_once`.

    The memory of a node is the one that Ray reports, which respects the limit of a container. The workers of a run
    share one copy of the lines.
    """
    if place.type == "cuda":
        return torch.cuda.mem_get_info(place)[0]
    node_id = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == node_id)
    return node["Resources"].get("memory", 0) / runs_at_once


class KeptLines:
    """All lines in memory, on the device `kept_on`; on a CPU in `shared` memory if the run has several workers.

    A batch depends only on the seed, the epoch and the step, not on the number of workers.
    """

    def __init__(
        self,
        prepared: PreparedSets,
        settings: TrainSettings,
        shard: WorkerShard,
        device: torch.device,
        *,
        kept_on: torch.device,
        num_lines: int,
        selection: Selection,
        shared: SharedFile | None = None,
    ) -> None:
        self.seed, self.batch_size, self.shard, self.device = settings.seed, settings.batch_size, shard, device
        self.ids, self.texts = list[str](), list[str]()
        for table in read_train_tables(prepared, selection, ["id", "text"]):
            self.ids += table["id"].to_pylist()
            self.texts += table["text"].to_pylist()
        if len(self.ids) != num_lines:
            raise RuntimeError(f"read {len(self.ids)} of {num_lines} training lines of {', '.join(prepared.paths)}")
        canvas, tables = prepared.canvas, read_train_tables(prepared, selection, ["id", "text", "image"])
        parts, shape = (images_of(table, canvas) for table in tables), (num_lines, canvas.height, canvas.width)
        if shared:
            self.images = torch.from_numpy(shared.exchange(parts, shape))
        else:
            self.images, start = torch.empty(shape, dtype=torch.uint8, device=kept_on), 0
            for part in parts:
                self.images[start : start + len(part)] = torch.tensor(part)
                start += len(part)
        # The order in the files depends on which was written first. Lines of two sets may have the same id.
        self.order = np.argsort(self.ids, kind="stable")
        self.steps = num_lines // settings.batch_size

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        order = self.order[np.random.default_rng((self.seed, epoch)).permutation(len(self.order))]
        own_share = self.shard.of(self.batch_size)
        for step in range(start, self.steps):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size][own_share]
            images = self.images[torch.from_numpy(rows).to(self.images.device)]
            yield Batch(_to_device(images, self.device), [self.ids[i] for i in rows], [self.texts[i] for i in rows])


def read_train_tables(prepared: PreparedSets, selection: Selection, columns: list[str]) -> Iterator[pa.Table]:
    """Yields columns, `id` and `text` among them, of the training lines of the run in tables of at most READ_BATCH
    rows."""
    for table in prepared.tables("train", columns, rows=READ_BATCH):
        yield selection.of(table)


def _to_device(images: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and not images.is_cuda:
        images = images.pin_memory()
    return images.to(device, non_blocking=True)


class StreamedLines:
    """Lines that Ray Data distributes to the workers in every epoch; a batch depends on the number of workers.

    A resumed epoch draws its remaining lines from a fresh shuffle.
    """

    def __init__(
        self, prepared: PreparedSets, settings: TrainSettings, shard: WorkerShard, device: torch.device, num_lines: int
    ) -> None:
        self.canvas, self.seed, self.shard, self.device = prepared.canvas, settings.seed, shard, device
        own_share = shard.of(settings.batch_size)
        self.size = own_share.stop - own_share.start
        # All workers get equally many lines; the one with the largest share of a batch runs out first.
        self.steps = num_lines // shard.world_size // -(-settings.batch_size // shard.world_size)
        if not self.steps:
            raise UserError(
                f"{num_lines} training lines are too few for {shard.world_size} workers: "
                f"lower --batch-size {settings.batch_size}"
            )

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        tables = ray.train.get_dataset_shard("train").iter_batches(batch_size=READ_BATCH, batch_format="pyarrow")
        rng = np.random.default_rng((self.seed, epoch, start, self.shard.rank))
        # Two threads: one reads the next window while the other draws batches from the current one.
        shuffled = shuffled_batches(ahead(tables, SHUFFLE_WINDOW // READ_BATCH), self.size, rng)
        batches = ahead(shuffled, BATCHES_AHEAD)
        for step in range(start, self.steps):
            table = next(batches, None)
            if table is None:
                raise RuntimeError(f"the lines of epoch {epoch} ended at step {step} of {self.steps}")
            images = _to_device(torch.tensor(images_of(table, self.canvas)), self.device)
            yield Batch(images, table["id"].to_pylist(), table["text"].to_pylist())
        batches.close()


class ValidationLines:
    """A worker's share of the validation lines, kept in memory if it is small enough: tables, each with the number of
    its data set."""

    def __init__(self, prepared: PreparedSets, shard: WorkerShard) -> None:
        self.prepared, self.shard = prepared, shard
        num_bytes = prepared.require_lines("validation") * prepared.bytes_per_line // shard.world_size
        self.kept = list(self._read()) if num_bytes <= MOST_KEPT_BYTES else None

    def __iter__(self) -> Iterator[tuple[int, pa.Table]]:
        return iter(self.kept) if self.kept is not None else self._read()

    def _read(self) -> Iterator[tuple[int, pa.Table]]:
        tables = (
            (number, table)
            for number, one in enumerate(self.prepared.sets)
            if "validation" in one.num_lines
            for table in one.tables("validation", ["text", "image"], rows=READ_BATCH)
        )
        return islice(tables, self.shard.rank, None, self.shard.world_size)


def ahead(items: Iterable[Item], number: int) -> Generator[Item, None, None]:
    """Yields the items; a thread fetches up to `number` of them ahead."""
    ready: queue.Queue[Item | BaseException | None] = queue.Queue(number)
    is_over = threading.Event()

    def put(item: Item | BaseException | None) -> None:
        while not is_over.is_set():
            try:
                ready.put(item, timeout=0.1)
                break
            except queue.Full:
                continue

    def fetch() -> None:
        try:
            for item in items:
                put(item)
                if is_over.is_set():
                    return
            put(None)
        except BaseException as error:  # raised again by the consumer
            put(error)

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        is_over.set()
        thread.join()


def shuffled_batches(tables: Iterable[pa.Table], batch_size: int, rng: np.random.Generator) -> Iterator[pa.Table]:
    """Yields batches of `batch_size` rows, drawn without replacement from windows of rows. Drops the last rows if they
    do not fill a batch.

    It replaces Ray's local shuffle buffer, which emits short batches in mid-stream. The number of batches then differs
    between workers, and DDP waits forever (ray-project/ray#66085).
    """
    window: list[pa.Table] = []
    for table in tables:
        window.append(table)
        if sum(map(len, window)) >= SHUFFLE_WINDOW:
            shuffled = _shuffle(window, rng)
            whole = len(shuffled) - len(shuffled) % batch_size
            yield from (shuffled.slice(i, batch_size) for i in range(0, whole, batch_size))
            window = [shuffled.slice(whole)]
    if window:
        shuffled = _shuffle(window, rng)
        yield from (shuffled.slice(i, batch_size) for i in range(0, len(shuffled) - batch_size + 1, batch_size))


def _shuffle(tables: list[pa.Table], rng: np.random.Generator) -> pa.Table:
    table = pa.concat_tables(tables)
    return table.take(rng.permutation(len(table)))
