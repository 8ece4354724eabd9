"""Folds: shares of the training lines, each left out by one training run and later read by the model that it made."""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import pyarrow as pa


def fold_of(line: str, num_folds: int) -> int:
    """The fold of a line, 0 to num_folds - 1, by the hash of its id: the same in every run and whatever lies beside it.

    Not the hash that deals a CSV's lines out to the splits: that one's training lines share its lower four fifths.
    """
    digest = blake2b(f"fold of {line}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % num_folds


def folds_of(lines: Iterable[str], num_folds: int) -> np.ndarray:
    """The fold of each line (N) int64."""
    return np.array([fold_of(line, num_folds) for line in lines], np.int64)


def leave_out(table: pa.Table, *, fold: int, num_folds: int) -> pa.Table:
    """The rows whose `id` lies in the other folds."""
    return table.filter(pa.array(folds_of(table["id"].to_pylist(), num_folds) != fold))
