"""The quality table in the documentation, from a result made by hand."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.machine import ROOT
from benchmarks.quality import (
    ROWS,
    SHIPPED_ROW,
    VARIANTS,
    against,
    ancestor_is_whole,
    is_finished,
    read_by,
    run,
    write,
)
from benchmarks.quality_table import BEGIN, END, table, with_table
from hwr_ray.errors import UserError
from hwr_ray.recognition.bundle import load_bundle
from hwr_ray.recognition.bundle_config import SHIPPED

ROW = {
    "epochs": 60,
    "minutes": 48.2,
    "parameters": 858_084,
    "multiply_adds": 145_305_600,
    "cer": 0.0429,
    "cer_ci": [0.0329, 0.0542],
    "exact_match": 0.839,
    "exact_match_ci": [0.8041, 0.8687],
}


def test_a_row_holds_its_figures_and_a_row_that_was_not_run_is_left_out():
    lines = table({"short, greedy": ROW}, ROWS).splitlines()
    assert len(lines) == 2 + 1
    assert lines[2] == "| short, greedy | 60 | 48 | 0.86 M | 145 M | 4.29 % (3.29 to 5.42) | 83.9 % (80.4 to 86.9) |  |"
    beside = {"cer": -0.0067, "cer_ci": [-0.015, 0.0009]}
    (*_, row) = table({"short, greedy, seed 1": {**ROW, "against_short": beside}}, ROWS).splitlines()
    assert row.endswith("| -0.67 (-1.50 to +0.09) |")


def test_the_table_replaces_the_one_between_the_marks():
    page = f"a\n{BEGIN}old\n{END}b\n"
    assert with_table(page, "new\n") == f"a\n{BEGIN}new\n{END}b\n"


@pytest.mark.parametrize("page", ["a\n", BEGIN, END, END + BEGIN])
def test_a_page_without_both_marks_in_order_is_refused(page):
    with pytest.raises(UserError, match="lacks"):
        with_table(page, "new\n")


def test_a_run_is_finished_once_its_decoder_is_fitted(tmp_path):
    config = tmp_path / "best/config.json"
    assert not is_finished(tmp_path)
    config.parent.mkdir()
    config.write_text(json.dumps({"training": {"recipe": {}}}))  # after its first epoch
    assert not is_finished(tmp_path)
    config.write_text(json.dumps({"training": {"recipe": {}, "decoder": {}}}))
    assert is_finished(tmp_path)


def test_an_evaluation_of_another_bundle_does_not_count(tmp_path):
    assert not read_by(tmp_path, "abc")
    (tmp_path / "metrics.json").write_text(json.dumps({"model_id": "abc"}))
    assert read_by(tmp_path, "abc") and not read_by(tmp_path, "def")


def test_the_ancestors_result_is_whole_with_its_last_epoch(tmp_path):
    file = tmp_path / "ancestor.json"
    assert not ancestor_is_whole(file)
    for epochs in ([{}], [{}, {}]):
        file.write_text(json.dumps({"settings": {"epochs": 2}, "epochs": epochs}))
        assert ancestor_is_whole(file) == (len(epochs) == 2)


def test_what_is_done_is_told_as_it_was_made(tmp_path):
    note, script = tmp_path / "notes/a.json", tmp_path / "a.py"
    script.write_text("")
    assert run(str(script), note=note, here={}, done=True) is None
    made = run(str(script), "--epochs", "6", note=note, here={"commit": "abc"}, done=False)
    assert made == {"command": f"python {script} --epochs 6", "commit": "abc"}
    assert run(str(script), "--epochs", "9", note=note, here={"commit": "def"}, done=True) == made


def test_a_difference_to_the_same_lines_is_paired(tmp_path):
    texts, edits = ["ABCD"] * 50, np.arange(50) % 3
    for name, more in (("a", 0), ("b", 1)):
        (tmp_path / name / "predictions").mkdir(parents=True)
        (tmp_path / name / "metrics.json").touch()
        ids, order = [f"{n:02}" for n in range(50)], np.random.default_rng(more).permutation(50)
        rows = pa.table({"id": ids, "text": texts, "num_edits": edits + more}).take(order)
        pq.write_table(rows, tmp_path / name / "predictions/0.parquet")
    found = against(tmp_path / "b", tmp_path / "a")
    assert found["cer"] == pytest.approx(0.25)
    assert found["cer_ci"] == pytest.approx([0.25, 0.25])  # each line has one more, whichever are drawn
    assert against(tmp_path / "b", tmp_path / "b") is None and against(tmp_path / "b", tmp_path / "c") is None


def test_rows_of_another_process_stay(tmp_path):
    out = tmp_path / "quality.json"
    write(out, {"a": ROW})
    write(out, {"b": ROW, "a": {}})
    assert json.loads(out.read_text()) == {"rows": {"a": {}, "b": ROW}}


def test_the_pages_the_card_and_the_shipped_weights_are_those_of_the_result():
    rows = json.loads((ROOT / "benchmarks/results/quality.json").read_text())["rows"]
    page = (ROOT / "docs/results.md").read_text()
    assert with_table(page, table(rows, ROWS)) == page
    row = rows[SHIPPED_ROW]
    (low, high), (least, most) = row["cer_ci"], row["exact_match_ci"]
    told = f"{100 * row['cer']:.2f} % ({100 * low:.2f} to {100 * high:.2f}) | {100 * row['exact_match']:.1f} %"
    assert f"{told} ({100 * least:.1f} to {100 * most:.1f})" in (ROOT / "README.md").read_text()
    assert load_bundle(SHIPPED).model_id == row["model_id"]
    card = Path(SHIPPED, "README.md").read_text()
    for figure in ("cer", "exact_match"):
        (low, high), value = row[f"{figure}_ci"], row[figure]
        assert f"{100 * value:.2f} % ({'95 %: ' if figure == 'cer' else ''}{100 * low:.2f} to {100 * high:.2f})" in card
    for counts in row["review"].values():
        assert str(counts["passed"]) in card and str(counts["right"]) in card


def test_variants_of_one_run_are_trained_alike():
    for name in {variant.run for variant in VARIANTS}:
        assert len({(v.short, v.canvas, v.train) for v in VARIANTS if v.run == name}) == 1
