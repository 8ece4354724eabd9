"""Line images in, texts with confidences out; knows no Ray."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from math import inf
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hwr_ray.decoding.alignment import ctc_log_probs
from hwr_ray.decoding.ctc import ctc_losses, greedy_labels
from hwr_ray.decoding.decoder import Reading, calibrated, lexicon_for, with_characters
from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.images.lines import UndecodableImageError, decode, fit, grey
from hwr_ray.recognition.bundle import load_bundle
from hwr_ray.recognition.bundle_config import SHIPPED_WORD, bundle_path
from hwr_ray.recognition.runtime import Network
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
    """A bundle, by default the one that comes with the package, that is loaded once and reads images.

    `device` is torch's; so many lines of a batch are read at once; `greedy` leaves the language model out; `names` is a
    file of known names, one a line or `name,count`; so large a share of the texts that need no review is right
    (`precision`, 0 to 1).

    Raises UserError where there is no such bundle, or known names are given and it has no language model to mix them
    into.
    """

    def __init__(
        self,
        bundle: str = SHIPPED_WORD,
        *,
        device: str | torch.device = "cpu",
        batch_size: int = 64,
        greedy: bool = False,
        lexicon: str | None = None,
        precision: float = 0.99,
    ) -> None:
        path = bundle_path(bundle)
        loaded = load_bundle(path)
        self.codec, self.canvas, self.model_id = loaded.codec, loaded.canvas, loaded.model_id
        self.decoding, self.is_greedy = loaded.decoding, greedy or loaded.decoding.language_model is None
        self.lexicon = lexicon_for(path, lexicon, self.codec, is_greedy=self.is_greedy)
        self.review_threshold, _ = self.decoding.review_threshold(precision, greedy=self.is_greedy)
        self.network = Network(loaded, device=device, batch_size=batch_size)
        self._shortcut = cache(lambda: Network(loaded, device=device, batch_size=batch_size, shortcut=True))

    def read(
        self, images: Iterable[np.ndarray | Image.Image], *, num_best: int = 1, characters: bool = False
    ) -> list[Reading]:
        """Readings of images of one line each, of any size, which stay in their order: arrays or Pillow's (see `grey`).

        Each has num_best - 1 alternatives (a greedy reading has none), and its characters where those are asked for.
        Raises TypeError or ValueError for what is no such image.
        """
        lines = [fit(grey(image), self.canvas) for image in images]
        found = self.read_lines(np.stack(lines), num_best=num_best, characters=characters) if lines else []
        return [replace(reading, review_threshold=self.review_threshold) for reading in found]

    def read_files(self, paths: Iterable[str | Path], *, num_best: int = 1, characters: bool = False) -> list[Reading]:
        """The same of image files, by path or URI. Raises UserError, which names the file, where one can't be read."""
        images = [_decoded(str(path)) for path in paths]
        return self.read(images, num_best=num_best, characters=characters)

    def read_lines(self, images: np.ndarray, *, num_best: int = 1, characters: bool = False) -> list[Reading]:
        """Readings, as `read` gives them but without a threshold, of line images (N, H, W) uint8 on the bundle's
        canvas, 255 paper."""
        if not len(images):
            return []
        log_probs = self.network(images)
        if self.is_greedy:
            readings = calibrated(read_log_probs(log_probs, self.codec), self.decoding.greedy_calibration)
        else:
            readings = self.decoding.search(
                log_probs.cpu().numpy(), self.codec, lexicon=self.lexicon, num_best=num_best
            )
        if not characters:
            return readings
        return with_characters(readings, log_probs.cpu().numpy(), self._shortcut()(images).cpu().numpy(), self.codec)

    def compare(self, images: np.ndarray, texts: list[str]) -> list[Comparison]:
        """Each text (N) against the greedy reading, whatever the decoder, of its line image (N, H, W) uint8."""
        return compare_log_probs(self.network(images), self.codec, texts) if len(images) else []


def _decoded(path: str) -> np.ndarray:
    if not storage.is_file(path):
        raise UserError(f"there is no file {path}")
    try:
        return decode(storage.read_bytes(path))
    except UndecodableImageError as error:
        raise UserError(f"{path} can't be read: {error}") from error


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
