"""How frames become texts: greedily, or by a beam search with a language model, and how sure the reading is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from hwr_ray.decoding.calibration import Calibration, fit_calibration
from hwr_ray.decoding.lexicon import Lexicon, LexiconMixture, read_lexicon
from hwr_ray.decoding.ngram import LanguageModel
from hwr_ray.errors import UserError
from hwr_ray.images.lines import Canvas
from hwr_ray.model.architecture import WIDTH_STRIDE
from hwr_ray.text.codec import Codec
from hwr_ray.text.metrics import count

if TYPE_CHECKING:
    from hwr_ray.decoding.beam_search import Hypotheses

LM_WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
LENGTH_BONUSES = (0.0, 0.5, 1.0, 1.5, 2.0)
"""What `fit_decoding` chooses from."""
NUM_CANDIDATES = 8
"""Texts of a line among which its reading is chosen, known names reorder, and confidence is shared."""


@dataclass(frozen=True)
class Character:
    """A letter of a reading, where it stands, and how sure the network is of it.

    Both are of likeliest alignments: the confidence of one with the classifier's frames, the place of one with the
    shortcut's, which sees a few letters' width and no more. What stands behind GRUs may be written in any frame: the
    shipped model writes the first letter of every line in the first one.
    """

    character: str
    confidence: float
    """The highest probability that one of its frames gives it, 0 to 1, without language model and calibration."""
    frames: tuple[int, int]
    """The first of the frames in which the shortcut sees it, and the one after the last: about its middle."""


@dataclass(frozen=True)
class Reading:
    """What the model reads in one line image."""

    text: str
    confidence: float
    """Chance that the text is right, 0 to 1. Without a calibration: of a greedy reading the probability of the text,
    summed over all its CTC alignments; of a beam search's its share of the candidates' probability."""
    alternatives: tuple[tuple[str, float], ...] = ()
    """The next best candidates of a beam search with their shares of the candidates' probability."""
    characters: tuple[Character, ...] = ()
    """Of the text, where they are asked for."""
    review_threshold: float | None = None
    """Confidence from which on texts are right often enough to need no review; None where nothing tells it."""

    @property
    def needs_review(self) -> bool | None:
        """Whether the text should be looked at; None where nothing tells it."""
        return None if self.review_threshold is None else self.confidence < self.review_threshold

    def __str__(self) -> str:
        return f"{self.text} ({self.confidence:.0%}{', needs review' if self.needs_review else ''})"


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """The decoder of a bundle: a beam search where it has a language model, else the greedy path.

    A beam search's text scores log P_CTC(text | line) + lm_weight * log P(text) + length_bonus * characters.
    """

    language_model: LanguageModel | None = field(default=None, compare=False)
    lm_weight: float = 0.0
    length_bonus: float = 0.0
    greedy_calibration: Calibration | None = None
    beam_calibration: Calibration | None = None

    def review_threshold(self, precision: float, *, greedy: bool = False) -> tuple[float | None, float]:
        """The confidence from which on texts need no review for such a share of them, 0 to 1, to be right, None without
        a calibration; and the share of texts to be expected above it."""
        is_greedy = greedy or self.language_model is None
        calibration = self.greedy_calibration if is_greedy else self.beam_calibration
        return calibration.review_threshold(precision) if calibration and calibration.quantiles else (None, 0.0)

    def search(
        self, log_probs: np.ndarray, codec: Codec, *, lexicon: Lexicon | None = None, num_best: int = 1
    ) -> list[Reading]:
        """Readings of N lines by beam search, each with num_best - 1 alternatives; log_probs is (N, T, C) float32.

        Known names are mixed into the language model and reorder the candidates; the calibration was fitted without
        them. Raises ValueError without a language model, or for more than NUM_CANDIDATES.
        """
        if num_best > NUM_CANDIDATES:
            raise ValueError(f"a beam search gives {NUM_CANDIDATES} candidates, not {num_best}")
        if self.language_model is None:
            raise ValueError("a beam search needs a language model")
        from hwr_ray.decoding.beam_search import beam_search  # loads numba, which only reading needs

        found = beam_search(
            log_probs,
            language_model=self.language_model,
            lm_weight=self.lm_weight,
            length_bonus=self.length_bonus,
            num_best=NUM_CANDIDATES,
        )
        scores = found.scores
        if lexicon:
            scores = self._rescore(found, LexiconMixture(self.language_model, codec, lexicon), codec)
        shares = np.exp(scores - scores.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :num_best]
        readings = []
        for n, places in enumerate(order.tolist()):
            best, *others = (
                (_spell(found, (n, k), codec), float(shares[n, k])) for k in places if scores[n, k] > -np.inf
            )
            readings.append(Reading(*best, alternatives=tuple(others)))
        return calibrated(readings, self.beam_calibration)

    def _rescore(self, found: Hypotheses, prior: LexiconMixture, codec: Codec) -> np.ndarray:
        """Scores (N, K) of candidates with another prior than the one they were found with; -inf where missing."""
        scores = found.ctc_log_probs.copy()
        for place in np.argwhere(scores > -np.inf):
            text = _spell(found, tuple(place), codec)
            scores[tuple(place)] += self.lm_weight * prior.log_prob(text) + self.length_bonus * len(text)
        return scores


