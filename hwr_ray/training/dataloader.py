"""The training lines as one worker gets them: its share of each batch, in a random order."""

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

from hwr_ray.data.dataset import Prepared
from hwr_ray.data.folds import leave_out
from hwr_ray.errors import UserError
from hwr_ray.images.arrow import images_of
from hwr_ray.training.settings import KEPT_SHARE, TrainSettings

READ_BATCH = 256
"""Rows of a table of lines that is read."""
SHUFFLE_WINDOW = 16_384
"""Lines that a worker shuffles at a time where they are streamed, on top of the random order of the shards."""
MOST_KEPT_BYTES = 1 << 30
"""Of validation lines that a worker keeps."""
BATCHES_AHEAD = 4

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
    images: Tensor
    """Line images (N, H, W) uint8, 255 paper, on the worker's device."""
    ids: list[str]
    texts: list[str]


class Lines(Protocol):
    """Where a worker's share of the batches comes from."""

    steps: int
    """Batches of an epoch, the same number for all workers."""

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        """Those of an epoch from step `start` on."""


def training_lines(
    prepared: Prepared,
    settings: TrainSettings,
    shard: WorkerShard,
    device: torch.device,
    *,
    num_lines: int,
    runs_at_once: int,
    may_stream: bool,
) -> Lines:
    """The lines kept on the device where they fit, else in the node's memory, else streamed by Ray Data where the run
    may do so.

    All workers do the same. Called by all of them.
    """
    rooms = [device] if device.type == "cpu" else [device, torch.device("cpu")]
    for room in [] if settings.stream else rooms:
        fits = torch.tensor(
            int(prepared.num_bytes(num_lines) <= KEPT_SHARE * _memory(room, runs_at_once)), device=device
        )
        if shard.world_size > 1:
            dist.all_reduce(fits, dist.ReduceOp.MIN)
        if fits:
            return KeptLines(prepared, settings, shard, device, room=room, num_lines=num_lines)
    if not may_stream:  # on a node with less memory that came later
        return KeptLines(prepared, settings, shard, device, room=rooms[-1], num_lines=num_lines)
    return StreamedLines(prepared, settings, shard, device, num_lines)


def _memory(room: torch.device, runs_at_once: int) -> float:
    """Bytes that are free on a GPU, or this worker's part of what Ray gives its node, which knows of a container's
    limits; as many runs as this one share it."""
    if room.type == "cuda":
        return torch.cuda.mem_get_info(room)[0]
    here = ray.get_runtime_context().get_node_id()
    (node,) = (node for node in ray.nodes() if node["NodeID"] == here)
    return node["Resources"].get("memory", 0) / ray.train.get_context().get_local_world_size() / runs_at_once


class KeptLines:
    """All lines in memory: a batch depends on the seed, the epoch and the step alone, not on the number of workers."""

    def __init__(
        self,
        prepared: Prepared,
        settings: TrainSettings,
        shard: WorkerShard,
        device: torch.device,
        *,
        room: torch.device,
        num_lines: int,
    ) -> None:
        self.seed, self.batch_size, self.shard, self.device = settings.seed, settings.batch_size, shard, device
        canvas = prepared.canvas
        self.images = torch.empty((num_lines, canvas.height, canvas.width), dtype=torch.uint8, device=room)
        self.ids, self.texts = list[str](), list[str]()
        for table in read_train_tables(prepared, settings):
            start, end = len(self.ids), len(self.ids) + len(table)
            self.images[start:end] = torch.tensor(images_of(table, canvas))
            self.ids += table["id"].to_pylist()
            self.texts += table["text"].to_pylist()
        if len(self.ids) != num_lines:
            raise RuntimeError(f"read {len(self.ids)} of {num_lines} training lines of {prepared.path}")
        self.order = np.argsort(self.ids)  # that of the files depends on which was prepared first
        self.steps = num_lines // settings.batch_size

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        order = self.order[np.random.default_rng((self.seed, epoch)).permutation(len(self.order))]
        mine = self.shard.of(self.batch_size)
        for step in range(start, self.steps):
            rows = order[step * self.batch_size : (step + 1) * self.batch_size][mine]
            images = self.images[torch.from_numpy(rows).to(self.images.device)]
            yield Batch(_to_device(images, self.device), [self.ids[i] for i in rows], [self.texts[i] for i in rows])


