"""Line images in, texts with confidences out; knows no Ray."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hwr_ray.bundle import load_bundle
from hwr_ray.codec import BLANK, Codec, collapse
from hwr_ray.model import CRNN, to_ink


@dataclass(frozen=True)
class Reading:
    """What the model reads in one line image."""

    text: str
    confidence: float
    """Probability of the text under the model, summed over all its CTC alignments, 0 to 1."""


class Recognizer:
    """A bundle that is loaded once and reads batches."""

    def __init__(self, bundle_path: str, *, device: str | torch.device = "cpu") -> None:
        bundle = load_bundle(bundle_path)
        self.codec, self.canvas, self.model_id = bundle.codec, bundle.canvas, bundle.model_id
        self.device = torch.device(device)
        self.model = bundle.model.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def read(self, images: np.ndarray) -> list[Reading]:
        """Readings of line images (N, H, W) uint8 on the bundle's canvas, 255 paper."""
        return read_batch(self.model, self.codec, torch.tensor(images, device=self.device))


@torch.inference_mode()
def read_batch(model: CRNN, codec: Codec, images: Tensor) -> list[Reading]:
    """Greedy readings of line images (N, H, W) uint8 by a model in evaluation mode."""
    if not len(images):
        return []
    logits, _ = model(to_ink(images).contiguous(memory_format=torch.channels_last))
    log_probs = logits.float().log_softmax(-1)  # (N, T, C)
    labels = [collapse(path) for path in log_probs.argmax(-1).tolist()]
    confidences = (-ctc_losses(log_probs, labels)).exp().clamp(max=1).tolist()
    return [Reading(codec.decode(line), p) for line, p in zip(labels, confidences, strict=True)]


def ctc_losses(log_probs: Tensor, labels: list[list[int]]) -> Tensor:
    """Negative log-likelihood (N) of each line's labels, summed over alignments (Graves et al. 2006).

    `log_probs` is (N, T, C) float32. Infinite for labels that need more than T frames.
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
