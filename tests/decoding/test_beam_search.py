"""Compares the beam search with all texts of short lines, each summed over all its paths."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hwr_ray.decoding.alignment import ctc_log_probs
from hwr_ray.decoding.beam_search import beam_search
from hwr_ray.decoding.ctc import greedy_labels
from hwr_ray.decoding.ngram import fit_language_model
from hwr_ray.text.codec import BLANK, Codec, collapse

EVERYTHING = {"beam_width": 4000, "num_best": 700, "min_prob": 0.0, "max_gap": np.inf}
"""Settings that prune nothing on lines of 5 frames."""


def random_lines(seed, *, num_lines=8, frames=5, num_classes=4, peak=2.0):
    """Returns log-probabilities (N, T, C) float32; a larger `peak` makes the best class of a frame more probable."""
    logits = np.random.default_rng(seed).normal(size=(num_lines, frames, num_classes)) * peak
    return torch.from_numpy(logits).float().log_softmax(-1).numpy()


def line_of(*rows):
    with np.errstate(divide="ignore"):
        return np.log(np.array([rows], np.float32))


def model_of(num_classes):
    codec = Codec("ABCDEFGHIJ"[: num_classes - 1])
    return fit_language_model(
        {"AB": 5, "BA": 3, "ABB": 4, "A": 2, "AACB"[:num_classes]: 1}, codec, order=3, min_count=1
    )


def text_probabilities(line):
    """Returns the probability of every text of a line (T, C), summed over all paths."""
    texts = {}
    for path in itertools.product(range(line.shape[1]), repeat=len(line)):
        text = tuple(collapse(path))
        texts[text] = texts.get(text, 0.0) + float(np.exp(line[range(len(line)), path].sum(dtype=np.float64)))
    return texts


def candidates_of(hypotheses, n):
    """Returns the candidates of line `n` as a list of (labels, CTC log-probability, score)."""
    return [
        (tuple(labels[:length].tolist()), ctc, score)
        for labels, length, ctc, score in zip(
            hypotheses.labels[n],
            hypotheses.lengths[n],
            hypotheses.ctc_log_probs[n],
            hypotheses.scores[n],
            strict=True,
        )
        if score > -np.inf
    ]


@pytest.mark.parametrize(("frames", "num_classes"), [(1, 2), (2, 3), (3, 4), (4, 3), (5, 3), (5, 4)])
@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.7, 0.5), (2.0, -1.0)])
def test_a_beam_of_everything_finds_all_texts_with_their_probabilities(frames, num_classes, weights):
    lines, model = random_lines(frames, num_lines=3, frames=frames, num_classes=num_classes), model_of(num_classes)
    lm_weight, bonus = weights
    hypotheses = beam_search(lines, language_model=model, lm_weight=lm_weight, length_bonus=bonus, **EVERYTHING)
    for n, line in enumerate(lines):
        probs = {text: p for text, p in text_probabilities(line).items() if p > 0}
        scores = {t: np.log(p) + lm_weight * model.log_prob(t) + bonus * len(t) for t, p in probs.items()}
        candidates = candidates_of(hypotheses, n)
        assert len(candidates) == len(probs)
        assert {text: ctc for text, ctc, _ in candidates} == pytest.approx({t: np.log(p) for t, p in probs.items()})
        assert {text: score for text, _, score in candidates} == pytest.approx(scores)
        assert [score for *_, score in candidates] == pytest.approx(sorted(scores.values(), reverse=True))


def test_a_beam_of_a_few_prefixes_finds_the_best_of_all_texts():
    lines = random_lines(1, num_lines=40)
    hypotheses = beam_search(lines, beam_width=32)
    for n, line in enumerate(lines):
        probs = text_probabilities(line)
        assert hypotheses.ctc_log_probs[n, 0] == pytest.approx(np.log(max(probs.values())))


def test_the_best_text_need_not_be_that_of_the_best_path():
    # Graves et al. 2006: blank-blank has 0.6 * 0.6 = 0.36, but A has three paths, 0.24 + 0.24 + 0.16 = 0.64.
    candidates = candidates_of(beam_search(line_of([0.6, 0.4], [0.6, 0.4])), 0)
    assert [(text, round(float(np.exp(ctc)), 6)) for text, ctc, _ in candidates] == [((1,), 0.64), ((), 0.36)]


@pytest.mark.parametrize("peak", [0.1, 1, 3, 10, 60])
@pytest.mark.parametrize("beam_width", [1, 4, 32])
def test_the_best_candidate_never_scores_below_the_greedy_reading(peak, beam_width):
    lines, model = random_lines(7, num_lines=50, frames=40, num_classes=11, peak=peak), model_of(11)
    for lm_weight, bonus in [(0.0, 0.0), (0.5, 1.0)]:
        hypotheses = beam_search(
            lines, language_model=model, lm_weight=lm_weight, length_bonus=bonus, beam_width=beam_width, num_best=40
        )
        for n, line in enumerate(lines):
            greedy = collapse(line.argmax(-1).tolist())
            exact = -torch_loss(line, greedy)
            candidates = {text: (ctc, score) for text, ctc, score in candidates_of(hypotheses, n)}
            assert candidates[tuple(greedy)][0] == pytest.approx(exact, abs=1e-3)
            score = candidates[tuple(greedy)][0] + lm_weight * model.log_prob(greedy) + bonus * len(greedy)
            assert hypotheses.scores[n, 0] >= score - 1e-9


def torch_loss(line, labels):
    """Returns PyTorch's CTC loss of a line (T, C)."""
    log_probs = torch.from_numpy(line).double()[:, None]
    lengths = torch.tensor([len(line)]), torch.tensor([len(labels)])
    return F.ctc_loss(log_probs, torch.tensor([labels]), *lengths, blank=BLANK, reduction="sum").item()