def read_train_tables(prepared: Prepared, settings: TrainSettings) -> Iterator[pa.Table]:
    """The training lines of the run, some at a time."""
    for table in prepared.tables("train", ["id", "text", "image"], rows=READ_BATCH):
        if settings.fold is not None:
            table = leave_out(table, fold=settings.fold, num_folds=settings.num_folds)
        yield table


def _to_device(images: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda" and not images.is_cuda:
        images = images.pin_memory()
    return images.to(device, non_blocking=True)


class StreamedLines:
    """Lines that Ray Data deals out to the workers anew in each epoch: what is in a batch depends on their number.

    An epoch that goes on in its middle takes as many lines as it still lacks from the beginning of a new order.
    """

    def __init__(
        self, prepared: Prepared, settings: TrainSettings, shard: WorkerShard, device: torch.device, num_lines: int
    ) -> None:
        self.canvas, self.seed, self.shard, self.device = prepared.canvas, settings.seed, shard, device
        mine = shard.of(settings.batch_size)
        self.size = mine.stop - mine.start
        # What the worker with the largest share of a batch can take from its equal share of the lines.
        self.steps = num_lines // shard.world_size // -(-settings.batch_size // shard.world_size)
        if not self.steps:
            raise UserError(
                f"{num_lines} lines give {shard.world_size} workers no whole batch of {settings.batch_size}"
            )

    def batches(self, epoch: int, start: int) -> Iterator[Batch]:
        tables = ray.train.get_dataset_shard("train").iter_batches(batch_size=READ_BATCH, batch_format="pyarrow")
        rng = np.random.default_rng((self.seed, epoch, start, self.shard.rank))
        # Two threads: while one window is drawn from, the next is read.
        shuffled = shuffled_batches(ahead(tables, SHUFFLE_WINDOW // READ_BATCH), self.size, rng)
        found = ahead(shuffled, BATCHES_AHEAD)
        for step in range(start, self.steps):
            table = next(found, None)
            if table is None:
                raise RuntimeError(f"the lines of epoch {epoch} ended at step {step} of {self.steps}")
            images = _to_device(torch.tensor(images_of(table, self.canvas)), self.device)
            yield Batch(images, table["id"].to_pylist(), table["text"].to_pylist())
        found.close()


class ValidationLines:
    """A worker's share of the validation lines, kept in memory where that is small enough."""

    def __init__(self, prepared: Prepared, shard: WorkerShard) -> None:
        self.prepared, self.shard = prepared, shard
        num_bytes = prepared.num_bytes(prepared.num_lines("validation")) // shard.world_size
        self.kept = list(self._read()) if num_bytes <= MOST_KEPT_BYTES else None

    def __iter__(self) -> Iterator[pa.Table]:
        return iter(self.kept) if self.kept is not None else self._read()

    def _read(self) -> Iterator[pa.Table]:
        tables = self.prepared.tables("validation", ["text", "image"], rows=READ_BATCH)
        return islice(tables, self.shard.rank, None, self.shard.world_size)


def ahead(items: Iterable[Item], number: int) -> Generator[Item, None, None]:
    """The items, up to `number` of them fetched ahead by a thread."""
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
        except BaseException as error:  # raised where the items are used
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
    """Batches of `batch_size` rows drawn without replacement from windows of rows; the last rows that fill no batch
    stay out.

    Not Ray's local shuffle buffer: that one emits short batches in mid-stream, with other counts of batches on other
    workers, and DDP then waits for ever (ray-project/ray#66085).
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
