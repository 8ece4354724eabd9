"""The checkpoints and epoch metrics in a training run's folder, from which the run resumes."""

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
"""File name of a checkpoint: the steps done and the first 16 hex digits of its SHA-256."""


class Checkpoints:
    """The checkpoints in a folder or at a URI. One process writes them.

    They replace those of Ray Train, whose list of checkpoints is rewritten in place, has no digests and is bound to one
    version of Ray. With Ray Train, a run can't be resumed at all if the list or any checkpoint is damaged.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def save(self, data: bytes, *, step: int) -> None:
        """Writes the state after `step` steps."""
        storage.write_bytes(storage.join(self.folder, f"{step:010d}-{sha256(data).hexdigest()[:16]}.pt"), data)

    def newest(self) -> str | None:
        """Returns the name of the newest intact checkpoint, or None. Logs a warning for each damaged one."""
        for name in reversed(self._names()):
            if sha256(self.read(name)).hexdigest().startswith(_parts(name)[1]):
                return name
            log.warning("the checkpoint %s is damaged: trying the previous one", storage.join(self.folder, name))
        return None

    def read(self, name: str) -> bytes:
        return storage.read_bytes(storage.join(self.folder, name))

    def last_step(self) -> int:
        """Returns the steps done at the newest checkpoint, intact or not; 0 if there is none."""
        return max((_parts(name)[0] for name in self._names()), default=0)

    def drop_after(self, name: str | None) -> None:
        """Deletes the damaged checkpoints after `name` (all if None), which `prune` would otherwise count as newest."""
        for other in self._names():
            if name is None or other > name:
                storage.delete_file(storage.join(self.folder, other))

    def prune(self, keep: int) -> None:
        """Deletes all checkpoints except the `keep` newest."""
        for name in self._names()[:-keep]:
            storage.delete_file(storage.join(self.folder, name))

    def _names(self) -> list[str]:
        return sorted(name for name in storage.list_sizes(self.folder) if NAME.fullmatch(name))


def _parts(name: str) -> tuple[int, str]:
    step, digest = name.removesuffix(".pt").split("-")
    return int(step), digest


class Background:
    """Runs functions in another thread, one after the other. The next call raises the exception of the last one.

    Each function gets its own thread. torch keeps OpenMP threads for every thread that ever computed; if these
    outnumber the CPUs, all of them sleep instead of spinning between operations, which takes four times as long.
    """

    def __init__(self) -> None:
        self._last: Future[Any] | None = None

    def do(self, work: Callable[[], Any]) -> None:
        """Waits for the previous function, so that they never pile up, and starts `work`."""
        self.wait()
        executor = ThreadPoolExecutor(max_workers=1)
        self._last = executor.submit(work)
        executor.shutdown(wait=False)  # the thread ends with the work

    def wait(self) -> None:
        """Waits for the last function."""
        if self._last:
            self._last.result()


def check_fresh(out: str) -> None:
    """Raises UserError if a run without a checkpoint has epochs: starting over would replace its best bundle."""
    if history := read_history(out):
        raise UserError(f"{out} has {len(history)} epochs but no intact checkpoint to resume: choose another --out")


def read_history(out: str) -> list[dict[str, Any]]:
    """Returns the metrics of a run's completed epochs, from its metrics.jsonl."""
    path = storage.join(out, METRICS)
    lines = storage.read_bytes(path).decode().splitlines() if storage.is_file(path) else []
    return [json.loads(line) for line in lines]
