"""Recognition of line images as texts with confidences; does not depend on Ray."""

from collections.abc import Iterable, Iterator, Sequence
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
from hwr_ray.images.decode import UndecodableImageError, decode, grey
from hwr_ray.images.lines import resized
from hwr_ray.images.reader import Line, line_of
from hwr_ray.recognition.bundle import load_bundle
from hwr_ray.recognition.bundle_config import SHIPPED_WORD, bundle_path, check_voters, votes_of
from hwr_ray.recognition.runtime import Network
from hwr_ray.text.codec import Codec

DOUBTFUL, READABLE = 0.75, 0.8
"""Confidence per character below which a line is read again, rotated by 180 degrees, and above which this second
reading shows that it is upside down (benchmarks/results/warnings.json)."""

VIEW_SIZES = (0.92, 1.08)
"""Sizes, relative to the image, of the views that test-time augmentation adds."""


@dataclass(frozen=True)
class Comparison:
    """A text compared with the model's greedy reading of its line image."""

    reading: Reading
    prediction_log_prob: float
    """Natural logarithm of the probability of the reading's text."""
    text_log_prob: float
    """Natural logarithm of the probability of the text; -inf if the model cannot output it."""


class Recognizer:
    """Recognizes line images with a bundle, by default the one that comes with the package.

    The bundle is loaded once. `device` is a torch device, and `batch_size` the number of lines per batch. `greedy`
    disables the language model. `lexicon` is a file of known names, one per line, as `name` or `name,count`.
    `precision` is the share of correct texts, 0 to 1, to reach among those that need no review. `invert` turns light
    writing on a dark background into dark on light; by default if the bundle's training lines were inverted so.

    `voters` are more bundles, with the same canvas and charset, that vote on the texts; the first bundle has the
    language model and the calibration. With `test_time_augmentation` every bundle also reads each line 8 % smaller and
    larger, and these readings vote, too.

    Raises UserError if a bundle does not exist, if a voter does not match the first bundle, or if a lexicon is given or
    readings vote, but decoding uses no language model.
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
        invert: bool | None = None,
        voters: Sequence[str] = (),
        test_time_augmentation: bool = False,
    ) -> None:
        path = bundle_path(bundle)
        loaded, others = load_bundle(path), [load_bundle(bundle_path(voter)) for voter in voters]
        self.codec, self.canvas = loaded.codec, loaded.canvas
        votes = votes_of(others, test_time_augmentation=test_time_augmentation)
        self.model_id = "+".join([loaded.model_id, *votes])
        self.usual_warnings, self.invert = loaded.usual_warnings, loaded.invert if invert is None else invert
        self.decoding, self.is_greedy = loaded.decoding, greedy or loaded.decoding.language_model is None
        self.lexicon = lexicon_for(path, lexicon, self.codec, is_greedy=self.is_greedy)
        check_voters(loaded, dict(zip(voters, others, strict=True)))
        if self.is_greedy and (voters or test_time_augmentation):
            raise UserError(f"votes need a language model, but {path} is decoded greedily: omit the voters and views")
        self.review_threshold, _ = self.decoding.review_threshold(precision, greedy=self.is_greedy)
        self.network = Network(loaded, device=device, batch_size=batch_size)
        self.voters = [Network(other, device=device, batch_size=batch_size) for other in others]
        self.view_sizes = VIEW_SIZES if test_time_augmentation else ()
        self._shortcut = cache(lambda: Network(loaded, device=device, batch_size=batch_size, shortcut=True))

    def read(
        self, images: Iterable[np.ndarray | Image.Image], *, num_best: int = 1, characters: bool = False
    ) -> list[Reading]:
        """Returns a reading for each image of a single line, in order.

        Images are numpy arrays or Pillow images of any size (see `grey`). Each reading has up to num_best - 1
        alternatives (none if decoding is greedy), and its characters if requested. Raises TypeError or ValueError for
        an unsupported image.
        """
        lines = [line_of(grey(image), self.canvas, invert=self.invert) for image in images]
        return self.read_fitted(lines, num_best=num_best, characters=characters)

    def read_files(self, paths: Iterable[str | Path], *, num_best: int = 1, characters: bool = False) -> list[Reading]:
        """Returns a reading for each image file, by path or URI. Raises UserError naming a file that can't be read, and
        TypeError for a single path."""
        if isinstance(paths, str | Path):
            raise TypeError(f"read_files takes a list of paths: pass [{str(paths)!r}]")
        images = [_decoded(str(path)) for path in paths]
        return self.read(images, num_best=num_best, characters=characters)

    def read_fitted(self, lines: Sequence[Line], *, num_best: int = 1, characters: bool = False) -> list[Reading]:
        """Returns readings as `read` does, for those of the lines that have an image."""
        images = [line.image for line in lines if line.image is not None]
        if not images:
            return []
        warnings = [line.warning for line in lines if line.image is not None]
        readings = self.read_lines(np.stack(images), warnings=warnings, num_best=num_best, characters=characters)
        return [replace(reading, review_threshold=self.review_threshold) for reading in readings]

    def read_lines(
        self,
        images: np.ndarray,
        *,
        warnings: Sequence[str | None] | None = None,
        num_best: int = 1,
        characters: bool = False,
    ) -> list[Reading]:
        """Returns readings as `read` does, but without a review threshold.

        `images` is (N, H, W) uint8 on the bundle's canvas, 255 paper. `warnings` (N) are those of the images. A reading
        keeps its image's warning unless that is usual for the bundle, or gets `upside_down`. Without `warnings`
        readings have none.
        """
        if not len(images):
            return []
        log_probs = self.network(images)
        if self.is_greedy:
            readings = calibrated(read_log_probs(log_probs, self.codec), self.decoding.greedy_calibration)
        else:
            votes = [votes.cpu().numpy() for votes in self._votes(images)]
            readings = self.decoding.search(
                log_probs.cpu().numpy(), self.codec, voters=votes, lexicon=self.lexicon, num_best=num_best
            )
        if warnings is not None:
            found = zip(readings, self._warnings(images, log_probs, warnings), strict=True)
            readings = [replace(reading, warning=warning) if warning else reading for reading, warning in found]
        if not characters:
            return readings
        return with_characters(readings, log_probs.cpu().numpy(), self._shortcut()(images).cpu().numpy(), self.codec)

    def _votes(self, images: np.ndarray) -> Iterator[Tensor]:
        """Yields the log-probabilities (N, T, C) of the voters, and those of all bundles for the resized lines."""
        yield from (voter(images) for voter in self.voters)
        for size in self.view_sizes:
            view = resized(images, size)
            yield from (network(view) for network in (self.network, *self.voters))

    def _warnings(self, images: np.ndarray, log_probs: Tensor, warnings: Sequence[str | None]) -> list[str | None]:
        """Returns the warning of each image unless it is usual, or `upside_down` if a rotation helps the reading."""
        found = [None if warning in self.usual_warnings else warning for warning in warnings]
        confidences = confidence_per_character(log_probs)
        doubtful = [n for n, warning in enumerate(found) if warning is None and confidences[n] < DOUBTFUL]
        if doubtful:
            rotated = confidence_per_character(self.network(images[doubtful, ::-1, ::-1]))
            for n, confidence in zip(doubtful, rotated, strict=True):
                found[n] = "upside_down" if confidence > READABLE else None
        return found

    def compare(self, images: np.ndarray, texts: list[str]) -> list[Comparison]:
        """Compares each text (N) with the greedy reading of its image (N, H, W) uint8, whatever the decoder."""
        return compare_log_probs(self.network(images), self.codec, texts) if len(images) else []


def _decoded(path: str) -> np.ndarray:
    if not storage.is_file(path):
        raise UserError(f"there is no file {path}")
    try:
        return decode(storage.read_bytes(path))
    except UndecodableImageError as error:
        raise UserError(f"{path} can't be read: {error}") from error


def confidence_per_character(log_probs: Tensor) -> np.ndarray:
    """Returns the probability (N) of the most probable path of each line, as a geometric mean over its characters;
    `log_probs` is (N, T, C)."""
    best, classes = log_probs.max(-1)
    _, lengths = greedy_labels(classes.cpu().numpy())
    return np.exp(best.sum(-1).cpu().numpy() / lengths.clip(min=1))


def compare_log_probs(log_probs: Tensor, codec: Codec, texts: list[str]) -> list[Comparison]:
    """Compares texts (N) with the greedy readings of lines; `log_probs` is (N, T, C) float32."""
    readings = read_log_probs(log_probs, codec)
    predictions = text_log_probs(log_probs, codec, [reading.text for reading in readings])
    lines = zip(readings, texts, predictions, text_log_probs(log_probs, codec, texts), strict=True)
    # Equal texts get the same value, to the last bit.
    return [Comparison(reading, p, p if text == reading.text else q) for reading, text, p, q in lines]


def read_log_probs(log_probs: Tensor, codec: Codec) -> list[Reading]:
    """Returns the greedy readings (N): the collapsed most probable path; `log_probs` is (N, T, C) float32."""
    labels, lengths = greedy_labels(log_probs.argmax(-1).cpu().numpy())
    probs = np.exp(log_probs.cpu().numpy(), dtype=np.float64)
    # Takes a third of the time of ctc_losses on a CPU; text_log_probs needs those for nearly impossible texts.
    confidences = np.exp(ctc_log_probs(probs, labels[:, None], lengths[:, None])[:, 0]).clip(max=1)
    lines = zip(labels.tolist(), lengths.tolist(), confidences.tolist(), strict=True)
    return [Reading(codec.decode(line[:length]), confidence) for line, length, confidence in lines]


def text_log_probs(log_probs: Tensor, codec: Codec, texts: list[str]) -> list[float]:
    """Returns the log-probability (N) of each line's text, summed over alignments; `log_probs` is (N, T, C) float32.

    It is -inf for a text that needs more than T frames or contains a character outside the charset.
    """
    can_spell = [not codec.unknown(text) for text in texts]
    labels = [codec.encode(text) if known else [] for text, known in zip(texts, can_spell, strict=True)]
    losses = ctc_losses(log_probs, labels).tolist()
    return [-loss if known else -inf for loss, known in zip(losses, can_spell, strict=True)]
