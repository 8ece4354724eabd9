"""Tests of the cleaning rules on single labels."""

import pytest

from hwr_ray.data.cleaning import REASONS, CleaningSettings, reason_for
from hwr_ray.errors import UserError
from hwr_ray.files.paths import is_safe
from hwr_ray.text.normalization import normalize

STRICT = CleaningSettings(max_length=10, charset="ABCDEMNPRTUYL")

LABELS = [  # label, reason to reject a training row with it
    ("ANNA", None),
    ("", "missing_text"),
    ("UNREADABLE", "unreadable"),
    ("EMPTY", "empty_field"),
    ("ANNa", "lowercase"),
    ("RENé", "lowercase"),
    ("unreadable", "lowercase"),
    ("ABCDEABCDEA", "too_long"),
    ("ABCDEABCDE", None),
    ("ZOE", "unknown_character"),
    # The first rule that matches gives the reason.
    ("abcdeabcdez", "lowercase"),
    ("ZZZZZZZZZZZ", "too_long"),
    ("UNREADABLE X", "too_long"),
    # Words that other tools treat as missing values.
    ("NA", None),
]


@pytest.mark.parametrize(("label", "reason"), LABELS)
def test_a_label_leaves_for_the_first_rule_that_holds(label, reason):
    assert reason_for(label, STRICT, is_training=True) == reason


@pytest.mark.parametrize("label", ["NA", "NAN", "NULL", "NONE", "N/A", "-"])
def test_names_that_look_like_a_missing_value_stay(label):
    assert reason_for(label, CleaningSettings(), is_training=True) is None


@pytest.mark.parametrize(
    ("label", "reason"),
    [("UNREADABLE", "unreadable"), ("EMPTY", "empty_field"), ("anna", "lowercase"), ("A" * 21, "too_long")],
)
def test_each_rule_is_on_by_default_and_can_be_turned_off_alone(label, reason):
    assert reason_for(label, CleaningSettings(), is_training=True) == reason
    assert reason_for(label, CleaningSettings(keep=(reason,)), is_training=True) is None
    others = tuple({"unreadable", "empty_field", "lowercase", "too_long"} - {reason})
    assert reason_for(label, CleaningSettings(keep=others), is_training=True) == reason


def test_a_rule_that_is_off_leaves_the_row_to_the_next_one():
    settings = CleaningSettings(keep=("lowercase",), max_length=3)
    assert reason_for("anna", settings, is_training=True) == "too_long"


def test_unknown_characters_stay_in_an_evaluation():
    assert reason_for("ZOE", STRICT, is_training=False) is None


def test_every_reason_is_explained():
    assert {reason for _, reason in LABELS} - {None} <= set(REASONS)


@pytest.mark.parametrize("wrong", [{"max_length": 0}, {"charset": ""}, {"charset": "ABA"}])
def test_settings_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(UserError):
        CleaningSettings(**wrong)


@pytest.mark.parametrize(
    ("raw", "seen"),
    [
        ("E\u0301", "\u00c9"),
        (" A  B\t\u00a0C\n", "A B C"),
        ("", ""),
        (" \u2003 ", ""),
        ("A-B'C", "A-B'C"),
    ],
)
def test_normalized_text_is_what_a_reader_can_see_and_stays_when_normalized_again(raw, seen):
    assert normalize(raw) == seen == normalize(seen)


@pytest.mark.parametrize("path", ["a.jpg", "a/b.jpg", "a..b.jpg", "..a/b.jpg", "é ü.png", "a/b:c.png", "NA"])
def test_plain_paths_below_the_folder_are_safe(path):
    assert is_safe(path)


UNSAFE = ["", " ", "../x", "/etc/passwd", "a/../../b", "a/..", "..", "C:\\x", "C:x", "s3://b/x", "..\\x", "a\0b"]


@pytest.mark.parametrize("path", UNSAFE)
def test_paths_that_may_leave_the_folder_are_unsafe(path):
    assert not is_safe(path)
