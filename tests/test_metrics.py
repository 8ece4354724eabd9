"""Error rates, against cases worked by hand and simulated data of a known rate."""

import editdistance
import numpy as np
import pytest

from hwr_ray.metrics import Counts, bootstrap_intervals, confusions, count, edit_distances, edits_between


@pytest.mark.parametrize(
    ("text", "prediction", "distance"),
    [
        ("", "", 0),
        ("ANNA", "ANNA", 0),
        ("ANNA", "", 4),
        ("", "ANNA", 4),
        ("ANNA", "ANA", 1),
        ("ANNA", "HANNA", 1),
        ("KITTEN", "SITTING", 3),
        ("AB", "BA", 2),
        ("É", "E", 1),
        ("A B", "AB", 1),
    ],
)
def test_edit_distance_of_a_case_worked_by_hand(text, prediction, distance):
    assert edit_distances([text], [prediction]) == [distance]


def test_rates_divide_the_sums_once():
    counts = count(["ANNA", "BOB", "EVE"], ["ANNA", "BO", "AVA"])
    assert counts == Counts(num_lines=3, num_exact=1, num_characters=10, num_edits=3)
    assert (counts.cer, counts.exact_match) == (0.3, 1 / 3)


def test_cer_over_two_batches_is_not_the_mean_of_their_cers():
    wrong, right = count(["A"], ["WXYZ"]), count(["AB"], ["AB"])
    assert (wrong.cer + right.cer) / 2 == 2.00
    assert (wrong + right).cer == pytest.approx(1.33, abs=0.01)  # 4 edits of 3 characters
    assert wrong + right == count(["A", "AB"], ["WXYZ", "AB"])


def test_an_empty_text_counts_what_was_read_in_it():
    assert count([""], ["XY"]) == Counts(num_lines=1, num_exact=0, num_characters=0, num_edits=2)


@pytest.mark.parametrize(("rate", "counts"), [("cer", Counts(num_lines=1)), ("exact_match", Counts())])
def test_a_rate_of_nothing_is_refused(rate, counts):
    with pytest.raises(ValueError, match="to score"):
        getattr(counts, rate)


@pytest.mark.parametrize("score", [count, edit_distances, confusions])
def test_a_prediction_too_few_is_refused(score):
    with pytest.raises(ValueError, match="shorter"):
        score(["A", "B"], ["A"])


def test_confusions_of_a_hand_made_case():
    pairs = confusions(["ANNA", "BOB", "EVE", "LOLO", "SAME"], ["AMNA", "BO", "EVEL", "L0L0", "SAME"])
    assert pairs == {("N", "M"): 1, ("B", ""): 1, ("", "L"): 1, ("O", "0"): 2}


def test_edits_come_in_reading_order():
    assert edits_between("JEAN", "GEANS") == [("J", "G"), ("", "S")]
    assert edits_between("", "AB") == [("", "A"), ("", "B")]
    assert edits_between("AB", "") == [("A", ""), ("B", "")]


def test_edits_are_as_many_as_the_edit_distance():
    rng = np.random.default_rng(0)
    texts, predictions = (["".join(rng.choice(list("ABC"), rng.integers(0, 9))) for _ in range(500)] for _ in range(2))
    distances = [editdistance.eval(text, prediction) for text, prediction in zip(texts, predictions, strict=True)]
    assert [len(edits_between(t, p)) for t, p in zip(texts, predictions, strict=True)] == distances
    assert confusions(texts, predictions).total() == sum(distances)


def test_bootstrap_intervals_hold_the_true_rates_about_95_times_of_100():
    rng = np.random.default_rng(1)
    is_hit = {"cer_ci": [], "exact_match_ci": []}
    true = {"cer_ci": 0.05, "exact_match_ci": 0.95**8}
    for repeat in range(200):
        edits = rng.binomial(8, 0.05, size=150)  # 150 texts of 8 characters, each wrong once in 20 times
        intervals = bootstrap_intervals(["A" * 8] * 150, edits, seed=repeat, num_samples=200)
        for name, (low, high) in intervals.items():
            is_hit[name].append(low <= true[name] <= high)
    for hits in is_hit.values():
        assert 0.90 <= np.mean(hits) <= 0.99


def test_bootstrap_intervals_are_those_of_the_seed_and_hold_the_rate_itself():
    texts, edits = ["A" * n for n in range(1, 41)], [n % 3 for n in range(40)]
    first, again, other = (bootstrap_intervals(texts, edits, seed=seed, num_samples=100) for seed in (0, 0, 1))
    assert first == again != other
    assert first["cer_ci"][0] < sum(edits) / sum(map(len, texts)) < first["cer_ci"][1]
