"""Files and folders by path and by URI, on this machine and in fsspec's memory."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest
from pyarrow import fs

from hwr_ray.errors import UserError
from hwr_ray.files import storage

NUMBERS = count()


@pytest.fixture(params=["local", "file://", "memory://"])
def root(request, tmp_path) -> str:
    """A folder, as a path and as URIs."""
    if request.param == "memory://":
        return f"memory://storage-{next(NUMBERS)}"
    return str(tmp_path) if request.param == "local" else f"file://{tmp_path}"


def names_in(folder: str) -> list[str]:
    return storage.list_files(folder)


def write_run(out: str, name: str, *, overwrite: bool = False) -> None:
    with storage.staged(out, mark="mark", overwrite=overwrite) as folder:
        storage.write_bytes(storage.join(folder, "mark"), b"")
        storage.write_bytes(storage.join(folder, "deep", name), name.encode())
        storage.write_bytes(storage.join(folder, name), name.encode())


def test_bytes_come_back(root):
    path = storage.join(root, "a", "b.bin")
    assert not storage.is_file(path)
    for data in (b"first", b"", b"second"):
        storage.write_bytes(path, data)
        assert storage.read_bytes(path) == data
    assert storage.is_file(path)
    assert storage.is_folder(storage.join(root, "a"))
    assert not storage.is_folder(path)
    assert names_in(root) == ["a/b.bin"]


@pytest.mark.parametrize(
    "name",
    [
        "a b.png",
        "a#b.png",
        "50%25.png",
        "what?.png",
        "x.png?endpoint_override=evil.example:80&scheme=http",
        "é.png",
        "a+b&c=d.png",
    ],
)
def test_a_file_is_found_under_the_name_that_it_has(root, name):
    storage.write_bytes(storage.join(root, name), b"x")
    assert names_in(root) == [name]
    assert storage.read_bytes(storage.join(root, name)) == b"x"


def test_a_folder_that_is_not_there_holds_no_files(root):
    assert storage.list_files(storage.join(root, "nothing")) == []


def test_names_that_are_not_utf8_are_listed_too(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).touch()
    (tmp_path / "ÿ.jpg").touch()
    assert storage.list_files(str(tmp_path)) == ["\\xff.jpg", "ÿ.jpg"]


def test_links_are_followed_but_not_for_ever_and_a_link_to_nothing_is_a_file(tmp_path):
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "archive").mkdir()
    for name in ("in/a", "in/deep/b", "archive/c"):
        (tmp_path / name).touch()
    for link, target in (("in/2023", "archive"), ("in/deep/up", "in"), ("archive/back", "in"), ("in/gone", "nothing")):
        (tmp_path / link).symlink_to(tmp_path / target)
    (tmp_path / "in/b").symlink_to(tmp_path / "archive/c")
    found = storage.list_files(str(tmp_path / "in"))
    assert found == ["2023/c", "a", "b", "deep/b", "gone"]


def test_what_is_no_file_is_not_listed(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "a.png").touch()
    assert storage.list_files(str(tmp_path)) == ["a.png"]


def test_a_folder_that_can_not_be_listed_is_named_and_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/er/a.png").touch()
    scan = os.scandir

    def scandir(path):  # whoever runs the tests may be allowed to read everything
        if str(path).endswith("er"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(path)

    monkeypatch.setattr(storage.os, "scandir", scandir)
    with pytest.raises(UserError, match=r"deep/er can't be listed: Permission denied"):
        storage.list_files(str(tmp_path))


@pytest.mark.parametrize(
    ("path", "folder", "expected"),
    [
        ("a/b/c", "a", "b/c"),
        ("a", "a", "."),
        ("ab", "a", None),
        ("a", "a/b", None),
        ("file://CWD/a/b", "a", "b"),
        ("link/b", "a", "b"),
        ("a/b", "link", "b"),
        ("a/b", "/", None),
        ("memory://x/a", "memory://x", "a"),
        ("memory://x/a", "a", None),
    ],
)
def test_a_path_within_a_folder_is_told_from_there(tmp_path, monkeypatch, path, folder, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    expected = f"{tmp_path}/a/b"[1:] if folder == "/" else expected
    assert storage.path_within(path.replace("CWD", str(tmp_path)), folder) == expected


def test_two_writers_of_a_file_do_not_meet_in_a_half_one(tmp_path, monkeypatch):
    """The second begins while the first is about to give its file its name."""
    path, move = str(tmp_path / "a"), fs.LocalFileSystem.move
    files = []

    class Local(fs.LocalFileSystem):
        def move(self, source, destination):
            if not files:
                files.append(source)
                storage.write_bytes(path, b"second")
            move(self, source, destination)

    monkeypatch.setattr(storage.fs, "LocalFileSystem", Local)
    storage.write_bytes(path, b"first")
    assert storage.read_bytes(path) == b"first"
    assert storage.list_files(str(tmp_path)) == ["a"]


def test_a_missing_file_is_said_to_be_missing(root):
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(root, "nothing"))


def test_an_unknown_scheme_is_named():
    with pytest.raises(UserError, match="nope://x"):
        storage.locate("nope://x")


def test_local_paths_become_absolute_and_uris_stay(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/../b") == str(tmp_path / "b")
    assert storage.absolute("s3://bucket/a") == "s3://bucket/a"


def test_a_write_that_fails_leaves_the_file_before_whole(tmp_path):
    path = str(tmp_path / "a")
    storage.write_bytes(path, b"before")
    with pytest.raises(TypeError):
        storage.write_bytes(path, object())
    assert storage.read_bytes(path) == b"before"


@pytest.mark.parametrize("full", ["size=16k", "nr_inodes=3"])
def test_a_full_disk_is_named_and_the_file_before_stays_whole(small_disk, full):
    path = str(small_disk.path / "a")
    storage.write_bytes(path, b"before")
    small_disk.mount(f"remount,{full}")  # bytes or files at their end
    with pytest.raises(UserError, match=f"no space is left to write {path}"):
        storage.write_bytes(f"{path}s/deep/b", b"x" * 50_000)
    with pytest.raises(UserError, match=f"no space is left to write {path}"):
        storage.write_bytes(path, b"x" * 50_000)
    assert storage.read_bytes(path) == b"before"
    assert list(small_disk.path.rglob("*.partial*")) == []


def test_json_comes_back_with_its_accents_readable(root):
    path = storage.join(root, "a.json")
    storage.write_json(path, {"name": "ZOÉ", "n": [1, 2.5, None]})
    assert storage.read_json(path) == {"name": "ZOÉ", "n": [1, 2.5, None]}
    assert "ZOÉ" in storage.read_bytes(path).decode()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_what_is_no_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        storage.read_json(str(tmp_path / "a.json"))


def test_a_staged_folder_appears_only_when_its_block_ends(root):
    out = storage.join(root, "out")
    with storage.staged(out, mark="mark", overwrite=False) as folder:
        storage.write_bytes(storage.join(folder, "a"), b"a")
        assert names_in(out) == []
    assert names_in(root) == ["out/a"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_staged_folder_whose_block_raises_leaves_nothing(root, error):
    with pytest.raises(error), storage.staged(storage.join(root, "out"), mark="mark", overwrite=False) as folder:
        storage.write_bytes(storage.join(folder, "a"), b"a")
        raise error
    assert names_in(root) == []


def test_a_folder_that_holds_something_is_refused_and_left_alone(root):
    out = storage.join(root, "out")
    write_run(out, "old")
    with pytest.raises(UserError, match=r"out exists already.*--overwrite"):
        write_run(out, "new")
    assert names_in(root) == ["out/deep/old", "out/mark", "out/old"]


def test_an_overwritten_folder_holds_nothing_of_the_old_one(root):
    out = storage.join(root, "out")
    write_run(out, "old")
    write_run(out + "/", "new", overwrite=True)
    assert names_in(root) == ["out/deep/new", "out/mark", "out/new"]
    assert storage.read_bytes(storage.join(out, "new")) == b"new"


def test_an_overwriting_run_that_fails_keeps_the_old_folder(root):
    out = storage.join(root, "out")
    write_run(out, "old")
    with pytest.raises(RuntimeError), storage.staged(out, mark="mark", overwrite=True) as folder:
        storage.write_bytes(storage.join(folder, "new"), b"new")
        raise RuntimeError
    assert names_in(root) == ["out/deep/old", "out/mark", "out/old"]


def test_a_run_whose_folder_another_run_took_over_ends_and_leaves_the_other_ones(root):
    out = storage.join(root, "out")
    with pytest.raises(UserError, match="another run"), storage.staged(out, mark="mark", overwrite=False) as folder:
        write_run(out, "second")
        storage.write_bytes(storage.join(folder, "mark"), b"")
    assert names_in(root) == ["out/deep/second", "out/mark", "out/second"]


def test_a_run_does_not_replace_what_another_finished_meanwhile(root):
    out = storage.join(root, "out")
    with pytest.raises(UserError, match="exists already"), storage.staged(out, mark="mark", overwrite=False):
        storage.write_bytes(storage.join(out, "mark"), b"other")
    assert names_in(root) == ["out/mark"]


@contextmanager
def cut_off(num_calls: int) -> Iterator[None]:
    """The process is killed at its n-th copy or deletion of a file, if it comes to that."""
    locate, calls = storage.locate, count(1)

    class CutOff:
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
        patch.setattr(storage, "locate", lambda path: (CutOff(locate(path)[0]), locate(path)[1]))
        patch.setattr(storage, "delete", lambda folder: None if sys.exc_info()[0] is Killed else delete(folder))
        with suppress(Killed):
            yield


class Killed(BaseException):
    """After it nothing is cleared away, as after a real kill."""


delete = storage.delete
WHOLE = (["deep/old", "mark", "old"], ["deep/new", "mark", "new"])


@pytest.mark.parametrize("num_calls", range(1, 14))
def test_a_move_on_an_object_store_that_is_cut_off_anywhere_loses_no_folder_nor_shows_half_of_one(num_calls):
    """memory:// has no renames here, as s3:// has none: files are copied one by one. What puts a folder back is cut off
    on the way, too."""
    for again in range(1, 8):
        out = f"memory://storage-{next(NUMBERS)}/out"
        write_run(out, "old")
        with cut_off(num_calls):
            write_run(out, "new", overwrite=True)
        assert "mark" not in names_in(out) or names_in(out) in WHOLE
        with cut_off(again):
            storage.recover(out, "mark")
        assert "mark" not in names_in(out) or names_in(out) in WHOLE
        storage.recover(out, "mark")
        assert names_in(out) in WHOLE
        write_run(out, "new", overwrite=True)
        assert names_in(out) == WHOLE[1] and not names_in(f"{out}.replaced")


def test_a_folder_of_another_kind_is_never_replaced(root):
    storage.write_bytes(storage.join(root, "out", "thesis.tex"), b"years of work")
    with pytest.raises(UserError, match="has no mark"):
        write_run(storage.join(root, "out"), "new", overwrite=True)
    assert names_in(root) == ["out/thesis.tex"]


def test_a_folder_that_was_being_replaced_when_the_process_was_killed_comes_back(root):
    for name in ("old", "mark"):
        storage.write_bytes(storage.join(root, "out.replaced", name), b"old")
    storage.recover(storage.join(root, "out"), "mark")
    assert names_in(root) == ["out/mark", "out/old"]


def test_what_a_killed_run_left_is_not_taken_over(root):
    storage.write_bytes(storage.join(root, "out.partial-0123abcd", "stale"), b"stale")
    write_run(storage.join(root, "out"), "new")
    assert names_in(root) == ["out/deep/new", "out/mark", "out/new"]


def test_a_file_in_the_place_of_the_folder_is_refused_and_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        write_run(str(tmp_path / "file"), "new", overwrite=True)
    (tmp_path / "empty").mkdir()
    write_run(str(tmp_path / "empty"), "new")
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "empty" / "new").exists()
