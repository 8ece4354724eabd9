"""Tests of the metrics of subgroups on groups made by hand."""

import numpy as np
import pyarrow as pa
import pytest

from hwr_ray.evaluation.subgroups import SUBGROUPS, ranges, subgroup_figures, weak_groups
from hwr_ray.text.metrics import count, edit_distances

COUNTS = ("num_lines", "num_exact", "num_characters", "num_edits")


def evaluated(*lines, widths=None):
    """Returns a table of evaluated lines, given as (text, prediction)."""
    texts, predictions = zip(*lines, strict=True)
    columns = {"text": texts, "num_edits": edit_distances(texts, predictions), "width": widths or [284] * len(texts)}
    return pa.table(columns)


def groups(rows, name):
    """Returns the counts of each group of an attribute."""
    return {row["group"]: tuple(row[c] for c in COUNTS) for row in rows if row["attribute"] == name}


def random_lines(number):
    rng = np.random.default_rng(0)
    texts, predictions = (
        ["".join(rng.choice(list("AB-' "), rng.integers(0, 30))) for _ in range(number)] for _ in "tp"
    )
    return list(zip(texts, predictions, strict=True)), rng.integers(200, 900, number).tolist()


def test_counts_of_disjoint_groups_add_up_to_the_whole():
    lines, widths = random_lines(300)
    whole = count(*zip(*lines, strict=True))
    rows = subgroup_figures(evaluated(*lines, widths=widths), seed=0, training_texts={text for text, _ in lines[:50]})
    assert {row["attribute"] for row in rows} == set(SUBGROUPS)
    for name in set(SUBGROUPS) - {"separators"}:
        found = groups(rows, name)
        assert len(found) > 1
        assert tuple(map(sum, zip(*found.values(), strict=True))) == tuple(getattr(whole, c) for c in COUNTS)


def test_seen_names_are_those_among_the_training_texts():
    lines = evaluated(("ANNA", "ANNA"), ("BOB", "BO"), ("ANNA", "ANA"), ("ANN", "ANN"), ("EVE", "ADA"))
    found = groups(subgroup_figures(lines, seed=0, training_texts=["BOB", "ANNA", "ZOE", "ANNA"]), "training")
    assert found == {"seen": (3, 1, 11, 2), "unseen": (2, 1, 6, 3)}


def test_without_training_texts_no_line_is_called_unseen():
    assert not groups(subgroup_figures(evaluated(("ANNA", "ANNA")), seed=0), "training")


def test_a_line_is_in_the_group_of_each_separator_it_holds():
    lines = evaluated(("A-B C", "A-B C"), ("L'A", "LA"), ("O\u2019A B", "X"), ("EVE", "EVE"), ("BO", "OB"))
    assert groups(subgroup_figures(lines, seed=0), "separators") == {
        "hyphen": (1, 1, 5, 0),
        "space": (2, 1, 10, 5),
        "apostrophe": (2, 0, 8, 6),
        "plain": (2, 1, 5, 2),
    }


def test_doubled_letters_are_equal_neighbours():
    lines = evaluated(("ANNA", "ANA"), ("ANAN", "ANAN"), ("LEE", "LEE"), ("A", "A"))
    assert groups(subgroup_figures(lines, seed=0), "doubled_letters") == {"yes": (2, 1, 7, 1), "no": (2, 2, 5, 0)}


def test_a_group_without_a_line_is_no_row():
    rows = subgroup_figures(evaluated(("AB", "AB")), seed=0)
    assert [(row["attribute"], row["group"]) for row in rows] == [
        ("width", "284"),
        ("length", "2"),
        ("doubled_letters", "no"),
        ("separators", "plain"),
    ]
    assert not subgroup_figures(evaluated(("AB", "AB")).slice(0, 0), seed=0, training_texts={"AB"})


def test_up_to_eight_widths_are_a_group_each():
    widths = np.array([388, 284, 324, 284, 1, 2, 3, 4, 5])
    assert [(label, int(members.sum())) for label, members in ranges(widths)] == [
        *(("1", 1), ("2", 1), ("3", 1), ("4", 1), ("5", 1)),
        *(("284", 2), ("324", 1), ("388", 1)),
    ]


def test_more_than_eight_widths_share_ranges_of_equally_many_lines():
    found = ranges(np.arange(1, 81)[::-1])
    labels = ["1–10", "11–20", "21–30", "31–40", "41–50", "51–60", "61–70", "71–80"]
    assert [(label, int(members.sum())) for label, members in found] == [(label, 10) for label in labels]


def test_stray_widths_fall_into_the_range_of_a_frequent_one():
    widths = np.array([284] * 50 + [388] * 50 + [261, 270, 275, 280, 281, 390, 395])
    found = ranges(widths)
    assert [(label, int(members.sum())) for label, members in found] == [("261–284", 55), ("388", 50), ("390–395", 2)]
    assert np.sum([members for _, members in found], axis=0).tolist() == [1] * len(widths)


@pytest.mark.parametrize("number", [1, 29])
def test_few_lines_are_called_no_weak_group(number):
    rows = subgroup_figures(evaluated(*[("AB", "AB")] * 200, *[("EVE", "XYZ")] * number), seed=0)
    assert not weak_groups(rows, cer=3 * number / (400 + 3 * number))


def test_the_weakest_group_comes_first():
    rows = subgroup_figures(evaluated(*[("AB", "AB")] * 200, *[("EVE", "EVX")] * 30, *[("OTTO", "WXYZ")] * 30), seed=0)
    found = weak_groups(rows, cer=(30 + 120) / (400 + 90 + 120))
    assert [(row["attribute"], row["group"]) for row in found] == [
        ("length", "4"),
        ("doubled_letters", "yes"),
        ("length", "3"),
    ]
