"""CTC probability of a text and its most probable alignment, compiled by numba."""

import numba
import numpy as np

from hwr_ray.text.codec import BLANK

TINY = np.finfo(np.float64).tiny
"""Sums of probabilities below this count as 0, because their reciprocal can overflow."""


def compiled(function):
    """Returns a function that numba compiles at its first call and caches on disk if it finds a writable folder.

    A compiled function may only call compiled functions of its own module: numba does not notice that a cached
    function is older than a change in another file.
    """
    try:
        return numba.njit(function, cache=True, nogil=True)
    except RuntimeError:  # neither the package's folder nor the user's is writable: each process compiles again
        return numba.njit(function, nogil=True)


def ctc_log_probs(probs: np.ndarray, labels: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the log-probability (N, K) float64 of K texts per line, summed over alignments (Graves et al. 2006, 4.1).

    `probs` is (N, T, C) float64, `labels` (N, K, L) and `lengths` (N, K). A negative length marks a missing text, whose
    log-probability is -inf.
    """
    total = np.full(lengths.shape, -np.inf)
    _forward(probs, labels.astype(np.int32), lengths.astype(np.int32), total)
    return total


def align(log_probs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the frames of each label in the most probable alignment of a line (T, C) with its labels (L).

    The result is (L, 2) int32 in ascending order: the first frame and the one after the last. Raises ValueError if the
    line has too few frames for the labels.
    """
    frames = np.zeros((len(labels), 2), np.int32)
    if len(labels) and not _viterbi(log_probs, np.asarray(labels, np.int32), frames):
        raise ValueError(f"{len(log_probs)} frames are too few for {len(labels)} labels")
    return frames


@compiled
def _viterbi(log_probs, labels, frames):
    """Fills `frames` (L, 2) and returns whether an alignment exists. Even positions are blanks, odd ones labels."""
    num_frames, positions = log_probs.shape[0], 2 * len(labels) + 1
    best = np.full(positions, -np.inf)
    came_from = np.zeros((num_frames, positions), np.int8)  # steps back by 0, 1 or 2 positions
    for t in range(num_frames):
        for s in range(positions - 1, -1, -1):
            score, step = best[s], 0
            if t == 0 and s < 2:
                score = 0.0
            if s > 0 and best[s - 1] > score:
                score, step = best[s - 1], 1
            if s % 2 == 1 and s > 1 and labels[s // 2] != labels[s // 2 - 1] and best[s - 2] > score:
                score, step = best[s - 2], 2
            best[s] = score + log_probs[t, labels[s // 2] if s % 2 == 1 else BLANK]
            came_from[t, s] = step
    s = positions - 1 if best[positions - 1] >= best[positions - 2] else positions - 2
    if best[s] == -np.inf:
        return False
    for t in range(num_frames - 1, -1, -1):
        if s % 2 == 1:
            frames[s // 2, 0] = t
            frames[s // 2, 1] = max(frames[s // 2, 1], t + 1)
        s -= came_from[t, s]
    return True


@compiled
def _forward(probs, labels, lengths, total):
    """Fills `total` (N, K) with log-probabilities."""
    symbols, buffers = np.empty(2 * labels.shape[2] + 1, np.int32), np.empty((3, 2 * labels.shape[2] + 1))
    for n in range(lengths.shape[0]):
        for k in range(lengths.shape[1]):
            if lengths[n, k] >= 0:
                total[n, k] = _log_prob(probs[n], labels[n, k, : lengths[n, k]], symbols, buffers)


@compiled
def _log_prob(probs, labels, symbols, buffers):
    """Returns the log-probability of the labels of a text given a line (T, C).

    `symbols` and `buffers` are workspace with one entry per position of the text, blanks at the even ones: its class,
    its probability mass before and after a frame, and 1 if paths may skip the position before it. The mass is scaled
    to a sum of 1 after each frame.
    """
    positions = 2 * len(labels) + 1
    forward, after, may_skip = buffers[0], buffers[1], buffers[2]
    for s in range(positions):
        forward[s] = 0.0
        symbols[s] = labels[s // 2] if s % 2 == 1 else BLANK
        may_skip[s] = 1.0 if s > 1 and symbols[s] != BLANK and symbols[s] != symbols[s - 2] else 0.0
    forward[0] = 1.0  # before the first frame, so that a path can start at position 0 or 1
    log_scale = 0.0
    for t in range(probs.shape[0]):
        total = 0.0
        for s in range(positions):
            mass = forward[s]
            if s > 0:
                mass += forward[s - 1]
            if s > 1:
                mass += may_skip[s] * forward[s - 2]
            after[s] = mass * probs[t, symbols[s]]
            total += after[s]
        if total < TINY:
            return -np.inf
        scale = 1 / total
        for s in range(positions):
            after[s] *= scale
        forward, after = after, forward
        log_scale += np.log(total)
    end = forward[positions - 1] + (forward[positions - 2] if positions > 1 else 0.0)
    return np.log(end) + log_scale if end > 0 else -np.inf