def _spell(found: Hypotheses, place: tuple[int, ...], codec: Codec) -> str:
    """The text of the candidate at a place (line, candidate)."""
    return codec.decode(found.labels[place][: found.lengths[place]].tolist())


def with_characters(
    readings: list[Reading], log_probs: np.ndarray, shortcut: np.ndarray, codec: Codec
) -> list[Reading]:
    """The readings of N lines with their characters; `log_probs` and `shortcut` (N, T, C) are of the two heads."""
    return [
        replace(reading, characters=_characters(reading.text, line, local, codec))
        for reading, line, local in zip(readings, log_probs, shortcut, strict=True)
    ]


def _characters(text: str, log_probs: np.ndarray, shortcut: np.ndarray, codec: Codec) -> tuple[Character, ...]:
    from hwr_ray.decoding.alignment import align  # loads numba

    labels = np.array(codec.encode(text), np.int32)
    written, places = align(log_probs, labels).tolist(), align(shortcut, labels).tolist()
    return tuple(
        Character(character, float(np.exp(log_probs[start:end, label].max())), tuple(place))
        for character, label, (start, end), place in zip(text, labels, written, places, strict=True)
    )


def placed_characters(reading: Reading, canvas: Canvas, height: int, width: int) -> list[dict[str, Any]]:
    """The characters of a reading with their confidence and where they stand: `left` and `right`, in pixels of an image
    file of that size, which fitting has shrunk."""
    pixels = WIDTH_STRIDE / canvas.scale_for(height, width)
    return [
        {
            "character": c.character,
            "confidence": c.confidence,
            "left": min(width, round(c.frames[0] * pixels)),
            "right": min(width, round(c.frames[1] * pixels)),
        }
        for c in reading.characters
    ]


def lexicon_for(bundle_path: str, path: str | None, codec: Codec, *, is_greedy: bool) -> Lexicon | None:
    """Reads the lexicon file, if one is given. Raises UserError if decoding is greedy, which can't use it."""
    if path and is_greedy:
        raise UserError(f"--lexicon needs a language model, and {bundle_path} is read greedily")
    return read_lexicon(path, codec) if path else None


def calibrated(readings: list[Reading], calibration: Calibration | None) -> list[Reading]:
    """The readings with calibrated confidences; as they are without a calibration."""
    if calibration is None or not readings:
        return readings
    confidences = calibration.apply(np.array([reading.confidence for reading in readings])).tolist()
    return [replace(reading, confidence=p) for reading, p in zip(readings, confidences, strict=True)]


def fit_decoding(
    log_probs: np.ndarray, greedy: list[Reading], texts: Sequence[str], codec: Codec, language_model: LanguageModel
) -> Decoding:
    """The decoding that reads N lines (log_probs (N, T, C) float32, their texts, their greedy readings) best.

    The language model's weight and the length bonus are those of the lowest CER, of equal ones the smaller; a language
    model that does not read with fewer edits than the greedy path is left out. Both calibrations are fitted on the
    same lines.
    """
    greedy_calibration = _fit_calibration(greedy, texts)
    best = Decoding(greedy_calibration=greedy_calibration)
    fewest = count(texts, [reading.text for reading in greedy]).num_edits
    chosen: list[Reading] = []
    for lm_weight, length_bonus in product(LM_WEIGHTS, LENGTH_BONUSES):
        tried = Decoding(
            language_model=language_model,
            lm_weight=lm_weight,
            length_bonus=length_bonus,
            greedy_calibration=greedy_calibration,
        )
        readings = tried.search(log_probs, codec)
        edits = count(texts, [reading.text for reading in readings]).num_edits
        if edits < fewest:
            best, fewest, chosen = tried, edits, readings
    return replace(best, beam_calibration=_fit_calibration(chosen, texts)) if chosen else best


def _fit_calibration(readings: list[Reading], texts: Sequence[str]) -> Calibration | None:
    is_right = np.array([reading.text == text for reading, text in zip(readings, texts, strict=True)])
    return fit_calibration(np.array([reading.confidence for reading in readings]), is_right)
