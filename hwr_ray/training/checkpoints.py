"""What a training run's folder holds to go on from: its checkpoints, each whole or known not to be, and its epochs."""

import json
import logging
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from typing import Any

from hwr_ray.errors import UserError
from hwr_ray.files import storage

log = logging.getLogger(__name__)

CHECKPOINTS, METRICS = "checkpoints", "metrics.jsonl"

NAME = re.compile(r"(\d+)-([0-9a-f]{16})\.pt")
"""Of a checkpoint: the steps done, and the beginning of its SHA-256."""


class Checkpoints:
    """The checkpoints in a folder or at a URI. One process writes them.

    Not Ray Train's own: its list of checkpoints is rewritten in place, names no digest and is bound to one version of
    Ray, and a run whose list or any checkpoint is damaged can't be resumed at all.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def save(self, data: bytes, *, step: int) -> None:
        """Writes the state after so many steps."""
        storage.write_bytes(storage.join(self.folder, f"{step:010d}-{sha256(data).hexdigest()[:16]}.pt"), data)

    def newest(self) -> str | None:
        """Name of the last checkpoint that is whole, or None; damaged ones are named in a warning."""
        for name in reversed(self._names()):
            if sha256(self.read(name)).hexdigest().startswith(_parts(name)[1]):
                return name
            log.warning("the checkpoint %s is damaged: going on from the one before", storage.join(self.folder, name))
        return None

    def read(self, name: str) -> bytes:
        return storage.read_bytes(storage.join(self.folder, name))

    def last_step(self) -> int:
        """Steps done at the last checkpoint, whether it is whole or not; 0 without one."""
        return max((_parts(name)[0] for name in self._names()), default=0)

    def drop_after(self, name: str | None) -> None:
        """Deletes what comes after a checkpoint, all of it damaged, lest it count among the newest."""
        for other in self._names():
            if name is None or other > name:
                storage.delete_file(storage.join(self.folder, other))

    def prune(self, keep: int, *, best: int | None = None) -> None:
        """Deletes all but the `keep` newest and that after step `best`."""
        for name in self._names()[:-keep]:
            if _parts(name)[0] != best:
                storage.delete_file(storage.join(self.folder, name))

    def _names(self) -> list[str]:
        return sorted(name for name in storage.list_sizes(self.folder) if NAME.fullmatch(name))


def _parts(name: str) -> tuple[int, str]:
    step, digest = name.removesuffix(".pt").split("-")
    return int(step), digest


class Background:
    """Does work in another thread, in the order it is given. What goes wrong is raised at the next turn.

    Each piece of work gets a thread of its own: torch keeps OpenMP threads for every thread that once computed, and
    where those are more than the CPUs, they all sleep instead of spin between operations, at a quarter of the speed.
    """

    def __init__(self) -> None:
        self._last: Future[Any] | None = None

    def do(self, work: Callable[[], Any]) -> None:
        """Waits for the work before, if that still goes on: it never piles up."""
        self.wait()
        with_thread = ThreadPoolExecutor(max_workers=1)
        self._last = with_thread.submit(work)
        with_thread.shutdown(wait=False)  # the thread ends with the work

    def wait(self) -> None:
        """Until all is done."""
        if self._last:
            self._last.result()


def check_fresh(out: str) -> None:
    """Raises UserError where a run without a checkpoint has epochs: a new first one would replace its best bundle."""
    if history := read_history(out):
        raise UserError(f"{out} has {len(history)} epochs and no whole checkpoint to go on from: name another --out")


def read_history(out: str) -> list[dict[str, Any]]:
    """The metrics of a run's epochs so far, from its metrics.jsonl."""
    path = storage.join(out, METRICS)
    lines = storage.read_bytes(path).decode().splitlines() if storage.is_file(path) else []
    return [json.loads(line) for line in lines]
