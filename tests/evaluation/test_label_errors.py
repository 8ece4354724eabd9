"""Tests of the ranking of training lines and of the bundles that it accepts."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from hwr_ray.errors import UserError
from hwr_ray.evaluation.label_errors import LABEL_ERRORS, in_fold_order, measure, rank
from hwr_ray.evaluation.reports import write_label_errors_report

PREPARED = SimpleNamespace(path="prepared", metadata={"content_hash": "c0ffee"})
MALICIOUS = "<script>alert(1)</script>"


def compared(*lines: tuple[str, str, str, float, float]) -> pa.Table:
    """Returns a table of (id, text, prediction, text_log_prob, prediction_log_prob) with the columns of the actors."""
    rows = [
        {"id": id, "path": f"/{id}", "text": text, "height": 20, "width": 90, "prediction": read}
        | {"confidence": math.exp(p), "text_log_prob": q, "prediction_log_prob": p, "fold": 1}
        for id, text, read, q, p in lines
    ]
    columns = [*dict.fromkeys(name for row in rows for name in row)]
    return pa.Table.from_pylist(rows, schema=pa.schema([LABEL_ERRORS.field(name) for name in columns]))


LINES = compared(
    ("e", "ANNA", "ANNA", -0.1, -0.1),
    ("d", "BOB", "BOBO", -9.5, -0.25),
    ("b", "ÄNNE", "ANNE", -math.inf, -0.5),
    ("c", "CLEO", "CLEA", -1.0, -2.0),  # the greedy prediction is not the likeliest text
    ("a", MALICIOUS, "EVE", -math.inf, -3.0),
    ("f", "IDA", "IRA", -7.0, -0.5),
    ("0", "IDA", "IDA", -5.0, -5.0),
)


def test_lines_are_ranked_by_score_the_unwritable_first_and_ties_by_id():
    table = rank(LINES)
    assert table.schema.equals(LABEL_ERRORS)
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == ["a", "b", "d", "f", "0", "e", "c"]
    assert [row["score"] for row in rows] == [math.inf, math.inf, 9.25, 6.5, 0, 0, -1]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["num_edits"] for row in rows[1:]] == [1, 1, 1, 0, 0, 1]


def test_the_order_in_which_lines_come_back_changes_nothing():
    assert rank(LINES.take([6, 2, 0, 5, 1, 3, 4])).equals(rank(LINES))


def test_a_label_looks_wrong_where_the_reading_is_over_1000_times_likelier():
    figures = measure(rank(LINES))
    assert figures["num_lines"] == 7
    assert figures["num_differing"] == 5
    assert figures["num_label_errors"] == 3  # exp(9.25) is 10,405, exp(6.5) is 665
    assert figures["num_unwritable"] == 2


def bundle(path, num_folds, fold, content_hash="c0ffee"):
    return path, {"recipe": {"num_folds": num_folds, "fold": fold}, "data": content_hash}


def test_bundles_are_taken_in_the_order_of_their_folds():
    given = [bundle("z", 3, 1), bundle("y", 3, 2), bundle("x", 3, 0)]
    assert in_fold_order(given, PREPARED) == ["x", "z", "y"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([bundle("a", 1, None), bundle("b", 1, None)], "a was trained without --fold"),
        ([bundle("a", 2, 0), ("b", {})], "b was trained without --fold"),
        ([bundle("a", 2, 0), bundle("b", 2, 1, "other")], "b was trained on another data set than prepared"),
        ([bundle("a", 2, 0), bundle("b", 3, 1)], "b was trained with --num-folds 3, but a with --num-folds 2"),
        ([bundle("a", 2, 0), bundle("b", 2, 0)], "a and b both have --fold 0"),
        ([bundle("a", 3, 2), bundle("b", 3, 0)], "--fold 1 is missing: train it with .*--num-folds 3 --fold 1"),
    ],
)
def test_bundles_that_are_not_one_for_each_fold_are_refused(given, sentence):
    with pytest.raises(UserError, match=sentence):
        in_fold_order(given, PREPARED)


def page_of(tmp_path, table):
    figures = {**measure(table), "prepared": MALICIOUS, "num_folds": 2}
    images = {id: np.full((16, 64), 200, np.uint8) for id in table["id"].to_pylist()}
    write_label_errors_report(str(tmp_path), ranked=table, figures=figures, images=images)
    return (tmp_path / "label_errors.html").read_text()


def test_the_sheet_shows_the_lines_whose_reading_is_likelier_than_their_label_in_their_order(tmp_path):
    page = page_of(tmp_path, rank(LINES))
    assert "<script" not in page
    assert re.findall(r"(\d+)\. score (\S+),", page) == [
        ("1", "inf"),
        ("2", "inf"),
        ("3", "9.2"),
        ("4", "6.5"),
    ]
    assert page.count("data:image/png") == 4
    assert page.count("data:image/svg") == 1
    assert "2 labels can" in page


@pytest.mark.parametrize(("row", "is_shown"), [(0, False), (1, True), (3, False), (4, True)])
def test_one_line_of_any_score_has_a_sheet(tmp_path, row, is_shown):
    page = page_of(tmp_path, rank(LINES.slice(row, 1)))
    assert ("no prediction is likelier than its label" in page) != is_shown
