"""Decoding of frames into texts with confidences: greedy, or a beam search with a language model."""

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
"""Language model weights and length bonuses that `fit_decoding` tries."""
NUM_CANDIDATES = 8
"""Candidate texts per line. A lexicon reorders them; their shares of probability sum to 1."""


@dataclass(frozen=True)
class Character:
    """A character of a text with its confidence and its position.

    The confidence comes from the most probable alignment with the classifier's frames, the position from that with the
    shortcut's frames. The shortcut sees only a few letters' width, whereas the GRUs can emit a letter in any frame: the
    shipped model emits the first letter of every line in the first frame.
    """

    character: str
    confidence: float
    """Highest probability of the character in any of its frames, 0 to 1, before language model and calibration."""
    frames: tuple[int, int]
    """Frames in which the shortcut sees the character, about its middle: the first, and the one after the last."""


@dataclass(frozen=True)
class Reading:
    """The recognized text of a line image."""

    text: str
    confidence: float
    """Probability that the text is correct, 0 to 1. Without a calibration it is the text's probability, summed over all
    CTC alignments, for greedy decoding, and the text's share of the candidates' probability for a beam search."""
    alternatives: tuple[tuple[str, float], ...] = ()
    """The next best candidates of a beam search with their shares of the candidates' probability."""
    characters: tuple[Character, ...] = ()
    """Characters of the text, if requested."""
    warning: str | None = None
    """One of hwr_ray.images.line_warnings.WARNINGS, if the image does not look like an upright line of dark text on
    light paper."""
    review_threshold: float | None = None
    """Minimum confidence of texts that need no review; None if unknown."""

    @property
    def needs_review(self) -> bool | None:
        """Whether the text needs review; None if unknown."""
        return None if self.review_threshold is None else self.confidence < self.review_threshold

    def __str__(self) -> str:
        words = [f"{self.confidence:.0%}", *(["needs review"] if self.needs_review else [])]
        return f"{self.text} ({', '.join([*words, *([self.warning] if self.warning else [])])})"


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """The decoder of a bundle: a beam search if it has a language model, greedy decoding otherwise.

    The beam search scores a text by log P_CTC(text | line) + lm_weight * log P(text) + length_bonus * characters.
    """

    language_model: LanguageModel | None = field(default=None, compare=False)
    lm_weight: float = 0.0
    length_bonus: float = 0.0
    greedy_calibration: Calibration | None = None
    beam_calibration: Calibration | None = None

    def review_threshold(self, precision: float, *, greedy: bool = False) -> tuple[float | None, float]:
        """Returns the minimum confidence of texts that need no review, and the expected share of such texts.

        `precision` is the share of correct texts among them, 0 to 1. The confidence is None without a calibration.
        """
        calibration = self.calibration(greedy=greedy)
        return calibration.review_threshold(precision) if calibration and calibration.quantiles else (None, 0.0)

    def calibration(self, *, greedy: bool = False) -> Calibration | None:
        """Returns the calibration of the beam search, or of greedy decoding if there is no language model or `greedy`
        disables it."""
        return self.greedy_calibration if greedy or self.language_model is None else self.beam_calibration

    def label_noise(self, *, greedy: bool = False) -> float:
        """Returns the estimated share of wrong labels, 0 to 1, among the lines of the calibration."""
        calibration = self.calibration(greedy=greedy)
        return calibration.label_noise if calibration else 0.0

    def search(
        self,
        log_probs: np.ndarray,
        codec: Codec,
        *,
        voters: Sequence[np.ndarray] = (),
        lexicon: Lexicon | None = None,
        num_best: int = 1,
    ) -> list[Reading]:
        """Returns readings of N lines by beam search, each with up to num_best - 1 alternatives.

        `log_probs` is (N, T, C) float32, as is each of the `voters`: those of other models, which vote on the
        candidates. A lexicon is mixed into the language model and reorders the candidates; the
        calibration was fitted without it. Raises ValueError if there is no language model, or if `num_best` exceeds
        NUM_CANDIDATES.
        """
        if num_best > NUM_CANDIDATES:
            raise ValueError(f"num_best must be at most {NUM_CANDIDATES}, not {num_best}")
        if self.language_model is None:
            raise ValueError("a beam search needs a language model")
        from hwr_ray.decoding.beam_search import beam_search  # imports numba, which only inference needs

        hypotheses = beam_search(
            log_probs,
            voters=voters,
            language_model=self.language_model,
            lm_weight=self.lm_weight,
            length_bonus=self.length_bonus,
            num_best=NUM_CANDIDATES,
        )
        scores = hypotheses.scores
        if lexicon:
            scores = self._rescore(hypotheses, LexiconMixture(self.language_model, codec, lexicon), codec)
        shares = np.exp(scores - scores.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :num_best]
        readings = []
        for n, best_first in enumerate(order.tolist()):
            best, *others = (
                (_spell(hypotheses, (n, k), codec), float(shares[n, k])) for k in best_first if scores[n, k] > -np.inf
            )
            readings.append(Reading(*best, alternatives=tuple(others)))
        return calibrated(readings, self.beam_calibration)

    def _rescore(self, hypotheses: Hypotheses, prior: LexiconMixture, codec: Codec) -> np.ndarray:
        """Returns the scores (N, K) of the candidates with `prior` as the language model; -inf if missing."""
        scores = hypotheses.ctc_log_probs.copy()
        for index in np.argwhere(scores > -np.inf):
            text = _spell(hypotheses, tuple(index), codec)
            scores[tuple(index)] += self.lm_weight * prior.log_prob(text) + self.length_bonus * len(text)
        return scores


