"""One set of drawn lines in every form that label files have, and what is faulty in each."""

import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hwr_ray.data.cleaning import CleaningSettings
from hwr_ray.data.labels import ROWS, LabelFile, find_label_files, label_file, read_rows, split_in, split_of
from hwr_ray.data.prepare import PrepareSettings
from hwr_ray.data.shards import prepare_rows
from hwr_ray.errors import UserError
from hwr_ray.images.lines import Canvas, encode_png

TEXTS = ["ANNA", "DOE, JOHN", 'SAID "HI"', "ZOÉ", "A;B|C", "NULL", "BOB-DOE"]
CANVAS = Canvas(16, 64)
FORMS = [
    "csv",
    "tsv",
    "semicolons",
    "utf16",
    "cp1252",
    "no header",
    "json lines",
    "pairs",
    "metadata",
    "parquet",
    "bytes",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory, draw_text):
    """The bytes of an image for each text, by name."""
    names = [f"{n}.png" for n in range(len(TEXTS))]
    return {name: encode_png(draw_text(text[:4], height=20, width=60)) for name, text in zip(names, TEXTS, strict=True)}


def write(folder: Path, form: str, images: dict[str, bytes]) -> PrepareSettings:
    """Writes the lines in a form; returns the settings that read them."""
    lines, out = folder / "lines", str(folder / "out")
    lines.mkdir(parents=True)
    if form not in ("parquet", "bytes"):
        for name, data in images.items():
            (lines / name).write_bytes(data)
    table = pd.DataFrame({"file_name": list(images), "text": TEXTS})
    path = lines / {"json lines": "labels.jsonl", "tsv": "labels.tsv"}.get(form, "labels.csv")
    settings = {"out": out, "labels": str(path)}
    if form == "csv":
        table.to_csv(path, index=False)
    elif form == "tsv":
        table.to_csv(path, index=False, sep="\t")
    elif form == "semicolons":
        table.to_csv(path, index=False, sep=";")
    elif form == "utf16":
        table.to_csv(path, index=False, encoding="utf-16", lineterminator="\r\n")
    elif form == "cp1252":
        table.to_csv(path, index=False, encoding="cp1252")
        settings["encoding"] = "cp1252"
    elif form == "no header":
        path.write_text("".join(f"{name}\t{text}\n" for name, text in zip(images, TEXTS, strict=True)))
    elif form == "json lines":
        table.to_json(path, orient="records", lines=True)
    elif form == "pairs":
        for name, text in zip(images, TEXTS, strict=True):
            (lines / name).with_suffix(".gt.txt").write_text(text + "\n")
        settings = {"out": out, "data": str(lines)}
    elif form == "metadata":
        table.to_csv(lines / "metadata.csv", index=False)
        settings = {"out": out, "data": str(lines)}
    else:
        column = list(images.values())
        if form == "parquet":
            column = [{"bytes": data, "path": name} for name, data in images.items()]
        pq.write_table(pa.table({"image": column, "text": TEXTS}), lines / "data.parquet", row_group_size=3)
        settings = {"out": out, "data": str(lines)}
    return PrepareSettings(**settings)


@pytest.mark.parametrize("form", FORMS)
def test_a_set_of_lines_is_the_same_in_every_form(tmp_path, images, form):
    (file,) = write(tmp_path, form, images).label_files()
    tables = list(read_rows(file))
    assert all(table.schema == ROWS for table in tables)
    rows = [row for table in tables for row in prepare_rows(table, cleaning=CleaningSettings(), canvas=CANVAS)]
    assert [row["reason"] for row in rows] == [None] * len(TEXTS)
    assert [row["text"] for row in rows] == TEXTS
    assert [row["row"] for row in rows] == list(range(1, len(TEXTS) + 1))
    names = [f"data.parquet#{n}" for n in range(len(TEXTS))] if form == "bytes" else list(images)
    assert [row["id"] for row in rows] == names
    reference = prepare_rows(
        next(read_rows(write(tmp_path / "other", "csv", images).label_files()[0])),
        cleaning=CleaningSettings(),
        canvas=CANVAS,
    )
    for row, other in zip(rows, reference, strict=True):
        assert np.array_equal(row["image"], other["image"])
        for name in ("kept_text", "height", "width", "digest"):
            assert row[name] == other[name]
        assert (row["split"] == other["split"]) or form == "bytes"  # whose ids differ


