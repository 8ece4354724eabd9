"""Tests of the selection of training lines: label errors are corrected or left out, and nothing else changes."""

import logging
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hwr_ray.data.selection import Selection, read_corrections
from hwr_ray.errors import UserError

LINES = pa.table(
    {"id": ["a", "b", "c", "d"], "text": ["ANNA", "BOB", "CLEO", "BOB"], "image": [b"1", b"2", b"3", b"4"]}
)
ERRORS = [  # id, label, prediction, score, confidence
    ("a", "ANNA", "ANNE", 6.92, 0.9),  # log(1000) is 6.908
    ("b", "BOB", "ROB", 6.89, 0.99),
    ("c", "CLEO", "OLEO", 9.0, 0.89),
    ("d", "BOBO", "BOBA", 20.0, 1.0),  # of a line with another label than in LINES
    ("e", "EVE", "", math.inf, 0.95),
]


@pytest.fixture
def path(tmp_path):
    names = ["id", "text", "prediction", "score", "confidence"]
    pq.write_table(pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in ERRORS]), tmp_path / "e.parquet")
    return str(tmp_path / "e.parquet")


def test_a_sure_prediction_replaces_a_wrong_label_and_other_wrong_lines_are_left_out(path, caplog):
    caplog.set_level(logging.INFO)
    corrections = read_corrections(path)
    assert corrections == {("a", "ANNA"): "ANNE", ("c", "CLEO"): None, ("d", "BOBO"): "BOBA", ("e", "EVE"): None}
    assert f"{path}: 2 labels replaced, 2 lines left out" in caplog.text
    selected = Selection(corrections=corrections).of(LINES)
    assert selected.to_pydict() == {"id": ["a", "b", "d"], "text": ["ANNE", "BOB", "BOB"], "image": [b"1", b"2", b"4"]}
    assert selected.schema.equals(LINES.schema)


def test_without_a_fold_and_corrections_a_run_uses_all_lines_as_they_are():
    for selection in (Selection(), Selection(corrections={})):
        assert selection.is_all and selection.digest is None
        assert selection.of(LINES).equals(LINES)


def test_a_recipe_tells_corrections_apart_but_not_their_order():
    one, other = {("a", "ANNA"): "ANNE", ("b", "BOB"): None}, {("b", "BOB"): None, ("a", "ANNA"): "ANNE"}
    assert Selection(corrections=one).digest == Selection(corrections=other).digest
    assert Selection(corrections=one).digest != Selection(corrections={**one, ("b", "BOB"): "ROB"}).digest


@pytest.mark.parametrize("content", [b"no parquet", None])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "file.parquet"
    if content:
        path.write_bytes(content)
    else:
        pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(UserError, match=f"{path} is not a label_errors.parquet"):
        read_corrections(str(path))
    with pytest.raises(UserError, match="there is no file"):
        read_corrections(str(tmp_path / "nothing.parquet"))
