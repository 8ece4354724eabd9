"""Connectionist temporal classification (CTC): the loss and greedy decoding; imports no numba."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hwr_ray.text.codec import BLANK, Codec


def greedy_labels(paths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Collapses paths (N, T), the most probable class of each frame, as `codec.collapse` does for a single line.

    Returns labels (N, T) int32, padded with BLANK, and their lengths (N) int32.
    """
    paths = paths.astype(np.int32)
    previous = np.concatenate([np.full_like(paths[:, :1], BLANK), paths[:, :-1]], axis=1)
    is_label = (paths != BLANK) & (paths != previous)
    labels = np.full_like(paths, BLANK)
    labels[np.nonzero(is_label)[0], (is_label.cumsum(1) - 1)[is_label]] = paths[is_label]
    return labels, is_label.sum(1, dtype=np.int32)


def greedy_texts(log_probs: Tensor, codec: Codec) -> list[str]:
    """Returns the text of the most probable path of each line (N); `log_probs` is (N, T, C)."""
    labels, lengths = greedy_labels(log_probs.argmax(-1).cpu().numpy())
    return [codec.decode(line[:length]) for line, length in zip(labels.tolist(), lengths.tolist(), strict=True)]


def ctc_losses(log_probs: Tensor, labels: list[list[int]]) -> Tensor:
    """Returns the negative log-likelihood (N) of each line's labels, summed over alignments (Graves et al. 2006).

    `log_probs` is (N, T, C) float32. The loss is infinite for labels that need more than T frames.
    """
    num_lines, frames, _ = log_probs.shape
    return F.ctc_loss(
        log_probs.transpose(0, 1),
        torch.tensor([label for line in labels for label in line], dtype=torch.long),
        torch.full((num_lines,), frames),
        torch.tensor([len(line) for line in labels]),
        blank=BLANK,
        reduction="none",
    )