def label_of(folder: Path, name: str, content: str, **settings) -> list[dict]:
    (folder / name).write_text(content)
    file = replace(label_file(str(folder / name), None, "train"), **settings)
    return [row for table in read_rows(file) for row in table.to_pylist()]


def test_a_line_that_is_no_json_is_rejected_and_the_others_stay(tmp_path):
    lines = ['{"file_name": "a.png", "text": "ANNA"}', "{half", '["a"]', '{"file_name": "b.png", "text": 5}']
    lines += ["", '{"text": null, "file_name": "c.png"}', '{"file_name": "d.png"}']
    rows = label_of(tmp_path, "a.jsonl", "\n".join(lines))
    assert [(row["row"], row["id"], row["text"], row["reason"]) for row in rows] == [
        (1, "a.png", "ANNA", None),
        (2, "", None, "malformed_row"),
        (3, "", None, "malformed_row"),
        (4, "b.png", None, "malformed_row"),
        (5, "c.png", None, None),
        (6, "d.png", None, None),
    ]
    assert rows[1]["detail"].startswith("line 2: not JSON: ")
    assert rows[2]["detail"] == "line 3: not a JSON object"
    assert rows[3]["detail"] == "line 4: file_name and text are not both texts"


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("FILENAME,IDENTITY", ("FILENAME", "IDENTITY")),
        ("age,Text,Image", ("Image", "Text")),
        ("path,transcription", ("path", "transcription")),
    ],
)
def test_the_usual_names_of_columns_are_recognized(tmp_path, header, columns):
    line = ",".join({columns[0]: "a.png", columns[1]: "ANNA"}.get(name, "7") for name in header.split(","))
    (row,) = label_of(tmp_path, "a.csv", f"{header}\n{line}\n")
    assert (row["id"], row["text"]) == ("a.png", "ANNA")


def test_unusual_names_are_asked_for(tmp_path):
    with pytest.raises(UserError, match=r"which column holds the text\? Pass --columns IMAGE TEXT, two of file, name"):
        label_of(tmp_path, "a.csv", "file,name\na.png,ANNA\n")
    (row,) = label_of(tmp_path, "a.csv", "file,name\na.png,ANNA\n", columns=("file", "name"))
    assert row["text"] == "ANNA"
    (row,) = label_of(tmp_path, "a.csv", "x,a.png,ANNA\n", columns=("2", "3"))
    assert (row["id"], row["text"]) == ("a.png", "ANNA")
    with pytest.raises(UserError, match="has one column"):
        label_of(tmp_path, "a.csv", "a.png\n")


