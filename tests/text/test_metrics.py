"""Tests of the error rates against cases worked by hand and simulated data of a known rate."""

import editdistance
import numpy as np
import pytest

from hwr_ray.text.metrics import (
    Counts,
    cer_interval,
    confusion_table,
    confusions,
    count,
    edit_distances,
    edits_between,
    figures,
    wilson_interval,
)


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


def test_the_table_of_confusions_says_how_many_it_leaves_out():
    table = confusion_table(["ANNA", "BOB", "LOLO"], ["AMMA", "BO", "LLO"], most=1)
    assert table == {"total": 4, "num_pairs": 3, "pairs": [{"true": "N", "read": "M", "count": 2}]}
    assert confusion_table(["A"], ["A"]) == {"total": 0, "num_pairs": 0, "pairs": []}


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # all of n: from n / (n + 1.96^2) to 1
        (3, 3, 3 / 6.8416, 1),
        (1, 1, 1 / 4.8416, 1),
    ],
)
def test_wilson_intervals_are_those_of_the_literature(hits, trials, low, high):
    assert wilson_interval(hits, trials) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(trials - hits, trials) == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize(("hits", "trials"), [(0, 0), (2, 1), (-1, 5)])
def test_a_share_of_nothing_has_no_interval(hits, trials):
    with pytest.raises(ValueError, match="not a proportion"):
        wilson_interval(hits, trials)


@pytest.mark.parametrize(
    ("num_lines", "rate"), [(1, 0.05), (3, 0.05), (3, 0.4), (12, 0.05), (12, 0.4), (30, 0.01), (30, 0.05), (150, 0.05)]
)
def test_intervals_hold_the_true_rates_about_95_times_of_100(num_lines, rate):
    rng = np.random.default_rng(1)
    true = {"cer_ci": rate, "exact_match_ci": (1 - rate) ** 8}
    is_hit = {name: [] for name in true}
    for repeat in range(200):
        edits = rng.binomial(8, rate, size=num_lines).tolist()  # texts of 8 characters
        metrics = figures(["A" * 8] * num_lines, edits, seed=repeat)
        for name, value in true.items():
            low, high = metrics[name]
            is_hit[name].append(low <= value <= high)
    for hits in is_hit.values():
        assert np.mean(hits) >= 0.88  # 0.95 less three deviations of 200 draws and the bias of a small bootstrap
    if num_lines == 150:  # for few lines an interval may be wider than necessary
        assert np.mean(is_hit["cer_ci"]) <= 0.99


def test_the_bootstrap_is_that_of_the_seed_and_holds_the_rate_itself():
    texts, edits = ["A" * n for n in range(1, 41)], [n % 3 for n in range(40)]
    first, again, other = (cer_interval(texts, edits, seed=seed, num_samples=100) for seed in (0, 0, 1))
    assert first == again != other
    assert first[0] < sum(edits) / sum(map(len, texts)) < first[1]


def test_drawing_kinds_of_lines_is_drawing_lines():
    rng = np.random.default_rng(0)
    lengths, edits = rng.integers(1, 12, 200), rng.integers(0, 3, 200)
    drawn = rng.integers(200, size=(4000, 200))
    low, high = np.quantile(edits[drawn].sum(1) / lengths[drawn].sum(1), [0.025, 0.975])
    interval = cer_interval(["A" * n for n in lengths], edits.tolist(), seed=0, num_samples=4000)
    assert interval == pytest.approx((low, high), abs=0.05 * (high - low))


def test_three_lines_read_right_claim_no_certainty():
    metrics = figures(["ANNA", "BOB", "EVE"], [0, 0, 0], seed=0)
    assert (metrics["cer"], metrics["exact_match"]) == (0, 1)
    # Wilson: the true rate behind 3 of 3 may be 43.8 %; the other 56.2 % of lines might be wrong in every character.
    assert metrics["exact_match_ci"] == pytest.approx((0.4385, 1), abs=1e-4)
    assert metrics["cer_ci"] == pytest.approx((0, 0.5615), abs=1e-4)


def test_lines_without_a_character_have_no_cer():
    metrics = figures(["", ""], [0, 2], seed=0)
    assert (metrics["num_lines"], metrics["num_edits"], metrics["exact_match"]) == (2, 2, 0.5)
    assert metrics["cer"] is metrics["cer_ci"] is None


def test_empty_texts_among_others_leave_an_interval_of_numbers():
    low, high = cer_interval(["A"] + [""] * 11, [1] * 12, seed=0)  # many samples draw no character
    assert 0 < low < high < np.inf
