"""Two readings of the same lines, against differences that are known by construction."""

import numpy as np
import pyarrow as pa
import pytest

from hwr_ray.errors import UserError
from hwr_ray.evaluation.comparison import compare, verdict


def evaluation(edits, *, length=10):
    ids = [f"{n:05}" for n in range(len(edits))]
    return pa.table({"id": ids, "text": ["A" * length] * len(edits), "num_edits": pa.array(edits, pa.int32())})


def test_the_differences_are_those_of_the_counts_whatever_the_order():
    mine, theirs = evaluation([0, 1, 0, 3]), evaluation([0, 2, 1, 0])
    found = compare(mine.take([3, 1, 0, 2]), theirs, seed=0)
    assert found["cer"] == pytest.approx(4 / 40 - 3 / 40)
    assert found["exact_match"] == pytest.approx(0.5 - 0.5)
    assert (found["num_lines"], found["num_better"], found["num_worse"]) == (4, 2, 1)
    back = compare(theirs, mine, seed=0)
    assert back["cer"] == -found["cer"] and (back["num_better"], back["num_worse"]) == (1, 2)


def test_a_difference_in_every_line_is_no_luck_and_has_no_width():
    found = compare(evaluation([1] * 50), evaluation([2] * 50), seed=0)
    assert found["cer"] == pytest.approx(-0.1)
    assert found["cer_ci"] == pytest.approx([-0.1, -0.1])
    assert found["cer_p_value"] <= 1e-3
    assert "it reads better" in verdict(found)
    assert "it reads worse" in verdict(compare(evaluation([2] * 50), evaluation([1] * 50), seed=0))


def test_equal_models_are_told_apart_as_rarely_as_the_p_value_says():
    rng = np.random.default_rng(0)
    told = [
        compare(evaluation(rng.poisson(0.4, 300)), evaluation(rng.poisson(0.4, 300)), seed=n)["cer_p_value"] < 0.05
        for n in range(200)
    ]
    assert 1 <= sum(told) <= 22  # 10 are expected; outside of this 1 time in 1,000


def test_the_interval_of_paired_lines_is_that_of_the_differences():
    rng = np.random.default_rng(1)
    theirs = rng.poisson(2, 2000)
    more = rng.integers(-1, 2, 2000) * (theirs > 0)
    found = compare(evaluation(theirs + more), evaluation(theirs), seed=0)
    half = 1.96 * more.std() / 10 / np.sqrt(2000)
    assert found["cer_ci"] == pytest.approx([found["cer"] - half, found["cer"] + half], abs=half / 10)


def test_too_few_different_lines_tell_nothing():
    found = compare(evaluation([1] * 4 + [0] * 96), evaluation([0] * 100), seed=0)
    assert found["cer_ci"] is None and found["cer_p_value"] is None
    assert "too few lines" in verdict(found)
    same = compare(evaluation([1, 0]), evaluation([1, 0]), seed=0)
    assert same["cer"] == 0 and "too few lines" in verdict(same)


def test_other_lines_are_refused():
    with pytest.raises(UserError, match="not of the same lines"):
        compare(evaluation([0, 1]), evaluation([0, 1, 0]), seed=0)
    with pytest.raises(UserError, match="not of the same lines"):
        compare(evaluation([0, 1]), evaluation([0, 1], length=9), seed=0)
