"""Latches: a worker stops at a chosen point of its work, and waits until a test has killed it or lets it go on."""

import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

SECONDS = 300
"""After which a worker goes on by itself: its test has failed."""


@dataclass(frozen=True)
class Latch:
    """Holds the first process that comes to it."""

    folder: Path

    @property
    def reached(self) -> Path:
        return self.folder / "reached"

    @property
    def released(self) -> Path:
        return self.folder / "released"

    def hold(self) -> None:
        """Waits at the latch, unless another process came to it before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with (self.folder / "taken").open("x"):
                pass
        except FileExistsError:
            return
        (self.folder / "reached.partial").write_text(str(os.getpid()))
        (self.folder / "reached.partial").rename(self.reached)
        deadline = time.monotonic() + SECONDS
        while not self.released.exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    def is_reached(self) -> bool:
        return self.reached.exists()

    def pid(self) -> int:
        """The process that waits."""
        return int(self.reached.read_text())

    def release(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.released.touch()


def training(*stops: tuple[int, Path]) -> Any:
    """What a driver is to run on its training workers: the loop in float32, one thread each. After so many steps there
    is a checkpoint, and before the next one the first worker waits at a latch."""
    return partial(_train, stops=stops)


def _train(config: dict[str, Any], *, stops: tuple[tuple[int, Path], ...]) -> dict[str, str]:
    from hwr_ray.training import loop as train_loop
    from hwr_ray.training.checkpoint_trigger import CheckpointTrigger

    def poll(self: Any, lines_done: int) -> tuple[bool, bool]:
        _, stop = poll_as_it_is(self, lines_done)
        return lines_done in {step * config["settings"].batch_size for step, _ in stops}, stop

    def step_on(worker: Any, *args: Any) -> Any:
        for step, folder in stops:
            if worker.state.step == step:
                worker.background.wait()  # the checkpoint of the step before is written
                Latch(folder).hold()
        return step_as_it_is(worker, *args)

    poll_as_it_is, step_as_it_is = CheckpointTrigger.poll, train_loop.step_on
    with (
        patch("hwr_ray.training.checkpoint_trigger.CheckpointTrigger.poll", poll),
        patch("hwr_ray.training.loop.step_on", step_on),
        patch("hwr_ray.training.step.has_bfloat16", lambda device: False),
        patch("hwr_ray.training.worker_state.threads_among", lambda num_processes: 1),
        patch("hwr_ray.training.checkpoint_trigger.POLL_SECONDS", 0.0),
    ):
        return train_loop.train_loop_per_worker(config)


def loading(*stops: tuple[int, Path]) -> Any:
    """What a driver is to have its workers load the partitions of a transcription with: once so many partitions are
    stored, the first worker waits at a latch."""
    return partial(_load, stops=stops)


def _load(table: Any, *, stops: tuple[tuple[int, Path], ...], out: str, **arguments: Any) -> Any:
    from hwr_ray.files import storage
    from hwr_ray.transcription.partitions import OUTPUTS
    from hwr_ray.transcription.transcripts import load_partition

    for number, folder in stops:
        if len(storage.list_sizes(storage.join(out, OUTPUTS))) >= number:
            Latch(folder).hold()
    return load_partition(table, out=out, **arguments)
