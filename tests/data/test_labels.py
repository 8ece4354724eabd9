"""Tests of reading valid and invalid label CSVs, written by hand."""

from pathlib import Path
from typing import Any

import pytest

from hwr_ray.data.labels import ROWS, LabelFile, find_label_files, read_rows
from hwr_ray.errors import UserError

HEADER = "FILENAME,IDENTITY\n"


def read(folder: Path, content: str | bytes, *, rows_per_table: int = 4096, **changes: Any) -> list[dict[str, Any]]:
    """Returns the rows of a label CSV with this content."""
    (folder / "labels.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    settings = {"path": str(folder / "labels.csv"), "form": "delimited", "images": str(folder), "split": "train"}
    settings = {**settings, **changes}
    tables = list(read_rows(LabelFile(**settings), rows_per_table=rows_per_table))
    assert all(table.schema == ROWS for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def test_a_row_holds_the_name_the_path_and_the_label_as_they_stand(tmp_path):
    assert read(tmp_path, HEADER + "a.jpg, Anna \n") == [
        {
            "split": "train",
            "row": 1,
            "id": "a.jpg",
            "folder": str(tmp_path),
            "path": f"{tmp_path}/a.jpg",
            "file": None,
            "text": " Anna ",
            "reason": None,
            "detail": None,
        }
    ]


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (HEADER + "a,ANNA\nb,\n", ["ANNA", ""]),
        (HEADER + "a,ANNA\n\n\nb,BOB", ["ANNA", "BOB"]),
        (HEADER + 'a,"DOE, JOHN"\nb,"SAID ""HI"""\n', ["DOE, JOHN", 'SAID "HI"']),
        (HEADER.replace("\n", "\r\n") + "a,ANNA\r\nb,BOB\r\n", ["ANNA", "BOB"]),
        (b"\xef\xbb\xbf" + HEADER.encode() + "a,ZOÉ\n".encode(), ["ZOÉ"]),
        ("\nIDENTITY, FILENAME ,AGE\nANNA,a,7\n", ["ANNA"]),
        (HEADER + "a,NA\nb,NULL\nc,NONE\nd,NAN\ne,nan\n", ["NA", "NULL", "NONE", "NAN", "nan"]),
        (HEADER + 'a,5" X\n', ['5" X']),
    ],
    ids=["plain", "blank lines", "quotes", "windows", "bom", "columns", "not missing", "inches"],
)
def test_labels_come_as_they_are_meant(tmp_path, content, texts):
    rows = read(tmp_path, content)
    assert [row["text"] for row in rows] == texts
    assert [row["id"] for row in rows] == list("abcde"[: len(texts)])
    assert all(row["reason"] is None for row in rows)


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        (HEADER, "holds no label"),
        ("FILENAME,NAME\na,A\n", "which column holds the text.*FILENAME, NAME"),
    ],
    ids=["empty", "blank", "header only", "no column"],
)
def test_a_file_that_cannot_be_read_whole_is_refused_and_named(tmp_path, content, culprit):
    with pytest.raises(UserError, match=rf"labels\.csv.*{culprit}"):
        read(tmp_path, content)


def test_bytes_of_another_encoding_are_named_and_can_be_read_with_it(tmp_path):
    content = (HEADER + "a,ZOÉ\n").encode("latin-1")
    with pytest.raises(
        UserError, match=r"labels\.csv is not UTF-8: byte 0xc9 in line 2, which looks like cp1252: .*--encoding"
    ):
        read(tmp_path, content)
    assert read(tmp_path, content, encoding="latin-1")[0]["text"] == "ZOÉ"


@pytest.mark.parametrize(("encoding", "culprit"), [("nope", "nope"), ("base64", "base64"), ("utf-16", "utf-16")])
def test_a_wrong_encoding_is_named(tmp_path, encoding, culprit):
    with pytest.raises(UserError, match=culprit):
        read(tmp_path, HEADER + "a,A\n", encoding=encoding)


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        ("a", "1 fields, not 2"),
        ("a,A,", "3 fields, not 2"),
        ("a,DOE, JOHN", "3 fields, not 2"),
        ('a,"ANNA', "a quote opens and is never closed"),
    ],
)
def test_a_row_with_too_few_or_too_many_fields_is_malformed(tmp_path, line, detail):
    bad, good = read(tmp_path, f"{HEADER}{line}\nb,B\n")
    assert (bad["reason"], bad["detail"]) == ("malformed_row", f"line 2: {detail}")
    assert good["reason"] is None


def test_the_first_of_two_rows_with_one_file_name_stays(tmp_path):
    rows = read(tmp_path, HEADER + "a,ANNA\nb,BOB\na,EVE\n", rows_per_table=1)
    assert [(row["text"], row["reason"]) for row in rows] == [("ANNA", None), ("BOB", None), ("EVE", "duplicate_id")]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../b", "C:\\x", "s3://b/x", "..\\x", "", "a\0b"])
def test_an_unsafe_file_name_has_no_path(tmp_path, name):
    (row,) = read(tmp_path, f"{HEADER}{name},ANNA\n")
    assert (row["reason"], row["path"], row["text"]) == ("unsafe_path", None, "ANNA")


def test_rows_do_not_depend_on_the_size_of_tables(tmp_path):
    content = HEADER + "".join(f"{n % 7},{n}\n" for n in range(10))
    assert read(tmp_path, content) == read(tmp_path, content, rows_per_table=3)


def test_splits_are_dealt_80_10_10_and_stay_when_rows_are_added(tmp_path):
    lines = [f"{n}.jpg,A\n" for n in range(10_000)]
    few = read(tmp_path, HEADER + "".join(lines[5000:]), split=None)
    many = {row["id"]: row["split"] for row in read(tmp_path, HEADER + "".join(lines), split=None)}
    assert all(many[row["id"]] == row["split"] for row in few)
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert abs(list(many.values()).count(split) / 10_000 - share) < 0.012  # 3 standard deviations


def test_any_of_the_three_splits_is_found_in_the_kaggle_layout(tmp_path):
    with pytest.raises(UserError, match=r"written_name_SPLIT_v2\.csv"):
        find_label_files(str(tmp_path))
    (tmp_path / "written_name_test_v2.csv").touch()
    (tmp_path / "written_name_train_v2.csv").touch()
    train, test = find_label_files(str(tmp_path))
    assert (train.split, train.images) == ("train", f"{tmp_path}/train_v2/train")
    assert (test.split, test.path) == ("test", f"{tmp_path}/written_name_test_v2.csv")


def test_a_missing_csv_or_image_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no image folder .*/images"):
        read(tmp_path, HEADER, images=str(tmp_path / "images"))
    with pytest.raises(UserError, match=r"no file .*/other\.csv"):
        read(tmp_path, HEADER, path=str(tmp_path / "other.csv"))
