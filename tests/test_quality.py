"""The quality table in the README, from a result made by hand."""

import json

import pytest

from benchmarks.quality import (
    BEGIN,
    END,
    VARIANTS,
    ancestor_is_whole,
    is_finished,
    read_by,
    table,
    with_table,
)
from hwr_ray.errors import UserError

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
    lines = table({"rows": {"default recipe": ROW}}).splitlines()
    assert len(lines) == 2 + 1
    (row,) = [line for line in lines if line.startswith("| default recipe")]
    assert row == ("| default recipe | 60 | 48 | 0.86 M | 145 M | 4.29 % (3.29 to 5.42) | 83.9 % (80.4 to 86.9) |")


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


def test_the_ancestors_result_is_whole_with_its_last_epoch():
    assert not ancestor_is_whole({"settings": {"epochs": 2}, "epochs": [{}]})
    assert ancestor_is_whole({"settings": {"epochs": 2}, "epochs": [{}, {}]})


def test_variants_of_one_run_are_trained_alike():
    for run in {variant.run for variant in VARIANTS}:
        assert len({(v.short, v.canvas, v.train) for v in VARIANTS if v.run == run}) == 1