def test_texts_beside_images_are_found_at_any_depth_with_second_suffixes(tmp_path):
    names = ["a.png", "b.bin.png", "c.nrm.JPG", "deep/d.tif", "alone.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in ("a", "b", "c", "deep/d", "gone"):
        (tmp_path / f"{name}.gt.txt").write_bytes(b"\xef\xbb\xbf" + f"TEXT OF {name}\r\n".encode())
    (file,) = find_label_files(str(tmp_path))
    rows = next(read_rows(file)).to_pylist()
    found = {row["id"]: row["text"] for row in rows}
    assert found == {
        "a.png": "TEXT OF a",
        "b.bin.png": "TEXT OF b",
        "c.nrm.JPG": "TEXT OF c",
        "deep/d.tif": "TEXT OF deep/d",
        "gone.png": "TEXT OF gone",
    }


def test_a_row_without_an_image_or_a_text_is_rejected(tmp_path):
    table = pa.table({"image": [{"bytes": None, "path": "a.png"}, {"bytes": b"x", "path": None}], "text": ["A", None]})
    pq.write_table(table, tmp_path / "x.parquet")
    (rows,) = read_rows(LabelFile(path=str(tmp_path / "x.parquet"), form="parquet", split="train"))
    first, second = prepare_rows(rows, cleaning=CleaningSettings(), canvas=CANVAS)
    assert (first["reason"], first["detail"]) == ("missing_image", "the row holds no image")
    assert second["reason"] == "missing_text"


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00002.parquet", "train"),
        ("data/validation/0000.parquet", "validation"),
        ("dev.parquet", "validation"),
        ("VAL-1.parquet", "validation"),
        ("my_test_set.parquet", "test"),
        ("contest.parquet", None),
        ("trainer.parquet", None),
        ("lines.parquet", None),
    ],
)
def test_splits_are_told_by_words_of_a_name(name, split):
    assert split_in(name) == split


@pytest.mark.parametrize("kind", ["parquet", "metadata", "pairs"])
def test_folders_and_files_of_splits_are_found(tmp_path, kind):
    for split in ("train", "test"):
        folder = tmp_path / split
        folder.mkdir()
        (folder / "a.png").write_bytes(b"x")
        if kind == "parquet":
            pq.write_table(pa.table({"image": [b"x"], "text": ["A"]}), folder / "0000.parquet")
        elif kind == "metadata":
            (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "A"}\n')
        else:
            (folder / "a.gt.txt").write_text("A")
    files = PrepareSettings(data=str(tmp_path), out="out").label_files()
    assert sorted((file.split, file.validation_share) for file in files) == [("test", 0.0), ("train", 0.1)]
    assert all(sum(map(len, read_rows(file))) == 1 for file in files)
    if kind == "pairs":
        (tmp_path / "b.gt.txt").write_text("B")
        with pytest.raises(UserError, match="1 labels outside of its folders test, train"):
            find_label_files(str(tmp_path))


def test_a_folder_without_labels_is_told_what_is_expected(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"contains no labels: expected .*gt\.txt.*metadata\.csv.*--labels"):
        find_label_files(str(tmp_path))


def test_validation_lines_come_from_the_training_lines_and_stay_when_the_data_grows():
    ids = [f"{n}.png" for n in range(20_000)]
    splits = {name: split_of(name, "train", 0.1) for name in ids}
    share = list(splits.values()).count("validation") / len(ids)
    assert abs(share - 0.1) < 0.0064 and set(splits.values()) == {"train", "validation"}
    assert all(split_of(name, "train", 0.2) == "validation" for name in ids if splits[name] == "validation")
    assert {split_of(name, "test", 0.0) for name in ids} == {"test"}


@pytest.mark.parametrize(
    ("settings", "share"),
    [({}, 0.1), ({"validation_share": 0.25}, 0.25)],
)
def test_a_set_with_validation_lines_gives_none_of_its_training_lines(tmp_path, settings, share):
    for split in ("train", "test"):
        (tmp_path / f"written_name_{split}_v2.csv").touch()
    train, test = PrepareSettings(data=str(tmp_path), out="out", **settings).label_files()
    assert (train.validation_share, test.validation_share) == (share, 0.0)
    (tmp_path / "written_name_validation_v2.csv").touch()
    files = PrepareSettings(data=str(tmp_path), out="out", **settings).label_files()
    assert {file.validation_share for file in files} == {0.0}


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ("a.png", "a.png"),
        ("a.PNG", "a.png"),
        ("sub/a.png", "sub\\a.png"),
        ("a.png", " a.png "),
        ("a.png", "{folder}/a.png"),
        (unicodedata.normalize("NFD", "zoé.png"), unicodedata.normalize("NFC", "zoé.png")),
        ("a.png", "a"),
    ],
)
def test_an_image_is_found_however_its_path_is_spelled(tmp_path, draw_text, there, told):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_bytes(encode_png(draw_text("A", height=20, width=60)))
    rows = read_rows_of(tmp_path, f"file_name,text\n{told.format(folder=tmp_path)},ANNA\nb.png,BOB\n")
    found, missing = prepare_rows(rows, cleaning=CleaningSettings(), canvas=CANVAS)
    assert found["reason"] is None and found["path"] == f"{tmp_path}/{there}" and found["image"] is not None
    assert (missing["reason"], missing["detail"]) == ("missing_image", f"there is no {tmp_path}/b.png")


