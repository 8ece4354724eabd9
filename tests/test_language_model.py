"""The n-gram model, against probabilities by hand and sums over all texts."""

from itertools import product
from math import exp, log

import numpy as np
import pytest

from hwr_ray.codec import Codec
from hwr_ray.language_model import END, fit_language_model, from_tensors

CODEC = Codec("AB")
TEXTS = {"A": 2, "AB": 1}


def test_probabilities_are_those_of_witten_bell_by_hand():
    # Followers of anything: A 3, B 1, end 3 of 7, 3 distinct. After A: end 2, B 1 of 3, 2 distinct. After the start:
    # A 3 of 3, 1 distinct.
    model = fit_language_model(TEXTS, CODEC, order=2, min_count=1)
    uniform = 1 / 3
    a, b, end = ((count + 3 * uniform) / 10 for count in (3, 1, 3))
    first_a = (3 + 1 * a) / 4
    end_after_a, b_after_a = (2 + 2 * end) / 5, (1 + 2 * b) / 5
    end_after_b = (1 + 1 * end) / 2
    assert exp(model.log_prob([1])) == pytest.approx(first_a * end_after_a, rel=2e-3)  # shares are float16
    assert exp(model.log_prob([1, 2])) == pytest.approx(first_a * b_after_a * end_after_b, rel=2e-3)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("min_count", [1, 2])
def test_the_labels_of_each_state_sum_to_1_also_after_storing(order, min_count):
    model = fit_language_model({"ABBA": 3, "BAB": 2, "A": 4, "BBBB": 1}, CODEC, order=order, min_count=min_count)
    stored = from_tensors(model.to_tensors())
    assert np.exp(model.log_probs.astype(float)).sum(1) == pytest.approx(np.ones(len(model.log_probs)), abs=1e-5)
    assert (stored.log_probs == model.log_probs).all()
    assert (stored.next_state == model.next_state).all()
    assert stored.start == model.start


def test_all_texts_and_all_longer_beginnings_sum_to_1():
    model = fit_language_model({"ABBA": 3, "BAB": 2}, CODEC, order=3, min_count=1)
    texts = sum(exp(model.log_prob(text)) for n in range(6) for text in product((1, 2), repeat=n))
    longer = 0.0
    for text in product((1, 2), repeat=6):  # beginnings of 6 letters, without their end
        state, total = model.start, 0.0
        for label in text:
            total += float(model.log_probs[state, label])
            state = model.next_state[state, label]
        longer += exp(total)
    assert texts + longer == pytest.approx(1, abs=1e-4)


def test_what_few_labels_hold_is_not_in_the_model():
    common = {"AAAA": 50}
    with_rare = fit_language_model({**common, "BAB": 9}, CODEC, order=4, min_count=10).to_tensors()
    labels = with_rare["labels"].tolist()
    assert CODEC.encode("B")[0] not in labels
    assert CODEC.encode("B")[0] in fit_language_model({**common, "BAB": 10}, CODEC, order=4).to_tensors()["labels"]


def test_an_n_gram_of_a_thousand_places_in_one_label_is_still_one_label():
    model = fit_language_model(["AB" * 500] + ["A"] * 20, CODEC, order=2, min_count=2)
    assert CODEC.encode("B")[0] not in model.to_tensors()["labels"]


def test_texts_that_the_charset_lacks_are_left_out_and_counted(caplog):
    model = fit_language_model({**TEXTS, "AÉ": 4}, CODEC, order=2, min_count=1)
    assert model.log_prob([1]) == fit_language_model(TEXTS, CODEC, order=2, min_count=1).log_prob([1])
    assert "4 of 7 texts" in caplog.text


def test_frequent_beginnings_are_more_probable_than_their_reverse():
    model = fit_language_model({"AB": 100, "AAB": 20}, CODEC)
    assert model.log_prob([1, 2]) > log(0.5) > model.log_prob([2, 1])


@pytest.mark.parametrize("wrong", [{"order": 0}, {"min_count": 0}])
def test_settings_of_no_model_are_refused(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        fit_language_model(TEXTS, CODEC, **wrong)


def test_tensors_that_are_no_trie_are_refused():
    tensors = fit_language_model(TEXTS, CODEC, order=2, min_count=1).to_tensors()
    with pytest.raises(ValueError, match="no trie"):
        from_tensors({**tensors, "labels": tensors["labels"][:-1]})


def test_the_end_has_the_column_that_no_character_has():
    assert END == 0 and 0 not in CODEC.encode("AB")
