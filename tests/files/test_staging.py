"""Tests that staged folders appear atomically, however their writers end, even on storage without renames."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count

import pytest

from hwr_ray.errors import UserError
from hwr_ray.files import staging, storage
from hwr_ray.files.staging import recover, staged

NUMBERS = count()


def write_run(out: str, name: str, *, overwrite: bool = False) -> None:
    with staged(out, mark="mark", overwrite=overwrite) as folder:
        storage.write_bytes(storage.join(folder, "mark"), b"")
        storage.write_bytes(storage.join(folder, "deep", name), name.encode())
        storage.write_bytes(storage.join(folder, name), name.encode())


def test_a_staged_folder_appears_only_when_its_block_ends(storage_root):
    out = storage.join(storage_root, "out")
    with staged(out, mark="mark", overwrite=False) as folder:
        storage.write_bytes(storage.join(folder, "a"), b"a")
        assert storage.list_files(out) == []
    assert storage.list_files(storage_root) == ["out/a"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_staged_folder_whose_block_raises_leaves_nothing(storage_root, error):
    with pytest.raises(error), staged(storage.join(storage_root, "out"), mark="mark", overwrite=False) as folder:
        storage.write_bytes(storage.join(folder, "a"), b"a")
        raise error
    assert storage.list_files(storage_root) == []


def test_a_folder_that_holds_something_is_refused_and_left_alone(storage_root):
    out = storage.join(storage_root, "out")
    write_run(out, "old")
    with pytest.raises(UserError, match=r"out already exists.*--overwrite"):
        write_run(out, "new")
    assert storage.list_files(storage_root) == ["out/deep/old", "out/mark", "out/old"]


def test_an_overwritten_folder_holds_nothing_of_the_old_one(storage_root):
    out = storage.join(storage_root, "out")
    write_run(out, "old")
    write_run(out + "/", "new", overwrite=True)
    assert storage.list_files(storage_root) == ["out/deep/new", "out/mark", "out/new"]
    assert storage.read_bytes(storage.join(out, "new")) == b"new"


def test_an_overwriting_run_that_fails_keeps_the_old_folder(storage_root):
    out = storage.join(storage_root, "out")
    write_run(out, "old")
    with pytest.raises(RuntimeError), staged(out, mark="mark", overwrite=True) as folder:
        storage.write_bytes(storage.join(folder, "new"), b"new")
        raise RuntimeError
    assert storage.list_files(storage_root) == ["out/deep/old", "out/mark", "out/old"]


def test_a_run_whose_folder_another_run_took_over_ends_and_leaves_the_other_ones(storage_root):
    out = storage.join(storage_root, "out")
    with pytest.raises(UserError, match="another process"), staged(out, mark="mark", overwrite=False) as folder:
        write_run(out, "second")
        storage.write_bytes(storage.join(folder, "mark"), b"")
    assert storage.list_files(storage_root) == ["out/deep/second", "out/mark", "out/second"]


def test_a_run_does_not_replace_what_another_finished_meanwhile(storage_root):
    out = storage.join(storage_root, "out")
    with pytest.raises(UserError, match="already exists"), staged(out, mark="mark", overwrite=False):
        storage.write_bytes(storage.join(out, "mark"), b"other")
    assert storage.list_files(storage_root) == ["out/mark"]


@contextmanager
def killed_at(num_calls: int) -> Iterator[None]:
    """Simulates a kill of the process at its `num_calls`-th copy or deletion of a file, if there are so many."""
    locate, calls = storage.locate, count(1)

    class KillingFileSystem:
        def __init__(self, filesystem):
            self.filesystem = filesystem

        def __getattr__(self, name):
            method = getattr(self.filesystem, name)
            if name not in ("copy_file", "delete_file"):
                return method

            def call(*arguments):
                if next(calls) == num_calls:
                    raise Killed
                return method(*arguments)

            return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "locate", lambda path: (KillingFileSystem(locate(path)[0]), locate(path)[1]))
        patch.setattr(staging, "delete", lambda folder: None if sys.exc_info()[0] is Killed else delete(folder))
        with suppress(Killed):
            yield


class Killed(BaseException):
    """Nothing is cleaned up after it, as after a real kill."""


delete = storage.delete
COMPLETE = (["deep/old", "mark", "old"], ["deep/new", "mark", "new"])


@pytest.mark.parametrize("num_calls", range(1, 14))
def test_a_move_on_an_object_store_that_is_cut_off_anywhere_loses_no_folder_nor_shows_half_of_one(num_calls):
    """Like s3://, memory:// has no renames here: files are copied one by one. The recovery is killed as well."""
    for recovery_calls in range(1, 8):
        out = f"memory://staging-{next(NUMBERS)}/out"
        write_run(out, "old")
        with killed_at(num_calls):
            write_run(out, "new", overwrite=True)
        assert "mark" not in storage.list_files(out) or storage.list_files(out) in COMPLETE
        with killed_at(recovery_calls):
            recover(out, "mark")
        assert "mark" not in storage.list_files(out) or storage.list_files(out) in COMPLETE
        recover(out, "mark")
        assert storage.list_files(out) in COMPLETE
        write_run(out, "new", overwrite=True)
        assert storage.list_files(out) == COMPLETE[1] and not storage.list_files(f"{out}.replaced")


def test_a_folder_of_another_kind_is_never_replaced(storage_root):
    storage.write_bytes(storage.join(storage_root, "out", "thesis.tex"), b"years of work")
    with pytest.raises(UserError, match="has no mark"):
        write_run(storage.join(storage_root, "out"), "new", overwrite=True)
    assert storage.list_files(storage_root) == ["out/thesis.tex"]


def test_a_folder_that_was_being_replaced_when_the_process_was_killed_comes_back(storage_root):
    for name in ("old", "mark"):
        storage.write_bytes(storage.join(storage_root, "out.replaced", name), b"old")
    recover(storage.join(storage_root, "out"), "mark")
    assert storage.list_files(storage_root) == ["out/mark", "out/old"]


def test_what_a_killed_run_left_is_not_taken_over(storage_root):
    storage.write_bytes(storage.join(storage_root, "out.partial-0123abcd", "stale"), b"stale")
    write_run(storage.join(storage_root, "out"), "new")
    assert storage.list_files(storage_root) == ["out/deep/new", "out/mark", "out/new"]


def test_a_file_in_the_place_of_the_folder_is_refused_and_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="is a file"):
        write_run(str(tmp_path / "file"), "new", overwrite=True)
    (tmp_path / "empty").mkdir()
    write_run(str(tmp_path / "empty"), "new")
    assert (tmp_path / "file").read_text() == "kept"
    assert (tmp_path / "empty" / "new").exists()
