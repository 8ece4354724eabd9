"""Decides, in lockstep across workers, when to save a checkpoint and when to stop."""

import time
from collections.abc import Iterator
from typing import Any, TypeVar

import ray
import ray.train
import torch
import torch.distributed as dist

from hwr_ray.training.dataloader import WorkerShard

POLL_SECONDS = 2.0
"""Seconds between two polls."""
NOTICE_SECONDS = 15.0
"""Seconds between two checkpoints while a node is about to be preempted."""

Item = TypeVar("Item")


class Stopwatch:
    """Measures the seconds since the last lap and how many of them were spent waiting."""

    def __init__(self) -> None:
        self.start, self.waited = time.monotonic(), 0.0

    def waiting(self, items: Iterator[Item]) -> Item | None:
        """Returns the next item, or None after the last."""
        start = time.monotonic()
        item = next(items, None)
        self.waited += time.monotonic() - start
        return item

    def lap(self) -> tuple[float, float]:
        now = time.monotonic()
        seconds, waited = now - self.start, self.waited
        self.start, self.waited = now, 0.0
        return seconds, waited


class CheckpointTrigger:
    """Polls after the same step on all workers, often enough to react to a preemption notice of a few seconds."""

    def __init__(self, shard: WorkerShard, device: torch.device, channel: Any, *, minutes: float) -> None:
        self.shard, self.device, self.channel, self.seconds = shard, device, channel, 60 * minutes
        self.saved = time.monotonic()
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Makes the next step poll, because an epoch may have few steps and validation runs between epochs."""
        self.last_poll, self.interval, self.remaining = time.monotonic(), 1, 1

    def send(self, message: dict[str, Any]) -> bool:
        """Sends a message to the driver if there is a channel. Returns whether the driver asks the run to stop."""
        return self.channel is not None and ray.get(self.channel.send.remote(message))

    def poll(self, lines: int) -> tuple[bool, bool]:
        """Returns whether to save now and whether to stop. `lines` counts the training lines done so far in the run."""
        self.remaining -= 1
        if self.remaining:
            return False, False
        now = time.monotonic()
        is_preempted = ray.train.get_preemption_info() is not None  # synchronizes the workers: the same on all
        save = stop = False
        interval = 1
        if self.shard.rank == 0:
            save = now - self.saved > (min(self.seconds, NOTICE_SECONDS) if is_preempted else self.seconds)
            stop = self.send({"lines": lines})
            interval = max(1, round(POLL_SECONDS * self.interval / max(now - self.last_poll, 1e-3)))
        decided = torch.tensor([save, stop, interval], device=self.device)
        if self.shard.world_size > 1:
            dist.broadcast(decided, 0)
        save, stop, self.interval = bool(decided[0]), bool(decided[1]), int(decided[2])
        self.remaining, self.last_poll = self.interval, now
        if save:
            self.saved = now
        return save, stop
