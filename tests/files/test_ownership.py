"""Tests of folder ownership and of the comparison of an existing run with the requested one."""

import json

import pytest

from hwr_ray.errors import UserError
from hwr_ray.files.ownership import OwnershipToken, difference

FINGERPRINT = {"data": {"lines": {"train": 5}, "canvas": (48, 320)}, "seed": 0, "names": None}


def test_a_fingerprint_is_the_same_after_it_has_been_json():
    assert difference(json.loads(json.dumps(FINGERPRINT)), FINGERPRINT) is None


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ({**FINGERPRINT, "seed": 1}, ("seed", 0, 1)),
        ({**FINGERPRINT, "data": {"lines": {"train": 6}, "canvas": (48, 320)}}, ("data.lines.train", 5, 6)),
        ({**FINGERPRINT, "data": {"lines": {"train": 5}, "canvas": (48, 256)}}, ("data.canvas", [48, 320], [48, 256])),
        ({**FINGERPRINT, "new": "x"}, ("new", None, "x")),
        ({"data": FINGERPRINT["data"], "names": None}, ("seed", 0, None)),
        ({**FINGERPRINT, "names": "", "seed": 2}, ("seed", 0, 2)),  # only the first difference is reported
    ],
)
def test_the_first_field_that_differs_is_named_from_the_outermost_on(requested, expected):
    assert difference(json.loads(json.dumps(FINGERPRINT)), requested) == expected


def test_a_folder_belongs_to_the_last_one_that_took_it(tmp_path):
    first = OwnershipToken.take(str(tmp_path))
    first.check()
    second = OwnershipToken.take(str(tmp_path))
    second.check()
    with pytest.raises(UserError, match=f"another process took over {tmp_path}"):
        first.check()


def test_a_token_that_was_deleted_owns_nothing(tmp_path):
    token = OwnershipToken.take("shown", folder=str(tmp_path))
    (tmp_path / ".owner").unlink()
    with pytest.raises(UserError, match="another process took over shown"):
        token.check()
