"""Paths as label files have them: kept below their folder, and found in other spellings."""

import unicodedata

import pytest

from hwr_ray.files import storage
from hwr_ray.files.paths import find_spelling, relative_to

SUFFIXES = (".png", ".jpg")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.png", "a.png"),
        (" a.png ", "a.png"),
        ("./a.png", "a.png"),
        ("sub/a b.png", "sub/a b.png"),
        ("sub\\a.png", "sub/a.png"),
        (".\\sub\\a.png", "sub/a.png"),
        ("sub//a.png", "sub/a.png"),
        ("/data/lines/a.png", "a.png"),
        ("/data/lines/sub/a.png", "sub/a.png"),
        ("..a.png", "..a.png"),
        ("/data/linesa.png", None),
        ("/etc/passwd", None),
        ("../a.png", None),
        ("sub/../../a.png", None),
        ("..\\a.png", None),
        ("C:\\a.png", None),
        ("\\\\server\\a.png", None),
        ("s3://bucket/a.png", None),
        ("", None),
        (" ", None),
        ("a\0b", None),
    ],
)
def test_a_path_is_relative_to_its_folder_or_refused(path, expected):
    assert relative_to(path, "/data/lines") == expected


def test_a_uri_below_the_folders_uri_is_relative(tmp_path):
    assert relative_to("s3://bucket/lines/sub/a.png", "s3://bucket/lines") == "sub/a.png"
    assert relative_to("s3://bucket/other/a.png", "s3://bucket/lines") is None


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        ("a.PNG", "a.png"),
        ("a.png", "a.PNG"),
        ("a.Png", "a.png"),
        ("a.jpg", "a"),
        ("a.JPG", "a"),
        ("a.b.png", "a.b"),
        (unicodedata.normalize("NFD", "zoé.png"), unicodedata.normalize("NFC", "zoé.png")),
        (unicodedata.normalize("NFC", "zoé.png"), unicodedata.normalize("NFD", "zoé.png")),
        (unicodedata.normalize("NFD", "zoé.PNG"), unicodedata.normalize("NFC", "zoé")),
        (unicodedata.normalize("NFD", "é/a.png"), unicodedata.normalize("NFC", "é/a.png")),
    ],
)
def test_a_file_is_found_in_another_spelling(storage_root, there, asked):
    storage.write_bytes(storage.join(storage_root, there), b"x")
    assert find_spelling(storage_root, asked, SUFFIXES) == there


@pytest.mark.parametrize("asked", ["b.png", "a.gif", "a.png.png", "A.png"])
def test_another_file_is_not_taken(storage_root, asked):
    storage.write_bytes(storage.join(storage_root, "a.png"), b"x")
    storage.write_bytes(storage.join(storage_root, "a.png.folder/x"), b"x")
    assert find_spelling(storage_root, asked, SUFFIXES) is None
