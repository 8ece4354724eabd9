"""Delimited text files as programs write them, and faulty ones, of which no row may vanish in another."""

import csv as stdlib_csv
import io
from pathlib import Path

import numpy as np
import pytest

from hwr_ray.errors import UserError
from hwr_ray.files.csv import read_csv


def read(folder: Path, content: str | bytes, **settings):
    """Returns the header, and the fields or the error of each row."""
    path = folder / "a.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = read_csv(str(path), **settings)
    return table.header, [(row.line, row.error or row.fields) for row in table.rows]


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("quoting", [stdlib_csv.QUOTE_MINIMAL, stdlib_csv.QUOTE_ALL])
def test_what_a_program_wrote_is_read_with_its_delimiter(tmp_path, delimiter, quoting):
    rows = [["file", "text"], ["a.png", "ANNA"], ["b.png", 'SAID "HI", O;K|'], ["c.png", "DOE, JOHN"], ["d.png", ""]]
    written = io.StringIO()
    stdlib_csv.writer(written, delimiter=delimiter, quoting=quoting).writerows(rows)
    header, found = read(tmp_path, written.getvalue())
    assert header == rows[0]
    assert [fields for _, fields in found] == rows[1:]


@pytest.mark.parametrize(
    ("content", "delimiter"),
    [
        ("a;b\n1,5;2\n2,5;3\n", ";"),
        ("a.png\tDOE, JOHN\nb.png\tANNA\n", "\t"),
        ("file|text\na|A;B,C\n", "|"),
        ("file,text\na.png,A;B\n", ","),
    ],
)
def test_the_delimiter_is_the_one_that_splits_all_lines_alike(tmp_path, content, delimiter):
    header, rows = read(tmp_path, content)
    assert header == content.split("\n")[0].split(delimiter)
    assert all(len(fields) == 2 for _, fields in rows)


def test_wanted_columns_decide_and_a_given_delimiter_is_taken(tmp_path):
    content = "a;b,c\n1;2,3\n4;5,6\n"
    assert read(tmp_path, content, columns=["a"])[0] == ["a", "b,c"]
    assert read(tmp_path, content, columns=["c"])[0] == ["a;b", "c"]
    assert read(tmp_path, content, delimiter=";")[0] == ["a", "b,c"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_unicode_is_recognized_with_any_line_end(tmp_path, encoding, end):
    content = end.join(["file,text", "a.png,ZOÉ", "b.png,ÅSA", ""]).encode(encoding)
    assert read(tmp_path, content) == (["file", "text"], [(2, ["a.png", "ZOÉ"]), (3, ["b.png", "ÅSA"])])


def test_utf16_with_its_high_byte_first_and_a_mark(tmp_path):
    content = b"\xfe\xff" + "file,text\na,É\n".encode("utf-16-be")
    assert read(tmp_path, content)[1] == [(2, ["a", "É"])]


def test_another_encoding_is_named_by_line_and_read_if_it_is_given(tmp_path):
    content = "file,text\na,ANNA\nb,“ZOÉ”\n".encode("cp1252")
    with pytest.raises(
        UserError, match=r"is not UTF-8: byte 0x93 in line 3, which looks like cp1252: save it as UTF-8"
    ):
        read(tmp_path, content)
    assert read(tmp_path, content, encoding="cp1252")[1][1] == (3, ["b", "“ZOÉ”"])
    with pytest.raises(UserError, match="the encoding klingon is unknown"):
        read(tmp_path, content, encoding="klingon")
    with pytest.raises(UserError, match=r"is not ascii: byte 0x93 in line 3"):
        read(tmp_path, content, encoding="ascii")


LONE = "a quote opens and is never closed"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (['1,"A', "2,B", "3,C"], [LONE, ["2", "B"], ["3", "C"]]),
        (["1,A", "2,B", '3,"C'], [["1", "A"], ["2", "B"], LONE]),
        (['1,"A', "2,B", '3,"C', "4,D"], [LONE, ["2", "B"], LONE, ["4", "D"]]),
        (['1,"A', "2,B", '3,C"', "4,D"], [LONE, ["2", "B"], ["3", 'C"'], ["4", "D"]]),
        (['1,A" B', "2,B"], [["1", 'A" B'], ["2", "B"]]),
        (['1,"A" B', "2,B"], ["',' expected after '\"'", ["2", "B"]]),
        (['1, "A, B"', "2,B"], [["1", "A, B"], ["2", "B"]]),
        (['"1', "", '2"', "3,C"], [LONE, ['2"'], ["3", "C"]]),
        (['1,"two', 'lines"', "2,B"], [["1", "two\nlines"], ["2", "B"]]),
        (['1,"', "", 'x"', "2,B"], [["1", "\n\nx"], ["2", "B"]]),
        (["1,A,X", "2", "3,B"], [["1", "A", "X"], ["2"], ["3", "B"]]),
    ],
)
def test_a_quote_that_is_never_closed_costs_its_own_row_only(tmp_path, lines, expected):
    _, rows = read(tmp_path, "\n".join(["file,text", *lines, ""]))
    assert [found for _, found in rows] == expected


def test_two_lone_quotes_far_apart_swallow_nothing(tmp_path):
    lines = [f"{n}.png,NAME {n}" for n in range(4000)]
    lines[10], lines[30], lines[3990] = '10.png,"LONE', '30.png,LONE"', '3990.png,"LONE'
    _, rows = read(tmp_path, "\n".join(["file,text", *lines]))
    assert [line for line, _ in rows] == list(range(2, 4002))
    assert [line for line, found in rows if found == LONE] == [12, 3992]


def test_quotes_in_tab_separated_files_may_stand_for_themselves(tmp_path):
    assert read(tmp_path, 'a.png\t"HI" SHE SAID\nb.png\t"X\nc.png\tY\n', is_header=lambda first: False) == (
        ["1", "2"],
        [(1, ["a.png", '"HI" SHE SAID']), (2, ["b.png", '"X']), (3, ["c.png", "Y"])],
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("file,text,file\n", "has two columns 'file'"),
        ("file,label\n", "has no column 'text': its columns are file, label"),
    ],
)
def test_a_file_without_its_columns_is_refused(tmp_path, content, said):
    with pytest.raises(UserError, match=said):
        read(tmp_path, content, columns=["text"] if "label" in content else [])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*nowhere"):
        read_csv(str(tmp_path / "nowhere"))


def test_random_bytes_end_in_rows_or_in_a_sentence_and_each_line_is_in_one_row(tmp_path):
    rng = np.random.default_rng(0)
    alphabet = ['"', ",", "\t", ";", "\n", "\r\n", "a", "É", " ", "\x00", "b.png", '""', "\ufeff"]
    for _ in range(400):
        body = "".join(rng.choice(alphabet, rng.integers(1, 60)))
        content = bytearray(("file,text\n" + body).encode())
        if rng.random() < 0.2:
            content[rng.integers(10, len(content))] = int(rng.integers(256))
        try:
            _, rows = read(tmp_path, bytes(content), columns=["file", "text"])
        except UserError:
            continue
        text = bytes(content).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        lines = [number for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        # A row of several lines is a quoted field; all other lines begin a row.
        starts = [line for line, _ in rows]
        several = sum(found.count("\n") for _, fields in rows if isinstance(fields, list) for found in fields)
        assert starts == sorted(set(starts)) and set(starts) <= set(lines[1:])
        assert len(lines) - 1 - several <= len(starts) <= len(lines) - 1
