"""Tests of folds: each line belongs to exactly one, chosen by its id alone."""

import numpy as np
import pyarrow as pa
import pytest

from hwr_ray.data.folds import fold_of, folds_of
from hwr_ray.data.labels import split_of
from hwr_ray.data.selection import Selection

LINES = [f"TRAIN_{number:05}.jpg" for number in range(3000)]


@pytest.mark.parametrize(
    ("line", "of_2", "of_3", "of_5"), [("a.jpg", 0, 0, 1), ("TRAIN_00001.jpg", 1, 2, 1), ("é.png", 0, 0, 2)]
)
def test_a_line_stays_in_its_fold_from_version_to_version(line, of_2, of_3, of_5):
    # printf 'fold of a.jpg' | b2sum -l 64, modulo the number of folds
    assert [fold_of(line, num_folds) for num_folds in (2, 3, 5)] == [of_2, of_3, of_5]


@pytest.mark.parametrize("num_folds", [2, 3, 7])
def test_folds_are_about_equal_also_among_lines_that_were_dealt_out_to_training(num_folds):
    for lines in (LINES, [line for line in LINES if split_of(line, None, 0.0) == "train"]):
        sizes = np.bincount(folds_of(lines, num_folds), minlength=num_folds)
        assert len(sizes) == num_folds
        share = 1 / num_folds
        assert abs(sizes / len(lines) - share).max() < 4 * (share * (1 - share) / len(lines)) ** 0.5


def test_each_line_is_left_out_by_exactly_one_fold_whatever_lies_beside_it():
    table = pa.table({"id": LINES[:50], "text": [line[6:11] for line in LINES[:50]]})
    kept = [Selection(fold=fold, num_folds=3).of(table) for fold in range(3)]
    assert sorted(row for part in kept for row in part["id"].to_pylist()) == sorted(LINES[:50] * 2)
    for fold, part in enumerate(kept):
        assert fold not in folds_of(part["id"].to_pylist(), 3)
        assert part["text"].to_pylist() == [line[6:11] for line in part["id"].to_pylist()]
        halves = [Selection(fold=fold, num_folds=3).of(half) for half in (table.slice(0, 20), table.slice(20))]
        assert pa.concat_tables(halves).equals(part)


def test_no_lines_have_no_folds():
    assert (
        len(Selection(fold=0, num_folds=2).of(pa.table({name: pa.array([], pa.string()) for name in ("id", "text")})))
        == 0
    )