def read_rows_of(folder: Path, content: str) -> pa.Table:
    (folder / "labels.csv").write_text(content)
    return next(read_rows(label_file(str(folder / "labels.csv"), None, "train")))


INVISIBLE = ["\u200b", "\u200e", "\u200f", "\ufeff", "\u00ad", "\u2060", "\u202a", "\ufe0f", "\U000e0061", "\u200d"]


@pytest.mark.parametrize("character", INVISIBLE)
def test_what_nobody_can_see_is_removed_from_a_label(tmp_path, character):
    rows = read_rows_of(tmp_path, f"file_name,text\na.png,AN{character}NA\n")
    (row,) = prepare_rows(rows, cleaning=CleaningSettings(), canvas=CANVAS)
    assert row["kept_text"] == "ANNA"
    (row,) = prepare_rows(rows, cleaning=CleaningSettings(keep_joiners=True), canvas=CANVAS)
    assert row["kept_text"] == ("AN\u200dNA" if character == "\u200d" else "ANNA")


@pytest.mark.parametrize("character", ["\x93", "\x80", "\x07", "\x7f"])
def test_a_control_character_is_a_reason(tmp_path, character):
    (row,) = prepare_rows(
        read_rows_of(tmp_path, f"file_name,text\na.png,AN{character}NA\n"), cleaning=CleaningSettings(), canvas=CANVAS
    )
    assert row["reason"] == "control_character"


def test_a_training_label_that_needs_more_frames_than_the_canvas_has_is_rejected(tmp_path, draw_text):
    (tmp_path / "a.png").write_bytes(encode_png(draw_text("A", height=20, width=60)))
    texts = ["A" * 8, "A" * 9, "AB" * 8, "AB" * 8 + "A"]  # 15, 17, 16 and 17 frames; the canvas has 16
    content = "file_name,text\n" + "".join(f"{n}/../a.png,{text}\n" for n, text in enumerate(texts))
    content = content.replace("0/../", "").replace("1/../", "./").replace("2/../", ".//").replace("3/../", "././")
    rows = read_rows_of(tmp_path, content)
    reasons = [row["reason"] for row in prepare_rows(rows, cleaning=CleaningSettings(), canvas=CANVAS)]
    assert reasons == [None, "too_many_frames", None, "too_many_frames"]
    file = replace(label_file(str(tmp_path / "labels.csv"), None, "test"))
    reasons = [row["reason"] for row in prepare_rows(next(read_rows(file)), cleaning=CleaningSettings(), canvas=CANVAS)]
    assert reasons == [None] * 4


def test_rows_of_random_json_lines_are_all_accounted_for(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(100):
        lines = []
        for n in range(rng.integers(1, 20)):
            line = json.dumps({"file_name": f"{n}.png", "text": "ZOÉ"}, ensure_ascii=bool(rng.random() < 0.5))
            if rng.random() < 0.4:
                cut = int(rng.integers(1, len(line)))
                line = line[:cut] + str(rng.choice(["", "{", '"', "\\", "0"])) + line[cut + 1 :]
            lines.append(line)
        try:
            rows = label_of(tmp_path, "a.jsonl", "\n".join(lines))
        except UserError as error:
            assert "which column" in str(error)  # the first object has other names
            continue
        assert len(rows) == len(lines)
