"""Facts of a run that is there against those of the one that is asked for."""

import json

import pytest

from hwr_ray.errors import UserError
from hwr_ray.files.ownership import Claim, difference

FACTS = {"data": {"lines": {"train": 5}, "canvas": (48, 320)}, "seed": 0, "names": None}


def test_facts_are_the_same_after_they_have_been_json():
    assert difference(json.loads(json.dumps(FACTS)), FACTS) is None


@pytest.mark.parametrize(
    ("here", "found"),
    [
        ({**FACTS, "seed": 1}, ("seed", 0, 1)),
        ({**FACTS, "data": {"lines": {"train": 6}, "canvas": (48, 320)}}, ("data.lines.train", 5, 6)),
        ({**FACTS, "data": {"lines": {"train": 5}, "canvas": (48, 256)}}, ("data.canvas", [48, 320], [48, 256])),
        ({**FACTS, "new": "x"}, ("new", None, "x")),
        ({"data": FACTS["data"], "names": None}, ("seed", 0, None)),
        ({**FACTS, "names": "", "seed": 2}, ("seed", 0, 2)),  # the first one
    ],
)
def test_the_first_field_that_differs_is_named_from_the_outermost_on(here, found):
    assert difference(json.loads(json.dumps(FACTS)), here) == found


def test_a_folder_belongs_to_the_last_one_that_claimed_it(tmp_path):
    first = Claim(str(tmp_path)).make()
    first.check()
    second = Claim(str(tmp_path)).make()
    second.check()
    with pytest.raises(UserError, match=f"another process began to write {tmp_path} and took over"):
        first.check()
