"""An array in memory that all workers of a node share."""

import errno
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import ray.train
import ray.train.collective

from hwr_ray.errors import UserError


@dataclass(frozen=True)
class SharedFile:
    """A temporary file that one worker of a node writes and all workers of the node map into memory."""

    path: Path
    is_writer: bool
    barrier: Callable[[], None]
    """Returns once all workers of the run have called it."""

    @classmethod
    def of_node(cls) -> "SharedFile":
        """Returns the file of this worker's node. All workers of the run must call it."""
        name = ray.train.collective.broadcast_from_rank_zero(f"hwr_ray-{uuid4().hex}")
        is_writer = ray.train.get_context().get_local_rank() == 0
        return cls(Path(tempfile.gettempdir()) / name, is_writer, ray.train.collective.barrier)

    def exchange(self, parts: Iterable[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        """Returns a uint8 array of the bytes of `parts`, which only the writer reads. All workers must call it.

        The file is deleted once all workers have mapped it. Its memory lasts as long as their arrays. Raises UserError
        if no space is left.
        """
        try:
            if self.is_writer:
                self._write(parts)
            self.barrier()
            array = np.memmap(
                self.path, np.uint8, mode="c", shape=shape
            )  # copy on write: torch warns of read-only arrays
            self.barrier()
        finally:
            if self.is_writer:
                self.path.unlink(missing_ok=True)
        return array

    def _write(self, parts: Iterable[np.ndarray]) -> None:
        try:
            with self.path.open("xb") as file:
                for part in parts:
                    file.write(part.tobytes())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            folder = self.path.parent
            raise UserError(
                f"no space is left for the training lines in {folder}: free some, or pass --stream"
            ) from error
