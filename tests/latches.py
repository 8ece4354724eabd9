"""Latches, which hold a worker at a chosen point of its work until a test kills or releases it."""

import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

SECONDS = 300
"""Seconds after which a held worker continues by itself, because its test has failed."""


@dataclass(frozen=True)
class Latch:
    """Holds the first process that reaches it."""

    folder: Path

    @property
    def reached(self) -> Path:
        return self.folder / "reached"

    @property
    def released(self) -> Path:
        return self.folder / "released"

    def hold(self) -> None:
        """Waits at the latch, unless another process reached it first."""
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
        """Returns the id of the waiting process."""
        return int(self.reached.read_text())

    def release(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.released.touch()


def training(*stops: tuple[int, Path]) -> Any:
    """Returns the training loop with latches, for a driver to run on its workers in float32 with one thread each.

    `stops` are (step, latch folder). A checkpoint follows each of these steps, and the first worker to begin the next
    step waits at the latch.
    """
    return partial(_train, stops=stops)


def _train(config: dict[str, Any], *, stops: tuple[tuple[int, Path], ...]) -> dict[str, str]:
    from hwr_ray.training import loop as train_loop
    from hwr_ray.training.checkpoint_trigger import CheckpointTrigger

    def poll(self: Any, lines_done: int) -> tuple[bool, bool]:
        _, stop = original_poll(self, lines_done)
        return lines_done in {step * config["settings"].batch_size for step, _ in stops}, stop

    def step_on(worker: Any, *args: Any) -> Any:
        for step, folder in stops:
            if worker.state.step == step:
                worker.background.wait()  # until the previous step's checkpoint is written
                Latch(folder).hold()
        return original_step_on(worker, *args)

    original_poll, original_step_on = CheckpointTrigger.poll, train_loop.step_on
    with (
        patch("hwr_ray.training.checkpoint_trigger.CheckpointTrigger.poll", poll),
        patch("hwr_ray.training.loop.step_on", step_on),
        patch("hwr_ray.training.step.has_bfloat16", lambda device: False),
        patch("hwr_ray.training.worker_state.threads_among", lambda num_processes: 1),
        patch("hwr_ray.training.checkpoint_trigger.POLL_SECONDS", 0.0),
    ):
        return train_loop.train_loop_per_worker(config)


def loading(*stops: tuple[int, Path]) -> Any:
    """Returns `load_partition` with latches, for the workers of a transcription.

    `stops` are (number, latch folder). Once `number` partitions are stored, the first worker waits at the latch.
    """
    return partial(_load, stops=stops)


def _load(table: Any, *, stops: tuple[tuple[int, Path], ...], out: str, **arguments: Any) -> Any:
    from hwr_ray.files import storage
    from hwr_ray.transcription.partitions import OUTPUTS
    from hwr_ray.transcription.transcripts import load_partition

    for number, folder in stops:
        if len(storage.list_sizes(storage.join(out, OUTPUTS))) >= number:
            Latch(folder).hold()
    return load_partition(table, out=out, **arguments)
