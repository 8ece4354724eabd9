"""Tests of statistics: those of parts add up to those of the whole, in any order."""

from collections import Counter
from typing import Any

import pytest

from hwr_ray.data.statistics import DatasetStatistics

ROWS: list[dict[str, Any]] = [
    {"split": "train", "text": "ANNA", "kept_text": "ANNA", "reason": None, "size": (12, 40), "content": [b"1", b"x"]},
    {"split": "train", "text": " BOB", "kept_text": "BOB", "reason": None, "size": (12, 40), "content": [b"2", b"y"]},
    {"split": "train", "text": "eve", "kept_text": None, "reason": "lowercase", "size": None, "content": [b"3", b""]},
    {"split": "train", "text": "", "kept_text": None, "reason": "missing_text", "size": None, "content": [b"4", b""]},
    {"split": "test", "text": "ÀA", "kept_text": "ÀA", "reason": None, "size": (9, 9), "content": [b"1", b"x"]},
]
ROWS[1]["warning"] = ROWS[4]["warning"] = "page"


def statistics(rows: list[dict[str, Any]]) -> DatasetStatistics:
    total = DatasetStatistics()
    for row in rows:
        total.add_row(**row)
    return total


def test_a_tally_counts_rows_by_hand():
    total = statistics(ROWS)
    assert total.splits() == {
        "train": {
            "rows": 4,
            "prepared": 2,
            "rejected": {"lowercase": 1, "missing_text": 1},
            "normalized": 1,
            "invisible_removed": 0,
            "warnings": {"page": 1},
            "most_frames_needed": 5,  # A, N, blank, N, A
        },
        "test": {
            "rows": 1,
            "prepared": 1,
            "rejected": {},
            "normalized": 0,
            "invisible_removed": 0,
            "warnings": {"page": 1},
            "most_frames_needed": 2,
        },
    }
    assert total.warning_counts() == {"page": 2}
    assert total.sizes == {(12, 40): 2, (9, 9): 1}
    assert total.lengths_before == {4: 2, 3: 1, 2: 1}
    assert total.lengths_after == {4: 1, 3: 1, 2: 1}
    assert total.characters_before == Counter("ANNA BOBeveÀA")


def test_the_charset_is_that_of_the_kept_training_labels_sorted():
    assert statistics(ROWS).charset() == "ABNO"


@pytest.mark.parametrize("cut", range(len(ROWS) + 1))
def test_tallies_of_two_parts_add_up_to_that_of_the_whole(cut):
    assert statistics(ROWS[:cut]) + statistics(ROWS[cut:]) == statistics(ROWS)


def test_the_digest_does_not_depend_on_the_order_of_rows():
    assert statistics(ROWS[::-1]) == statistics(ROWS)
    assert 0 < statistics(ROWS).digest < 2**256


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:-1],
        [*ROWS, ROWS[0]],
        [{**ROWS[0], "content": [b"1", b"X"]}, *ROWS[1:]],
        [{**ROWS[0], "content": [b"1x", b""]}, *ROWS[1:]],
        [{**ROWS[0], "content": [b"1", b"y"]}, {**ROWS[1], "content": [b"2", b"x"]}, *ROWS[2:]],
    ],
    ids=["row missing", "row twice", "another image", "bytes moved to another part", "images swapped"],
)
def test_the_digest_changes_with_the_content(rows):
    assert statistics(rows).digest != statistics(ROWS).digest
