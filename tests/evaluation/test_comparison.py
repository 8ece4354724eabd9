"""Tests of the comparison of evaluations on differences that are known by construction."""

import numpy as np
import pyarrow as pa
import pytest

from hwr_ray.errors import UserError
from hwr_ray.evaluation.comparison import compare, verdict


def evaluation(edits, *, length=10):
    ids = [f"{n:05}" for n in range(len(edits))]
    return pa.table({"id": ids, "text": ["A" * length] * len(edits), "num_edits": pa.array(edits, pa.int32())})


def test_the_differences_are_those_of_the_counts_whatever_the_order():
    predictions, baseline = evaluation([0, 1, 0, 3]), evaluation([0, 2, 1, 0])
    result = compare(predictions.take([3, 1, 0, 2]), baseline, seed=0)
    assert result["cer"] == pytest.approx(4 / 40 - 3 / 40)
    assert result["exact_match"] == pytest.approx(0.5 - 0.5)
    assert (result["num_lines"], result["num_better"], result["num_worse"]) == (4, 2, 1)
    reverse = compare(baseline, predictions, seed=0)
    assert reverse["cer"] == -result["cer"] and (reverse["num_better"], reverse["num_worse"]) == (1, 2)


def test_a_difference_in_every_line_is_no_luck_and_has_no_width():
    result = compare(evaluation([1] * 50), evaluation([2] * 50), seed=0)
    assert result["cer"] == pytest.approx(-0.1)
    assert result["cer_ci"] == pytest.approx([-0.1, -0.1])
    assert result["cer_p_value"] <= 1e-3
    assert "significantly better" in verdict(result)
    assert "significantly worse" in verdict(compare(evaluation([2] * 50), evaluation([1] * 50), seed=0))


def test_equal_models_are_told_apart_as_rarely_as_the_p_value_says():
    rng = np.random.default_rng(0)
    is_significant = [
        compare(evaluation(rng.poisson(0.4, 300)), evaluation(rng.poisson(0.4, 300)), seed=n)["cer_p_value"] < 0.05
        for n in range(200)
    ]
    assert 1 <= sum(is_significant) <= 22  # 10 are expected; outside these bounds 1 time in 1,000


def test_the_interval_of_paired_lines_is_that_of_the_differences():
    rng = np.random.default_rng(1)
    baseline = rng.poisson(2, 2000)
    more = rng.integers(-1, 2, 2000) * (baseline > 0)
    result = compare(evaluation(baseline + more), evaluation(baseline), seed=0)
    half = 1.96 * more.std() / 10 / np.sqrt(2000)
    assert result["cer_ci"] == pytest.approx([result["cer"] - half, result["cer"] + half], abs=half / 10)


def test_too_few_different_lines_tell_nothing():
    result = compare(evaluation([1] * 4 + [0] * 96), evaluation([0] * 100), seed=0)
    assert result["cer_ci"] is None and result["cer_p_value"] is None
    assert "too few lines" in verdict(result)
    same = compare(evaluation([1, 0]), evaluation([1, 0]), seed=0)
    assert same["cer"] == 0 and "too few lines" in verdict(same)


def test_other_lines_are_refused():
    with pytest.raises(UserError, match="not of the same lines"):
        compare(evaluation([0, 1]), evaluation([0, 1, 0]), seed=0)
    with pytest.raises(UserError, match="not of the same lines"):
        compare(evaluation([0, 1]), evaluation([0, 1], length=9), seed=0)
