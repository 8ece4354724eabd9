"""Random numbers of a line in an epoch, which depend on nothing else."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np


def line_uniforms(ids: Sequence[str], count: int, *, seed: int, epoch: int) -> np.ndarray:
    """Returns `count` uniform numbers in [0, 1) for each line, (N, count) float32, from (seed, epoch, id) alone.

    The generator is SplitMix64 (Steele, Lea, Flood 2014), seeded with a hash of the three.
    """
    starts = [blake2b(f"{seed}/{epoch}/{line}".encode(), digest_size=8).digest() for line in ids]
    state = np.frombuffer(b"".join(starts), np.uint64)[:, None]
    z = state + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, count + 1, dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)) * 2.0**-24).astype(np.float32)
