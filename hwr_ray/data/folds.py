"""Folds of the training lines: each is left out of one training run and then recognized by the resulting model."""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np


def fold_of(line: str, num_folds: int) -> int:
    """Returns the fold of a line, 0 to num_folds - 1, from the hash of its id.

    The fold is the same in every run and does not depend on other lines. It is not the hash that assigns the lines of a
    CSV to splits: the training lines cover only the lower four fifths of the range of that hash.
    """
    digest = blake2b(f"fold of {line}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % num_folds


def folds_of(lines: Iterable[str], num_folds: int) -> np.ndarray:
    """Returns the fold of each line, (N) int64."""
    return np.array([fold_of(line, num_folds) for line in lines], np.int64)