@pytest.mark.parametrize("peak", [1, 10])
def test_candidates_are_distinct_sorted_and_as_probable_as_pytorch_finds_them(peak):
    lines = random_lines(3, num_lines=20, frames=60, num_classes=11, peak=peak)
    hypotheses = beam_search(lines, beam_width=8)
    for n, line in enumerate(lines):
        candidates = candidates_of(hypotheses, n)
        assert len({text for text, *_ in candidates}) == len(candidates) > 1
        assert (np.diff([score for *_, score in candidates]) <= 0).all()
        for text, ctc, _ in candidates:
            assert ctc == pytest.approx(-torch_loss(line, list(text)), abs=1e-6)


def test_repeated_letters_need_a_blank_between_them():
    apart = line_of([0.1, 0.9], [0.9, 0.1], [0.1, 0.9])
    together = line_of([0.1, 0.9], [0.1, 0.9], [0.1, 0.9])
    assert candidates_of(beam_search(apart), 0)[0][:1] == ((1, 1),)
    assert candidates_of(beam_search(together), 0)[0][:1] == ((1,),)
    assert np.exp(candidates_of(beam_search(apart), 0)[0][1]) == pytest.approx(0.9**3)  # AA has one path: A, blank, A


def test_a_line_of_blanks_reads_as_nothing():
    hypotheses = beam_search(line_of(*[[1, 0, 0]] * 30))
    assert candidates_of(hypotheses, 0) == [((), 0.0, 0.0)]
    assert (hypotheses.labels == BLANK).all()
    assert not hypotheses.lengths.any()


def test_a_hypothesis_that_is_missing_has_no_labels_and_no_score():
    hypotheses = beam_search(line_of([0.5, 0.5]), num_best=4)
    assert (hypotheses.scores[0, 2:] == -np.inf).all()
    assert (hypotheses.ctc_log_probs[0, 2:] == -np.inf).all()
    assert not hypotheses.labels[0, 2:].any()


def test_the_language_model_turns_a_doubtful_letter():
    model = fit_language_model({"AB": 100}, Codec("AB"), min_count=1)
    doubtful = line_of([0.01, 0.98, 0.01], [0.98, 0.01, 0.01], [0.02, 0.51, 0.47])
    assert candidates_of(beam_search(doubtful), 0)[0][0] == (1, 1)
    assert candidates_of(beam_search(doubtful, language_model=model, lm_weight=0.5), 0)[0][0] == (1, 2)


def test_a_length_bonus_favours_longer_texts():
    lines = random_lines(5, num_lines=30, frames=20, peak=1)
    lengths = [beam_search(lines, length_bonus=bonus).lengths[:, 0].sum() for bonus in (-2.0, 0.0, 2.0)]
    assert lengths[0] < lengths[1] < lengths[2]


def test_a_line_reads_the_same_alone_and_among_others():
    lines, settings = random_lines(9, num_lines=12, frames=30, num_classes=11), {"lm_weight": 0.4, "length_bonus": 1.0}
    whole = beam_search(lines, language_model=model_of(11), **settings)
    parts = [beam_search(part, language_model=model_of(11), **settings) for part in (lines[:1], lines[1:5], lines[5:])]
    for name in ("labels", "lengths", "ctc_log_probs", "scores"):
        np.testing.assert_array_equal(getattr(whole, name), np.concatenate([getattr(part, name) for part in parts]))


