"""Tests of files and folders by path and by URI, on local disk and in fsspec's memory."""

import errno
import os
from pathlib import Path

import pytest
from pyarrow import fs

from hwr_ray.errors import UserError
from hwr_ray.files import storage


def test_bytes_come_back(storage_root):
    path = storage.join(storage_root, "a", "b.bin")
    assert not storage.is_file(path)
    for data in (b"first", b"", b"second"):
        storage.write_bytes(path, data)
        assert storage.read_bytes(path) == data
    assert storage.is_file(path)
    assert storage.is_folder(storage.join(storage_root, "a"))
    assert not storage.is_folder(path)
    assert storage.list_files(storage_root) == ["a/b.bin"]


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
def test_a_file_is_found_under_the_name_that_it_has(storage_root, name):
    storage.write_bytes(storage.join(storage_root, name), b"x")
    assert storage.list_files(storage_root) == [name]
    assert storage.read_bytes(storage.join(storage_root, name)) == b"x"


def test_a_folder_that_is_not_there_holds_no_files(storage_root):
    assert storage.list_files(storage.join(storage_root, "nothing")) == []


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
    files = storage.list_files(str(tmp_path / "in"))
    assert files == ["2023/c", "a", "b", "deep/b", "gone"]


def test_what_is_no_file_is_not_listed(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "a.png").touch()
    assert storage.list_files(str(tmp_path)) == ["a.png"]


def test_a_folder_that_can_not_be_listed_is_named_and_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/er/a.png").touch()
    scan = os.scandir

    def scandir(path):  # the user of the tests may be allowed to read everything
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
    """The second writer starts just before the first one renames its file."""
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


def test_a_missing_file_is_said_to_be_missing(storage_root):
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(storage_root, "nothing"))


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
    small_disk.mount(f"remount,{full}")  # no space, or no inodes, left
    with pytest.raises(UserError, match=f"no space is left to write {path}"):
        storage.write_bytes(f"{path}s/deep/b", b"x" * 50_000)
    with pytest.raises(UserError, match=f"no space is left to write {path}"):
        storage.write_bytes(path, b"x" * 50_000)
    assert storage.read_bytes(path) == b"before"
    assert list(small_disk.path.rglob("*.partial*")) == []


def test_json_comes_back_with_its_accents_readable(storage_root):
    path = storage.join(storage_root, "a.json")
    storage.write_json(path, {"name": "ZOÉ", "n": [1, 2.5, None]})
    assert storage.read_json(path) == {"name": "ZOÉ", "n": [1, 2.5, None]}
    assert "ZOÉ" in storage.read_bytes(path).decode()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_what_is_no_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is not valid JSON"):
        storage.read_json(str(tmp_path / "a.json"))
