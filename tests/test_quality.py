"""The quality table in the README, from a result made by hand."""

import pytest

from benchmarks.quality import BEGIN, END, VARIANTS, table, with_table
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


def test_a_row_holds_its_figures_and_a_row_that_was_not_run_says_so():
    lines = table({"rows": {"default recipe": ROW}}).splitlines()
    assert len(lines) == 2 + 1 + len(VARIANTS)
    (row,) = [line for line in lines if line.startswith("| default recipe")]
    assert row == ("| default recipe | 60 | 48 | 0.86 M | 145 M | 4.29 % (3.29 to 5.42) | 83.9 % (80.4 to 86.9) |")
    assert sum("not run" in line for line in lines) == len(VARIANTS)


def test_the_table_replaces_the_one_between_the_marks():
    page = f"a\n{BEGIN}old\n{END}b\n"
    assert with_table(page, "new\n") == f"a\n{BEGIN}new\n{END}b\n"


def test_a_page_without_the_marks_is_refused():
    with pytest.raises(UserError, match="lacks"):
        with_table("a\n", "new\n")


def test_variants_of_one_run_are_trained_alike():
    for run in {variant.run for variant in VARIANTS}:
        assert len({(v.short, v.canvas, v.train) for v in VARIANTS if v.run == run}) == 1