def _spell(hypotheses: Hypotheses, index: tuple[int, ...], codec: Codec) -> str:
    """Returns the text of the candidate at `index` (line, candidate)."""
    return codec.decode(hypotheses.labels[index][: hypotheses.lengths[index]].tolist())


def with_characters(
    readings: list[Reading], log_probs: np.ndarray, shortcut: np.ndarray, codec: Codec
) -> list[Reading]:
    """Returns the readings of N lines with their characters.

    `log_probs` and `shortcut` (N, T, C) are the log-probabilities of the two heads.
    """
    return [
        replace(reading, characters=_characters(reading.text, line, local, codec))
        for reading, line, local in zip(readings, log_probs, shortcut, strict=True)
    ]


def _characters(text: str, log_probs: np.ndarray, shortcut: np.ndarray, codec: Codec) -> tuple[Character, ...]:
    from hwr_ray.decoding.alignment import align  # imports numba

    labels = np.array(codec.encode(text), np.int32)
    spans, positions = align(log_probs, labels).tolist(), align(shortcut, labels).tolist()
    return tuple(
        Character(character, float(np.exp(log_probs[start:end, label].max())), tuple(position))
        for character, label, (start, end), position in zip(text, labels, spans, positions, strict=True)
    )


def placed_characters(reading: Reading, canvas: Canvas, height: int, width: int) -> list[dict[str, Any]]:
    """Returns the characters of a reading with their confidence and position.

    `left` and `right` are in pixels of the image file of that height and width, before fitting shrank it.
    """
    pixels = WIDTH_STRIDE / (canvas.stretch * canvas.scale_for(height, width))
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
    """Returns the lexicon in the file `path`, if any. Raises UserError if decoding is greedy, which can't use it."""
    if path and is_greedy:
        raise UserError(f"--lexicon needs a language model, but {bundle_path} is decoded greedily: omit --lexicon")
    return read_lexicon(path, codec) if path else None


def calibrated(readings: list[Reading], calibration: Calibration | None) -> list[Reading]:
    """Returns the readings with calibrated confidences, or unchanged if there is no calibration."""
    if calibration is None or not readings:
        return readings
    confidences = calibration.apply(np.array([reading.confidence for reading in readings])).tolist()
    return [replace(reading, confidence=p) for reading, p in zip(readings, confidences, strict=True)]


def fit_decoding(
    log_probs: np.ndarray, greedy: list[Reading], texts: Sequence[str], codec: Codec, language_model: LanguageModel
) -> Decoding:
    """Returns the decoding with the lowest CER on N lines, given their labels (`texts`) and greedy readings.

    `log_probs` is (N, T, C) float32. Of equally good language model weights and length bonuses, the smaller ones are
    chosen. The language model is omitted unless it needs fewer edits than greedy decoding. Both calibrations are fitted
    on the same lines.
    """
    greedy_calibration = _fit_calibration(greedy, texts)
    best = Decoding(greedy_calibration=greedy_calibration)
    fewest = count(texts, [reading.text for reading in greedy]).num_edits
    chosen: list[Reading] = []
    for lm_weight, length_bonus in product(LM_WEIGHTS, LENGTH_BONUSES):
        candidate = Decoding(
            language_model=language_model,
            lm_weight=lm_weight,
            length_bonus=length_bonus,
            greedy_calibration=greedy_calibration,
        )
        readings = candidate.search(log_probs, codec)
        edits = count(texts, [reading.text for reading in readings]).num_edits
        if edits < fewest:
            best, fewest, chosen = candidate, edits, readings
    return replace(best, beam_calibration=_fit_calibration(chosen, texts)) if chosen else best


def _fit_calibration(readings: list[Reading], texts: Sequence[str]) -> Calibration | None:
    is_right = np.array([reading.text == text for reading, text in zip(readings, texts, strict=True)])
    return fit_calibration(np.array([reading.confidence for reading in readings]), is_right)
