"""Tests calibration on simulated confidences whose true probability is known."""

import numpy as np
import pytest

from hwr_ray.decoding.calibration import (
    Calibration,
    calibration_error,
    errors_before_and_after,
    fit_calibration,
    review_trade_off,
)


def overconfident(num: int, *, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns reported confidences, true ones and whether texts are correct: reported logit = 2 * true logit + 1."""
    rng = np.random.default_rng(seed)
    true = rng.beta(3, 1.2, num)
    reported = 1 / (1 + np.exp(-(2 * np.log(true / (1 - true)) + 1)))
    return reported, true, rng.random(num) < true


def test_the_fit_finds_the_distortion_that_was_put_in():
    reported, _, is_right = overconfident(50_000, seed=0)
    calibration = fit_calibration(reported, is_right)
    assert calibration.slope == pytest.approx(0.5, abs=0.02)
    assert calibration.intercept == pytest.approx(-0.5, abs=0.04)


def test_calibrated_confidences_are_the_true_chances_on_other_readings():
    reported, _, is_right = overconfident(5_000, seed=1)
    calibration = fit_calibration(reported, is_right)
    new_reported, new_true, new_right = overconfident(5_000, seed=2)
    calibrated = calibration.apply(new_reported)
    assert np.abs(calibrated - new_true).max() < 0.05
    assert calibration_error(new_reported, new_right) > 0.05
    assert calibration_error(calibrated, new_right) < 0.025


@pytest.mark.parametrize("label_noise", [0, 0.03, 0.06])
def test_the_share_of_wrong_labels_is_found_and_confidences_are_those_of_true_texts(label_noise):
    reported, _, is_right = overconfident(20_000, seed=7)
    equals_label = is_right & (np.random.default_rng(7).random(20_000) >= label_noise)
    calibration = fit_calibration(reported, equals_label)
    assert calibration.label_noise == pytest.approx(label_noise, abs=0.01)
    new_reported, new_true, new_right = overconfident(20_000, seed=8)
    calibrated = calibration.apply(new_reported)
    assert np.abs(calibrated - new_true).max() < 0.05
    new_equals = new_right & (np.random.default_rng(8).random(20_000) >= label_noise)
    assert calibration_error(calibration.agreement(calibrated), new_equals) < 0.02
    threshold, _ = calibration.review_threshold(0.9)
    assert new_right[calibrated >= threshold].mean() == pytest.approx(0.9, abs=0.015)


def test_few_lines_without_wrong_labels_rarely_seem_to_have_some():
    fits = [fit_calibration(*overconfident(500, seed=seed)[::2]) for seed in range(40)]
    assert sum(calibration.label_noise > 0 for calibration in fits) <= 6


def test_the_error_after_is_that_of_readings_the_calibration_has_not_seen():
    reported, _, is_right = overconfident(5_000, seed=4)
    before, after = errors_before_and_after(reported, is_right)
    assert before == calibration_error(reported, is_right) > 0.05
    assert after < 0.025


@pytest.mark.parametrize("precision", [0.8, 0.9, 0.95])
def test_the_lines_that_pass_the_review_threshold_have_the_precision(precision):
    reported, _, is_right = overconfident(20_000, seed=5)
    calibration = fit_calibration(reported, is_right)
    threshold, share = calibration.review_threshold(precision)
    new_reported, _, new_right = overconfident(20_000, seed=6)
    passes = calibration.apply(new_reported) >= threshold
    assert new_right[passes].mean() == pytest.approx(precision, abs=0.015)
    assert passes.mean() == pytest.approx(share, abs=0.02)
    assert new_right.mean() < precision


def test_no_line_passes_where_even_the_surest_are_not_sure_enough_and_all_where_all_are():
    calibration = Calibration(slope=1, intercept=0, quantiles=(0.2, 0.5, 0.8))
    assert calibration.review_threshold(0.81) == (np.inf, 0)
    assert calibration.review_threshold(0.5) == (0.2, 1)
    assert calibration.review_threshold(0.65) == (0.5, pytest.approx(2 / 3))


def test_the_order_by_confidence_stays():
    reported = np.sort(np.random.default_rng(3).random(100))
    assert (np.diff(Calibration(slope=0.3, intercept=-2).apply(reported)) > 0).all()


def test_certainty_maps_into_0_to_1():
    ends = Calibration(slope=2, intercept=0).apply(np.array([0.0, 1.0]))
    assert (ends >= 0).all() and (ends <= 1).all() and ends[0] < 1e-6 and ends[1] > 1 - 1e-6


@pytest.mark.parametrize("is_right", [[True] * 20, [False] * 20, [i < 10 for i in range(20)]])
def test_readings_that_show_no_use_of_the_confidence_give_no_calibration(is_right):
    assert fit_calibration(np.linspace(0.1, 0.9, 20), np.array(is_right)) is None


def test_equal_confidences_calibrate_to_none_or_to_the_share_of_right_readings():
    calibration = fit_calibration(np.full(100, 0.9), np.arange(100) < 60)
    assert calibration is None or calibration.apply(np.array([0.9]))[0] == pytest.approx(0.6, abs=0.02)


def test_the_error_is_the_mean_gap_by_hand():
    confidences = np.array([0.2, 0.4, 0.8, 1.0])
    is_right = np.array([False, True, True, True])
    # two bins of two: |0.3 - 0.5| and |0.9 - 1|
    assert calibration_error(confidences, is_right, num_bins=2) == pytest.approx(0.15)


def test_an_error_of_no_reading_is_refused():
    with pytest.raises(ValueError, match="at least one text"):
        calibration_error(np.array([]), np.array([], bool))


@pytest.mark.parametrize(("slope", "intercept"), [(0, 1), (-1, 0), (float("nan"), 0), (1, float("inf"))])
def test_a_calibration_that_would_turn_the_order_is_refused(slope, intercept):
    with pytest.raises(ValueError, match="positive slope"):
        Calibration(slope=slope, intercept=intercept)


def test_the_trade_off_counts_what_passes_each_threshold_by_hand():
    confidences, is_right = np.array([0.5, 0.9, 0.5, 0.8, 0.1]), np.array([True, True, False, False, False])
    passed, right = review_trade_off(confidences, is_right)
    assert passed.tolist() == pytest.approx([1 / 5, 2 / 5, 4 / 5, 1])  # equal confidences pass together
    assert right.tolist() == pytest.approx([1, 1 / 2, 2 / 4, 2 / 5])
