"""The lines of a split as one training worker gets them: its share, shuffled, in batches of one size."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import ray.train

EVAL_BATCH = 128
"""Rows of a table of lines, and of a validation batch."""
SHUFFLE_WINDOW = 16_384
"""Lines that a worker shuffles at a time, on top of the random order of the shards."""
MOST_KEPT_BYTES = 1 << 30
"""A worker's share of a split is read once and kept in memory up to this size: starting Ray Data again costs seconds
an epoch. A larger one is streamed every epoch."""


class ShardLines:
    """A worker's lines of a split as tables of EVAL_BATCH rows, the same number in every pass."""

    def __init__(self, split: str, num_bytes: int) -> None:
        self.split, self.is_small = split, num_bytes <= MOST_KEPT_BYTES
        self.kept: list[pa.Table] | None = None

    def __iter__(self) -> Iterator[pa.Table]:
        if self.kept is not None:
            return iter(self.kept)
        tables = ray.train.get_dataset_shard(self.split).iter_batches(batch_size=EVAL_BATCH, batch_format="pyarrow")
        if self.is_small:
            found = list(tables)
            # Sorted, since Ray's order is that in which its tasks end. That copies, too: Ray's own tables hold on to
            # its object store.
            lines = pa.concat_tables(found).sort_by("id") if found else None
            self.kept = [lines.slice(i, EVAL_BATCH) for i in range(0, len(lines), EVAL_BATCH)] if lines else []
            return iter(self.kept)
        return iter(tables)


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
