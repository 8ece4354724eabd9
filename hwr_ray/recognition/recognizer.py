"""Line images in, texts with confidences out; knows no Ray."""

from dataclasses import dataclass
from functools import cache
from math import inf

import numpy as np
import torch
from torch import Tensor

from hwr_ray.decoding.ctc import ctc_log_probs, ctc_losses, greedy_labels
from hwr_ray.decoding.decoder import Reading, calibrated, names_for, with_characters
from hwr_ray.model.crnn import CRNN
from hwr_ray.recognition.bundle import load_bundle
from hwr_ray.recognition.runtime import Network, log_probs_of
from hwr_ray.text.codec import Codec


@dataclass(frozen=True)
class Comparison:
    """A text against what the model reads greedily in its line image."""

    reading: Reading
    prediction_log_prob: float
    """Natural logarithm of the probability of the reading's text."""
    text_log_prob: float
    """Of the text; -inf where the model has no way to write it."""


class Recognizer:
    """A bundle that is loaded once and reads batches.

    Raises UserError where known names are given and the bundle has no language model to mix them into.
    """

    def __init__(
        self,
        bundle_path: str,
        *,
        device: str | torch.device = "cpu",
        batch_size: int = 64,
        greedy: bool = False,
        names: str | None = None,
    ) -> None:
        bundle = load_bundle(bundle_path)
        self.codec, self.canvas, self.model_id = bundle.codec, bundle.canvas, bundle.model_id
        self.decoding, self.is_greedy = bundle.decoding, greedy or bundle.decoding.language_model is None
        self.names = names_for(bundle_path, names, self.codec, is_greedy=self.is_greedy)
        self.network = Network(bundle, device=device, batch_size=batch_size)
        self._shortcut = cache(lambda: Network(bundle, device=device, batch_size=batch_size, shortcut=True))

    def read(self, images: np.ndarray, *, num_best: int = 1, characters: bool = False) -> list[Reading]:
        """Readings of line images (N, H, W) uint8 on the bundle's canvas, 255 paper, with num_best - 1 alternatives
        each (a greedy reading has none), and with their characters where those are asked for."""
        if not len(images):
            return []
        log_probs = self.network(images)
        if self.is_greedy:
            readings = calibrated(read_log_probs(log_probs, self.codec), self.decoding.greedy_calibration)
        else:
            readings = self.decoding.search(log_probs.cpu().numpy(), self.codec, names=self.names, num_best=num_best)
        if not characters:
            return readings
        return with_characters(readings, log_probs.cpu().numpy(), self._shortcut()(images).cpu().numpy(), self.codec)

    def compare(self, images: np.ndarray, texts: list[str]) -> list[Comparison]:
        """Each text (N) against the greedy reading, whatever the decoder, of its line image (N, H, W) uint8."""
        return compare_log_probs(self.network(images), self.codec, texts) if len(images) else []


@torch.inference_mode()
def read_batch(model: CRNN, codec: Codec, images: Tensor) -> list[Reading]:
    """Greedy readings of line images (N, H, W) uint8 by a model in evaluation mode."""
    return read_log_probs(log_probs_of(model, images), codec) if len(images) else []


def compare_log_probs(log_probs: Tensor, codec: Codec, texts: list[str]) -> list[Comparison]:
    """Texts (N) against the greedy readings of lines; `log_probs` is (N, T, C) float32."""
    readings = read_log_probs(log_probs, codec)
    predictions = text_log_probs(log_probs, codec, [reading.text for reading in readings])
    lines = zip(readings, texts, predictions, text_log_probs(log_probs, codec, texts), strict=True)
    # The same text has the same probability, to the last bit.
    return [Comparison(read, p, p if text == read.text else q) for read, text, p, q in lines]


def read_log_probs(log_probs: Tensor, codec: Codec) -> list[Reading]:
    """Greedy readings (N): the likeliest class of each frame, collapsed; `log_probs` is (N, T, C) float32."""
    labels, lengths = greedy_labels(log_probs.argmax(-1).cpu().numpy())
    probs = np.exp(log_probs.cpu().numpy(), dtype=np.float64)
    # A third of the time of ctc_losses on a CPU; those hold texts that are all but impossible, too.
    confidences = np.exp(ctc_log_probs(probs, labels[:, None], lengths[:, None])[:, 0]).clip(max=1)
    lines = zip(labels.tolist(), lengths.tolist(), confidences.tolist(), strict=True)
    return [Reading(codec.decode(line[:length]), confidence) for line, length, confidence in lines]


def text_log_probs(log_probs: Tensor, codec: Codec, texts: list[str]) -> list[float]:
    """Log-probability (N) of each line's text, summed over alignments; `log_probs` is (N, T, C) float32.

    -inf for a text that can't be written: it needs more than T frames, or has a character that the charset lacks.
    """
    can_spell = [not codec.unknown(text) for text in texts]
    labels = [codec.encode(text) if known else [] for text, known in zip(texts, can_spell, strict=True)]
    losses = ctc_losses(log_probs, labels).tolist()
    return [-loss if known else -inf for loss, known in zip(losses, can_spell, strict=True)]