def test_the_lines_are_only_read():
    lines = random_lines(2)
    lines.setflags(write=False)
    before = lines.copy()
    beam_search(lines)
    np.testing.assert_array_equal(lines, before)


@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 0, 4)])
def test_no_lines_and_no_frames_are_no_special_cases(shape):
    hypotheses = beam_search(np.zeros(shape, np.float32), num_best=2)
    assert hypotheses.labels.shape == (shape[0], 2, shape[1])
    assert (hypotheses.scores[:, 0] == 0).all()


def test_long_lines_do_not_underflow():
    line = random_lines(4, num_lines=1, frames=3000, num_classes=11, peak=0.1)
    hypotheses = beam_search(line, beam_width=4, num_best=1)
    text, ctc, _ = candidates_of(hypotheses, 0)[0]
    assert ctc < -750  # exp(-745) is the smallest float64
    assert ctc == pytest.approx(-torch_loss(line[0], list(text)), rel=1e-9)


@pytest.mark.parametrize("settings", [{"beam_width": 0}, {"num_best": 0}])
def test_a_search_for_nothing_is_refused(settings):
    with pytest.raises(ValueError, match="must be positive"):
        beam_search(random_lines(1), **settings)


def test_a_language_model_of_another_charset_is_refused():
    with pytest.raises(ValueError, match="the model has 11 labels, the lines have 4"):
        beam_search(random_lines(1), language_model=model_of(11))


@pytest.mark.parametrize("peak", [0.5, 4])
def test_the_greedy_labels_are_the_collapsed_best_paths(peak):
    lines = random_lines(8, num_lines=30, frames=25, peak=peak)
    labels, lengths = greedy_labels(lines.argmax(-1))
    for line, row, length in zip(lines, labels, lengths, strict=True):
        assert row[:length].tolist() == collapse(line.argmax(-1).tolist())
        assert (row[length:] == BLANK).all()


def test_a_text_that_needs_more_frames_is_impossible():
    labels = np.array([[[1, 1, 1], [1, 2, 1]]])
    lines = random_lines(1, num_lines=1, frames=4)
    total = ctc_log_probs(np.exp(lines), labels, np.array([[3, 3]]))
    assert total[0, 0] == -np.inf  # A-A-A: five frames
    assert total[0, 1] == pytest.approx(np.log(text_probabilities(lines[0])[1, 2, 1]))


def test_a_frame_whose_probabilities_have_no_reciprocal_makes_a_text_impossible():
    probs = np.full((1, 3, 2), 0.5)
    probs[0, 1:] = 1e-310
    assert ctc_log_probs(probs, np.array([[[1]]]), np.array([[1]])) == -np.inf


def test_models_vote_on_all_texts_by_the_mean_of_their_log_probabilities():
    models, prior = [random_lines(seed, num_lines=6, num_classes=3) for seed in range(3)], model_of(3)
    weights = {"language_model": prior, "lm_weight": 0.7, "length_bonus": 0.5}
    hypotheses = beam_search(models[0], voters=models[1:], **weights, **EVERYTHING)
    for n, lines in enumerate(zip(*models, strict=True)):
        each = [text_probabilities(line) for line in lines]
        means = {text: np.mean([np.log(probs[text]) for probs in each]) for text in each[0]}
        candidates = candidates_of(hypotheses, n)
        assert {text: ctc for text, ctc, _ in candidates} == pytest.approx(means)
        scores = {text: mean + 0.7 * prior.log_prob(text) + 0.5 * len(text) for text, mean in means.items()}
        assert [score for *_, score in candidates] == pytest.approx(sorted(scores.values(), reverse=True))


def test_a_text_that_only_a_voter_proposes_can_win_and_no_model_has_a_veto():
    doubtful, sure = line_of([0.0, 0.6, 0.4]), line_of([0.0, 0.01, 0.99])
    assert candidates_of(beam_search(doubtful, num_best=1), 0)[0][0] == (1,)
    (best, ctc, _), *_ = candidates_of(beam_search(doubtful, voters=[sure], num_best=1), 0)
    assert (best, ctc) == ((2,), pytest.approx(np.log(0.4 * 0.99) / 2))
    impossible = line_of([0.0, 0.0, 1.0])
    (best, ctc, _), *_ = candidates_of(beam_search(line_of([0.0, 1.0, 0.0]), voters=[impossible] * 2), 0)
    assert (best, ctc) == ((2,), pytest.approx(-100 / 3))
