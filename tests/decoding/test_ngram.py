"""Compares the n-gram model with probabilities computed by hand and with sums over all texts."""

import itertools
import logging
import math

import numpy as np
import pytest

from hwr_ray.decoding.ngram import fit_language_model, from_tensors
from hwr_ray.text.codec import Codec

CODEC = Codec("ABC")
LETTERS = Codec(" ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def random_texts(seed, *, charset="ABC", num=60, longest=6):
    rng = np.random.default_rng(seed)
    letters = rng.dirichlet(np.full(len(charset), 0.6), size=4)
    texts = ["".join(rng.choice([*charset], rng.integers(longest + 1), p=letters[rng.integers(4)])) for _ in range(num)]
    return {text: int(rng.integers(1, 9)) for text in texts}


def probability(model, text, codec=CODEC):
    return math.exp(model.log_prob(codec.encode(text)))


def ngrams_of(model):
    """Returns the n-grams in the tensors as tuples of labels; the charset's size + 1 stands for the start."""
    tensors = model.to_tensors()
    ngrams, labels = [()], iter(tensors["labels"].tolist())
    for node, num in enumerate(tensors["num_followers"].tolist()):
        ngrams += [(*ngrams[node], next(labels)) for _ in range(num)]
    return set(ngrams) - {()}


def witten_bell(texts, text, order, num_labels):
    """Returns P(text) by Chen & Goodman's formula (1998, 2.5), with counts taken directly from the texts."""

    def prob(context, letter):
        shorter = prob(context[1:], letter) if context else 1 / num_labels
        followers = [
            (padded[i], n)
            for other, n in texts.items()
            for padded in [f"<{other}>"]
            for i in range(max(1, len(context)), len(padded))
            if padded[i - len(context) : i] == context
        ]
        if not followers:
            return shorter
        types = len({follower for follower, _ in followers})
        occurrences = sum(n for follower, n in followers if follower == letter)
        return (occurrences + types * shorter) / (sum(n for _, n in followers) + types)

    padded = f"<{text}>"
    return math.prod(prob(padded[max(0, i - order + 1) : i], padded[i]) for i in range(1, len(padded)))


def test_a_probability_worked_by_hand():
    # A, A, AB: 7 followers of 3 types (3 A, 1 B, 3 ends) and a uniform prior of 1/3, so P(A) = (3 + 3 / 3) / (7 + 3).
    model = fit_language_model(["A", "A", "AB"], Codec("AB"), order=1, min_count=1)
    expected = {"A": 0.4 * 0.4, "AB": 0.4 * 0.2 * 0.4, "": 0.4}
    assert {text: probability(model, text, Codec("AB")) for text in expected} == pytest.approx(expected, rel=1e-3)


def test_a_bigram_worked_by_hand():
    # Both texts start with A: T = 1, so P(A | start) = (2 + P(A)) / 3, where P(A) = (2 + 2 / 2) / (4 + 2).
    # The same holds for the end after A.
    model = fit_language_model({"A": 2}, Codec("A"), order=2, min_count=1)
    assert probability(model, "A", Codec("A")) == pytest.approx((2.5 / 3) ** 2, rel=1e-3)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_without_pruning_every_text_has_the_probability_of_the_formula(order, seed):
    texts = random_texts(seed, num=15)
    model = fit_language_model(texts, CODEC, order=order, min_count=1)
    for text in [*texts, "CCCCCC", "ABCABC"]:
        expected = witten_bell(texts, text, order, num_labels=4)
        assert model.log_prob(CODEC.encode(text)) == pytest.approx(math.log(expected), rel=0.01)  # float16 shares


@pytest.mark.parametrize(("order", "min_count"), [*itertools.product([1, 2, 4, 6], [1, 3, 10, 10_000])])
def test_the_probabilities_after_every_context_sum_to_one(order, min_count):
    model = fit_language_model(random_texts(order, num=300), CODEC, order=order, min_count=min_count)
    np.testing.assert_allclose(np.exp(model.log_probs.astype(np.float64)).sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_probabilities_of_all_texts_sum_to_one(seed):
    codec = Codec("AB")
    model = fit_language_model(random_texts(seed, charset="AB"), codec, order=3, min_count=2)
    ended, longest = 0.0, 8
    for length in range(longest + 1):
        ended += sum(probability(model, "".join(t), codec) for t in itertools.product("AB", repeat=length))
    unfinished = np.zeros(len(model.next_state))  # probability of each state of a text that has not ended
    unfinished[model.start] = 1
    for _ in range(longest + 1):
        after = np.zeros_like(unfinished)
        for label in (1, 2):
            np.add.at(after, model.next_state[:, label], unfinished * np.exp(model.log_probs[:, label]))
        unfinished = after
    assert 0 < unfinished.sum() < 1
    assert ended + unfinished.sum() == pytest.approx(1, abs=1e-5)


def test_a_model_of_nothing_finds_all_letters_and_the_end_equally_probable():
    for texts in ({}, {"ABC": 9}):
        model = fit_language_model(texts, CODEC, min_count=10)
        assert probability(model, "CAB") == pytest.approx(0.25**4)


def test_texts_that_were_seen_are_more_probable_than_their_letters_in_another_order():
    model = fit_language_model({"ANNA": 40, "HANNA": 20, "NORA": 30}, LETTERS)
    assert model.log_prob(LETTERS.encode("ANNA")) > model.log_prob(LETTERS.encode("NANA")) + 3


def test_an_ngram_of_fewer_labels_than_the_limit_is_not_in_the_model():
    texts = {**random_texts(1, charset="ABCDEFGH", num=400), "XAVER": 9, "QQQQQQQQQQQQ": 1, "ZOE": 10}
    model = fit_language_model(texts, LETTERS, min_count=10)
    start, end = chr(LETTERS.num_classes), chr(0)
    padded = {start + "".join(map(chr, LETTERS.encode(text))) + end: n for text, n in texts.items()}
    ngrams = {"".join(map(chr, ngram)) for ngram in ngrams_of(model)}
    assert ngrams
    assert min(sum(n for text, n in padded.items() if ngram in text) for ngram in ngrams) >= 10
    assert start + "".join(map(chr, LETTERS.encode("ZOE"))) in ngrams  # in ten labels


def test_models_tell_nothing_of_which_rare_name_they_were_fitted_on():
    common = {"ANNA": 50, "NORA": 50}
    models = [fit_language_model({**common, rare: 1}, LETTERS) for rare in ("XYZQ", "QUXW")]
    for name, tensor in models[0].to_tensors().items():
        np.testing.assert_array_equal(tensor, models[1].to_tensors()[name])


def test_a_model_is_the_same_after_its_tensors_were_stored(tmp_path):
    model = fit_language_model(random_texts(5, num=300), CODEC, min_count=3)
    np.savez(tmp_path / "model.npz", **model.to_tensors())
    with np.load(tmp_path / "model.npz") as tensors:
        loaded = from_tensors(tensors)
    assert (loaded.order, loaded.start) == (model.order, model.start)
    np.testing.assert_array_equal(loaded.next_state, model.next_state)
    np.testing.assert_array_equal(loaded.log_probs, model.log_probs)
    assert len(loaded.next_state) > 20


def test_tensors_that_are_no_trie_are_refused():
    tensors = fit_language_model(random_texts(5), CODEC, min_count=3).to_tensors()
    with pytest.raises(ValueError, match="not a trie"):
        from_tensors({**tensors, "labels": tensors["labels"][:-1]})


def test_texts_with_unknown_characters_are_skipped_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        model = fit_language_model({"AB": 3, "ÄB": 2, "A1": 5}, CODEC, min_count=1)
    assert "7 of 10 texts" in caplog.text
    plain = fit_language_model(["AB", "AB", "AB"], CODEC, min_count=1)
    np.testing.assert_array_equal(model.log_probs, plain.log_probs)


@pytest.mark.parametrize("settings", [{"order": 0}, {"min_count": 0}])
def test_an_order_or_a_limit_below_one_is_refused(settings):
    with pytest.raises(ValueError, match="must be positive"):
        fit_language_model(["A"], CODEC, **settings)


@pytest.mark.parametrize("size", [253, 254, 255])
def test_charsets_around_the_size_of_a_byte_keep_their_rows(size):
    codec = Codec("".join(map(chr, range(1000, 1000 + size))))
    model = fit_language_model(dict.fromkeys(codec.charset, 10), codec, order=2)
    assert np.exp(model.log_probs.astype(float)).sum(1) == pytest.approx(np.ones(len(model.log_probs)), abs=1e-4)


@pytest.mark.parametrize(("name", "place", "value"), [("labels", 0, 7), ("shares", 0, 1.5), ("shares", 1, np.nan)])
def test_damaged_tensors_are_refused(name, place, value):
    tensors = fit_language_model({"A": 2, "AB": 1}, Codec("AB"), order=2, min_count=1).to_tensors()
    damaged = tensors[name].copy()
    damaged[place] = value
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="not a trie"):
        from_tensors({**tensors, name: damaged})
