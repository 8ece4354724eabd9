"""Tests that checkpoints are verified, pruned and written in order."""

import os
import threading
from pathlib import Path

import pytest

from hwr_ray.training.checkpoints import Background, Checkpoints


@pytest.fixture(params=["folder", "memory"])
def checkpoints(request, tmp_path):
    location = (
        str(tmp_path / "checkpoints") if request.param == "folder" else f"memory://checkpoints-{os.urandom(4).hex()}"
    )
    return Checkpoints(location)


def files(checkpoints):
    return sorted(path.name for path in Path(checkpoints.folder).iterdir())


def test_the_newest_is_the_one_after_the_most_steps(checkpoints):
    assert checkpoints.newest() is None
    for step in (9, 100, 20):
        checkpoints.save(b"%d" % step, step=step)
    assert checkpoints.read(checkpoints.newest()) == b"100"
    assert checkpoints.last_step() == 100


@pytest.mark.parametrize("damage", ["truncated", "changed", "emptied"])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning_that_names_it(tmp_path, damage, caplog):
    checkpoints = Checkpoints(str(tmp_path))
    for step in (1, 2):
        checkpoints.save(b"state %d" % step * 100, step=step)
    newest = tmp_path / files(checkpoints)[-1]
    data = newest.read_bytes()
    newest.write_bytes({"truncated": data[:-1], "changed": b"S" + data[1:], "emptied": b""}[damage])
    name = checkpoints.newest()
    assert checkpoints.read(name) == b"state 1" * 100
    assert f"{newest} is damaged" in caplog.text
    checkpoints.drop_after(name)
    assert files(checkpoints) == [name]


def test_what_is_no_checkpoint_is_not_taken_for_one(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(b"state", step=1)
    (tmp_path / f"{files(checkpoints)[0]}.partial-01234567").write_bytes(b"half")
    (tmp_path / "0000000002.pt").write_bytes(b"another program's file")
    assert checkpoints.read(checkpoints.newest()) == b"state"
    checkpoints.prune(1)
    assert len(files(checkpoints)) == 3


def test_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    for step in range(1, 7):
        checkpoints.save(b"state", step=step)
    checkpoints.prune(2)
    assert [int(name.split("-")[0]) for name in files(checkpoints)] == [5, 6]


def test_work_in_the_background_comes_in_order_and_one_at_a_time():
    background, go, done = Background(), threading.Event(), []
    background.do(lambda: (go.wait(10), done.append(1)))
    assert not done
    go.set()
    background.do(lambda: done.append(2))
    background.wait()
    assert done == [1, 2]


def test_what_goes_wrong_in_the_background_is_raised_at_the_next_turn():
    background = Background()
    background.do(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        background.do(print)
