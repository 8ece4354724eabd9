"""Tests of the selection of training lines: folds by id alone, corrected labels, texts from a teacher."""

import logging
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hwr_ray.data.dataset import PreparedSets
from hwr_ray.data.labels import split_of
from hwr_ray.data.selection import (
    MOST_CANDIDATES,
    Selection,
    Teacher,
    fold_of,
    folds_of,
    read_corrections,
    read_selection,
)
from hwr_ray.decoding.decoder import NUM_CANDIDATES
from hwr_ray.errors import UserError
from hwr_ray.files.storage import write_json

NAMES = [f"TRAIN_{number:05}.jpg" for number in range(3000)]


@pytest.mark.parametrize(
    ("line", "of_2", "of_3", "of_5"), [("a.jpg", 0, 0, 1), ("TRAIN_00001.jpg", 1, 2, 1), ("é.png", 0, 0, 2)]
)
def test_a_line_stays_in_its_fold_from_version_to_version(line, of_2, of_3, of_5):
    # printf 'fold of a.jpg' | b2sum -l 64, modulo the number of folds
    assert [fold_of(line, num_folds) for num_folds in (2, 3, 5)] == [of_2, of_3, of_5]


@pytest.mark.parametrize("num_folds", [2, 3, 7])
def test_folds_are_about_equal_also_among_lines_that_were_dealt_out_to_training(num_folds):
    for lines in (NAMES, [line for line in NAMES if split_of(line, None, 0.0) == "train"]):
        sizes = np.bincount(folds_of(lines, num_folds), minlength=num_folds)
        assert len(sizes) == num_folds
        share = 1 / num_folds
        assert abs(sizes / len(lines) - share).max() < 4 * (share * (1 - share) / len(lines)) ** 0.5


def test_each_line_is_left_out_by_exactly_one_fold_whatever_lies_beside_it():
    table = pa.table({"id": NAMES[:50], "text": [line[6:11] for line in NAMES[:50]]})
    kept = [Selection(fold=fold, num_folds=3).of(table) for fold in range(3)]
    assert sorted(row for part in kept for row in part["id"].to_pylist()) == sorted(NAMES[:50] * 2)
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


LINES = pa.table(
    {"id": ["a", "b", "c", "d"], "text": ["ANNA", "BOB", "CLEO", "BOB"], "image": [b"1", b"2", b"3", b"4"]}
)
ERRORS = [  # id, label, prediction, score, confidence
    ("a", "ANNA", "ANNE", 6.92, 0.9),  # log(1000) is 6.908
    ("b", "BOB", "ROB", 6.89, 0.99),
    ("c", "CLEO", "OLEO", 9.0, 0.89),
    ("d", "BOBO", "BOBA", 20.0, 1.0),  # of a line with another label than in LINES
    ("e", "EVE", "", 8.0, 0.95),
    ("f", "ÉVA", "EVA", math.inf, 0.99),  # the bundle can't output É
    ("g", "OLGA", "OLGR", 12.0, 0.99),  # R is not in the charset of the data set
]


@pytest.fixture
def path(tmp_path):
    names = ["id", "text", "prediction", "score", "confidence"]
    pq.write_table(pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in ERRORS]), tmp_path / "e.parquet")
    return str(tmp_path / "e.parquet")


def test_a_sure_prediction_replaces_a_wrong_label_and_other_wrong_lines_are_left_out(path, prepared, caplog):
    caplog.set_level(logging.INFO)
    corrections = read_corrections(path, prepared)
    assert corrections == {
        ("a", "ANNA"): "ANNE",
        ("c", "CLEO"): None,
        ("d", "BOBO"): "BOBA",
        ("e", "EVE"): None,
        ("g", "OLGA"): None,
    }
    assert f"{path}: 2 labels replaced, 3 lines left out" in caplog.text
    selected = Selection(corrections=corrections).of(LINES)
    assert selected.to_pydict() == {"id": ["a", "b", "d"], "text": ["ANNE", "BOB", "BOB"], "image": [b"1", b"2", b"4"]}
    assert selected.schema.equals(LINES.schema)


