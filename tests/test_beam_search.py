"""The beam search, against an exhaustive search over every path of a short lattice."""

from itertools import groupby, product
from math import inf, log, prod

import numpy as np
import pytest

from hwr_ray.beam_search import beam_search
from hwr_ray.codec import Codec
from hwr_ray.language_model import fit_language_model

CODEC = Codec("ABC")
MODEL = fit_language_model({"AB": 5, "ABBA": 3, "CAB": 2, "B": 1}, CODEC, order=3, min_count=1)
EXHAUSTIVE = {"beam_width": 500, "num_best": 500, "min_prob": 0.0, "max_gap": 1e9}


def lattice(frames: int, seed: int, *, sharpness: float = 1.0, num_classes: int = 4) -> np.ndarray:
    """Log-probabilities (1, T, C) float32 of one line."""
    logits = sharpness * np.random.default_rng(seed).normal(size=(1, frames, num_classes))
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


def all_texts(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    """Probability of each text of a lattice (T, C), summed over all its paths."""
    found: dict[tuple[int, ...], float] = {}
    probabilities = np.exp(log_probs.astype(float)).tolist()
    for path in product(range(len(probabilities[0])), repeat=len(probabilities)):
        text = tuple(label for label, _ in groupby(path) if label)
        found[text] = found.get(text, 0) + prod(frame[label] for frame, label in zip(probabilities, path, strict=True))
    return found


def candidates(found, line: int = 0) -> list[tuple[tuple[int, ...], float, float]]:
    """(text, CTC log-probability, score) of a line's candidates."""
    rows = zip(found.labels[line], found.lengths[line], found.ctc_log_probs[line], found.scores[line], strict=True)
    return [(tuple(labels[:n].tolist()), ctc, score) for labels, n, ctc, score in rows if score > -inf]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("lm_weight", "bonus"), [(0.0, 0.0), (0.7, 0.0), (0.4, 1.3)])
def test_a_wide_beam_ranks_all_texts_as_the_exhaustive_search_does(seed, lm_weight, bonus):
    line = lattice(frames=5, seed=seed)
    scores = {
        text: log(p) + lm_weight * MODEL.log_prob(text) + bonus * len(text) for text, p in all_texts(line[0]).items()
    }
    found = candidates(beam_search(line, language_model=MODEL, lm_weight=lm_weight, length_bonus=bonus, **EXHAUSTIVE))
    assert {text for text, _, _ in found} == set(scores)
    assert [score for _, _, score in found] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-4)
    for text, ctc, score in found:
        assert score == pytest.approx(scores[text], abs=1e-4)
        assert ctc == pytest.approx(log(all_texts(line[0])[text]), abs=1e-4)


@pytest.mark.parametrize("width", [1, 2, 8])
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 6.0])
def test_without_a_language_model_the_best_candidate_is_never_less_probable_than_the_greedy_reading(width, sharpness):
    for seed in range(40):
        line = lattice(frames=6, seed=seed, sharpness=sharpness)
        greedy = tuple(label for label, _ in groupby(line[0].argmax(-1).tolist()) if label)
        (_, ctc, score), *_ = candidates(beam_search(line, beam_width=width))
        assert score == pytest.approx(ctc)
        assert ctc >= log(all_texts(line[0])[greedy]) - 1e-5


def test_candidates_differ_and_stand_in_the_order_of_their_scores():
    found = candidates(beam_search(lattice(12, 3, sharpness=0.5), num_best=20))
    assert len({text for text, _, _ in found}) == len(found) == 20
    assert [score for _, _, score in found] == sorted((score for _, _, score in found), reverse=True)


def test_a_line_does_not_depend_on_its_neighbours():
    lines = np.concatenate([lattice(9, seed) for seed in range(5)])
    together = beam_search(lines, language_model=MODEL, lm_weight=0.5)
    for n in range(5):
        alone = beam_search(lines[n : n + 1], language_model=MODEL, lm_weight=0.5)
        assert candidates(alone) == candidates(together, n)


@pytest.mark.parametrize(
    ("path", "text"),
    [([1, 1, 0, 1], (1, 1)), ([1, 1, 1, 1], (1,)), ([0, 0, 0, 0], ()), ([1, 2, 2, 0], (1, 2))],
)
def test_a_certain_path_is_read_as_it_stands(path, text):
    line = np.full((1, 4, 4), -30, np.float32)
    line[0, range(4), path] = 0
    assert candidates(beam_search(line))[0][0] == text


def test_a_language_model_of_another_alphabet_is_refused():
    with pytest.raises(ValueError, match="4 labels, the lines have 3"):
        beam_search(lattice(4, 0, num_classes=3), language_model=MODEL)


@pytest.mark.parametrize("wrong", [{"beam_width": 0}, {"num_best": 0}])
def test_a_beam_of_nothing_is_refused(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        beam_search(lattice(4, 0), **wrong)
