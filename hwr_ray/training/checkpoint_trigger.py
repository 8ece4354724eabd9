"""When the workers of a run look up from their work: whether a node will go, whether to save, whether to stop."""

import time
from collections.abc import Iterator
from typing import Any, TypeVar

import ray
import ray.train
import torch
import torch.distributed as dist

from hwr_ray.training.dataloader import Share

LOOK_SECONDS = 2.0
"""Between two looks."""
NOTICE_SECONDS = 15.0
"""Between two checkpoints while a node says that it will go."""

Item = TypeVar("Item")


class Stopwatch:
    """Seconds since the last lap, and those of them that were spent waiting."""

    def __init__(self) -> None:
        self.start, self.waited = time.monotonic(), 0.0

    def waiting(self, items: Iterator[Item]) -> Item | None:
        """The next item, or None after the last."""
        start = time.monotonic()
        item = next(items, None)
        self.waited += time.monotonic() - start
        return item

    def lap(self) -> tuple[float, float]:
        now = time.monotonic()
        seconds, waited = now - self.start, self.waited
        self.start, self.waited = now, 0.0
        return seconds, waited


class Lookout:
    """Looks up after the same step on all workers, often enough for a notice of some seconds."""

    def __init__(self, share: Share, device: torch.device, board: Any, *, minutes: float) -> None:
        self.share, self.device, self.board, self.seconds = share, device, board, 60 * minutes
        self.saved = time.monotonic()
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """The first step is followed by a look: there may be few of them, and much work between epochs."""
        self.looked, self.gap, self.left = time.monotonic(), 1, 1

    def tell(self, what: dict[str, Any]) -> bool:
        """Tells the process that started the run, if it follows; returns whether it asks the run to stop."""
        return self.board is not None and ray.get(self.board.tell.remote(what))

    def look(self, lines: int) -> tuple[bool, bool]:
        """Whether to save now, and whether to stop, after a step with which so many lines of the run are done."""
        self.left -= 1
        if self.left:
            return False, False
        now = time.monotonic()
        will_go = ray.train.get_preemption_info() is not None  # the same on all workers, which wait for one another
        save = stop = False
        gap = 1
        if self.share.rank == 0:
            save = now - self.saved > (min(self.seconds, NOTICE_SECONDS) if will_go else self.seconds)
            stop = self.tell({"lines": lines})
            gap = max(1, round(LOOK_SECONDS * self.gap / max(now - self.looked, 1e-3)))
        decided = torch.tensor([save, stop, gap], device=self.device)
        if self.share.world_size > 1:
            dist.broadcast(decided, 0)
        save, stop, self.gap = bool(decided[0]), bool(decided[1]), int(decided[2])
        self.left, self.looked = self.gap, now
        if save:
            self.saved = now
        return save, stop