def test_without_a_fold_and_corrections_a_run_uses_all_lines_as_they_are():
    for selection in (Selection(), Selection(corrections={})):
        assert selection.is_all and selection.digests() == {}
        assert selection.of(LINES).equals(LINES)


def test_a_recipe_tells_corrections_apart_but_not_their_order():
    one, other = {("a", "ANNA"): "ANNE", ("b", "BOB"): None}, {("b", "BOB"): None, ("a", "ANNA"): "ANNE"}
    (digest,) = Selection(corrections=one).digests().values()
    assert Selection(corrections=other).digests() == {"label_errors": digest}
    assert Selection(corrections={**one, ("b", "BOB"): "ROB"}).digests() != {"label_errors": digest}


@pytest.mark.parametrize("content", [b"no parquet", None])
def test_a_file_of_another_kind_is_refused(tmp_path, prepared, content):
    path = tmp_path / "file.parquet"
    if content:
        path.write_bytes(content)
    else:
        pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(UserError, match=f"{path} is not a label_errors.parquet"):
        read_corrections(str(path), prepared)
    with pytest.raises(UserError, match="there is no file"):
        read_corrections(str(tmp_path / "nothing.parquet"), prepared)


def evaluation(folder, rows, split="train", num_best=8, content_hash="c0ffee"):
    """Writes an evaluation with rows of (id, text, prediction, {alternative: share}) and returns its path."""
    (folder / "predictions").mkdir(parents=True)
    alternatives = pa.list_(pa.struct({"text": pa.string(), "share": pa.float32()}))
    columns = zip(*rows, strict=True)
    *texts, others = (list(column) for column in columns)
    others = [[{"text": text, "share": share} for text, share in other.items()] for other in others]
    table = pa.table(
        {
            **dict(zip(["id", "text", "prediction"], texts, strict=True)),
            "alternatives": pa.array(others, alternatives),
        }
    )
    pq.write_table(table, folder / "predictions/0.parquet")
    settings = {"reading": {"num_best": num_best}}
    metrics = {"split": split, "content_hash": content_hash, "settings": settings}
    write_json(str(folder / "metrics.json"), metrics)
    return str(folder)


@pytest.fixture
def prepared(tmp_path):
    """A prepared data set of LINES on a canvas with 5 frames."""
    folder = tmp_path / "prepared"
    (folder / "train").mkdir(parents=True)
    pq.write_table(LINES, folder / "train/0.parquet")
    splits = {"train": {"prepared": len(LINES)}}
    write_json(
        str(folder / "dataset.json"),
        {"canvas": [16, 20], "charset": "ABCELNO", "splits": splits, "content_hash": "c0ffee"},
    )
    return PreparedSets((str(folder),))


READINGS = [
    ("a", "ANNA", "ANNA", {"ANNE": 0.2, "ANN": 0.1}),
    ("b", "BOB", "ROB", {"BOB": 0.25, "BOBO": 0.25}),  # R is not in the charset
    ("c", "CLEO", "CLEOO", {"CLEO": 0.4, "CLLEE": 0.3}),  # they need 6 and 7 frames
    ("d", "BOB", "", {}),
]


def test_a_teacher_proposes_what_the_network_can_write_in_the_proportions_of_its_candidates(tmp_path, prepared):
    path = evaluation(tmp_path / "readings", READINGS)
    teacher = read_selection(prepared, teacher=[path], teacher_weight=0.5).teacher
    assert teacher.candidates == {
        ("a", "ANNA"): (("ANNA", "ANNE", "ANN"), (pytest.approx(0.7), pytest.approx(0.9), 1.0)),
        ("b", "BOB"): (("BOB", "BOBO"), (0.5, 1.0)),
        ("c", "CLEO"): (("CLEO",), (1.0,)),
        ("d", "BOB"): (("",), (1.0,)),
    }
    lines = [("a", "ANNA"), ("b", "BOB"), ("c", "CLEO"), ("z", "ZOE")]
    ids, labels = zip(*lines, strict=True)
    drawn = [teacher.draw(ids, labels, seed=3, epoch=epoch) for epoch in range(2000)]
    shares = [{text: n / 2000 for text, n in Counter(texts).items()} for texts in zip(*drawn, strict=True)]
    sigma = 4 * (0.25 / 2000) ** 0.5  # four standard deviations of a share of one half
    assert shares[0] == pytest.approx({"ANNA": 0.85, "ANNE": 0.1, "ANN": 0.05}, abs=sigma)
    assert shares[1] == pytest.approx({"BOB": 0.75, "BOBO": 0.25}, abs=sigma)
    assert shares[2:] == [{"CLEO": 1.0}, {"ZOE": 1.0}]


