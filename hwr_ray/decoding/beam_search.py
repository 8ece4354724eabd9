"""CTC prefix beam search with a language model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hwr_ray.decoding.alignment import ctc_log_probs
from hwr_ray.decoding.ctc import greedy_labels
from hwr_ray.decoding.ngram import END, LanguageModel
from hwr_ray.decoding.prefix_beam import Settings, search

LEAST_VOTE = -100.0
"""Least log-probability of a text for a model that votes with others."""


@dataclass(frozen=True)
class Hypotheses:
    """Candidate texts of N lines: up to K distinct ones per line, best first."""

    labels: np.ndarray
    """(N, K, T) int32, padded with BLANK."""
    lengths: np.ndarray
    """(N, K) int32; 0 if missing."""
    ctc_log_probs: np.ndarray
    """(N, K) float64: log-probability of the text given the line, summed over all alignments and averaged over the
    models; -inf if missing."""
    scores: np.ndarray
    """(N, K) float64: sort key of the candidates; -inf if missing."""


def beam_search(
    log_probs: np.ndarray,
    *,
    voters: Sequence[np.ndarray] = (),
    language_model: LanguageModel | None = None,
    lm_weight: float = 0.0,
    length_bonus: float = 0.0,
    beam_width: int = 32,
    num_best: int = 8,
    min_prob: float = 1e-4,
    max_gap: float = 12.0,
) -> Hypotheses:
    """Returns the candidates of each line of `log_probs` (N, T, C) float32, sorted by score.

    The score is the log-probability of the text given the line + lm_weight * log P_lm(text, including its end) +
    length_bonus * length.

    The search is that of Graves & Jaitly 2014 and Hannun et al. 2014 (arXiv 1408.2873). In each frame, prefixes are
    extended only by labels with a probability of at least `min_prob`. A prefix is pruned if `beam_width` others score
    better, or if one scores better by more than `max_gap`. The resulting candidates and the greedy text are rescored
    exactly, so the best candidate never scores below the greedy text.

    `voters` are the log-probabilities of other models for the same lines, in the same shape. Each model proposes
    candidates, and the log-probability of a text given the line is the mean of all models. Their frames need not agree
    on where a letter is, as an average of frames would require.
    """
    if beam_width < 1 or num_best < 1:
        raise ValueError(f"beam_width and num_best must be positive, not {beam_width} and {num_best}")
    model = language_model or _no_model(log_probs.shape[2])
    if model.next_state.shape[1] != log_probs.shape[2]:
        raise ValueError(f"the model has {model.next_state.shape[1]} labels, the lines have {log_probs.shape[2]}")
    settings = Settings(
        model.next_state,
        model.log_probs,
        model.start,
        float(lm_weight),
        float(length_bonus),
        int(beam_width),
        float(min_prob),
        float(max_gap),
    )
    models = [(frames, np.exp(frames, dtype=np.float64)) for frames in (log_probs, *voters)]
    labels, lengths = _distinct([found for one in models for found in _candidates(*one, settings, num_best)])
    ctc = np.mean([_log_probs(probs, labels, lengths, is_vote=bool(voters)) for _, probs in models], axis=0)
    scores = ctc + lm_weight * lm_log_probs(model, labels, lengths) + length_bonus * lengths
    order = np.argsort(-scores, axis=1, kind="stable")[:, :num_best]
    return Hypotheses(
        labels=np.take_along_axis(labels, order[:, :, None], axis=1),
        lengths=np.take_along_axis(lengths, order, axis=1).clip(min=0),
        ctc_log_probs=np.take_along_axis(ctc, order, axis=1),
        scores=np.take_along_axis(scores, order, axis=1),
    )


def lm_log_probs(model: LanguageModel, labels: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the log-probability (N, K) float64 of texts including their ends.

    `labels` is (N, K, L) and `lengths` (N, K).
    """
    states = np.full(lengths.shape, model.start)
    total = np.zeros(lengths.shape)
    for i in range(max(0, lengths.max(initial=0))):
        label, is_inside = labels[:, :, i], i < lengths
        total += np.where(is_inside, model.log_probs[states, label], 0)
        states = np.where(is_inside, model.next_state[states, label], states)
    return total + model.log_probs[states, END]


def _no_model(num_classes: int) -> LanguageModel:
    """Returns a model that scores every text 0. It is not a distribution and serves only this search."""
    return LanguageModel(
        order=1,
        start=0,
        next_state=np.zeros((1, num_classes), np.int32),
        log_probs=np.zeros((1, num_classes), np.float32),
        tensors={},
    )


def _candidates(
    log_probs: np.ndarray, probs: np.ndarray, settings: Settings, num_best: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the labels (N, K, T) and lengths (N, K) of the texts that a model proposes: by search, then greedily."""
    yield search(probs, settings, num_best)
    greedy, length = greedy_labels(log_probs.argmax(-1))
    yield greedy[:, None], length[:, None]


def _distinct(candidates: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the candidates (N, K, T) and their lengths (N, K), which mark a text that stands before it as missing."""
    labels, lengths = (np.concatenate(parts, axis=1) for parts in zip(*candidates, strict=True))
    distinct = lengths.astype(np.int32)
    for k in range(1, lengths.shape[1]):
        is_same = (labels[:, :k] == labels[:, k, None]).all(-1) & (lengths[:, :k] == lengths[:, k, None])
        distinct[is_same.any(1), k] = -1
    return labels, distinct


def _log_probs(probs: np.ndarray, labels: np.ndarray, lengths: np.ndarray, *, is_vote: bool) -> np.ndarray:
    """Returns the log-probability (N, K) of the texts; in a vote at least LEAST_VOTE, so that no model has a veto."""
    ctc = ctc_log_probs(probs, labels, lengths)
    return np.where(lengths < 0, ctc, ctc.clip(min=LEAST_VOTE)) if is_vote else ctc