def test_a_line_draws_the_same_text_beside_other_lines_and_another_in_other_epochs_and_runs():
    candidates = {(str(n), "A"): (("B", "C", "D", "E"), (0.25, 0.5, 0.75, 1.0)) for n in range(40)}
    teacher, ids = Teacher(candidates=candidates, weight=1.0), list(map(str, range(40)))
    texts = teacher.draw(ids, ["A"] * 40, seed=1, epoch=2)
    assert [teacher.draw([line], ["A"], seed=1, epoch=2)[0] for line in ids] == texts
    assert teacher.draw(ids, ["A"] * 40, seed=1, epoch=3) != texts != teacher.draw(ids, ["A"] * 40, seed=2, epoch=2)
    assert Teacher(candidates=candidates, weight=0.0).draw(ids, ["A"] * 40, seed=1, epoch=2) == ["A"] * 40


def test_an_evaluation_with_all_candidates_has_as_many_as_a_teacher_needs():
    assert MOST_CANDIDATES == NUM_CANDIDATES


def test_what_is_no_teacher_or_of_other_lines_is_refused(tmp_path, prepared, path):
    sentence = r"is no evaluation of training lines with 8 candidates: .* --split train --num-best 8"
    others = {"validation": {"split": "validation"}, "two": {"num_best": 2}}
    for other in [prepared.paths[0], *(evaluation(tmp_path / name, READINGS, **told) for name, told in others.items())]:
        with pytest.raises(UserError, match=sentence):
            read_selection(prepared, teacher=[other])
    foreign = evaluation(tmp_path / "foreign", READINGS, content_hash="decade")
    with pytest.raises(UserError, match=r"foreign is of other lines than .*prepared"):
        read_selection(prepared, teacher=[foreign])
    twice = [evaluation(tmp_path / name, READINGS) for name in ("one", "same")]
    with pytest.raises(UserError, match=r"same is of other lines than .*, or another one is of the same"):
        read_selection(prepared, teacher=twice)
    table = pq.read_table(path)
    pq.write_table(table.filter(pa.array([False, False, False, True, True, True, True])), path)
    with pytest.raises(UserError, match=r"e\.parquet is of other lines than .*prepared: omit --label-errors"):
        read_selection(prepared, label_errors=path)


def test_a_corrected_line_keeps_its_candidates(tmp_path, prepared, path):
    teacher = evaluation(tmp_path / "readings", READINGS)
    selection = read_selection(prepared, label_errors=path, teacher=[teacher], teacher_weight=1.0)
    assert ("a", "ANNA") not in selection.teacher.candidates
    assert selection.teacher.candidates["a", "ANNE"][0] == ("ANNA", "ANNE", "ANN")
    (corrected, *_) = selection.of(LINES).to_pylist()
    assert (corrected["id"], corrected["text"]) == ("a", "ANNE")


def test_corrections_and_a_teacher_are_in_the_recipe_by_their_content(tmp_path, prepared, path):
    teacher = evaluation(tmp_path / "one", READINGS), evaluation(tmp_path / "same", READINGS)
    first, second = (
        read_selection(prepared, label_errors=path, teacher=[one], teacher_weight=0.5).digests() for one in teacher
    )
    assert first == second and first.keys() == {"label_errors", "teacher"}
    other = evaluation(tmp_path / "other", [*READINGS[:3], ("d", "BOB", "BOB", {})])
    assert read_selection(prepared, teacher=[other]).digests()["teacher"] != first["teacher"]
