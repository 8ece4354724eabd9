"""Tests of cleaning, decoding and fitting a table of rows, without Ray."""

import pickle
from collections import Counter
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hwr_ray.data import dataset as prepared
from hwr_ray.data.cleaning import CleaningSettings
from hwr_ray.data.labels import ROWS, LabelFile
from hwr_ray.data.prepare import PrepareSettings
from hwr_ray.data.shards import ShardWriter, _shards_of, check_whole, prepare_rows
from hwr_ray.data.statistics import DatasetStatistics
from hwr_ray.errors import UserError
from hwr_ray.images import reader as line_reading
from hwr_ray.images.decode import decode
from hwr_ray.images.lines import Canvas, encode_png, fit

CANVAS = Canvas(16, 64)

LINES = [  # id, label, reason from the CSV, final reason
    ("a.png", "ANNA", None, None),
    ("b.png", " BOB  DOE ", None, None),
    ("c.png", "eve", None, "lowercase"),
    ("gone.png", "GONE", None, "missing_image"),
    ("bad.png", "BAD", None, "undecodable_image"),
    ("a.png", "anna", "duplicate_id", "duplicate_id"),
    ("../x", "", "unsafe_path", "unsafe_path"),
    ("d.png", "  ", None, "missing_text"),
    ("e.png", "NULL", None, None),
]


@pytest.fixture
def rows(tmp_path: Path, draw_text) -> pa.Table:
    for name in "abcde":
        (tmp_path / f"{name}.png").write_bytes(encode_png(draw_text(name, height=20, width=60)))
    (tmp_path / "bad.png").write_bytes(b"no picture")
    records = [
        {
            "split": "train",
            "row": number,
            "id": name,
            "folder": str(tmp_path),
            "path": None if reason == "unsafe_path" else str(tmp_path / name),
            "file": None,
            "text": text,
            "reason": reason,
            "detail": None,
        }
        for number, (name, text, reason, _) in enumerate(LINES, start=1)
    ]
    return pa.Table.from_pylist(records, schema=ROWS)


def prepare(rows: pa.Table) -> list[dict[str, Any]]:
    return prepare_rows(rows, cleaning=CleaningSettings(), canvas=CANVAS)


def test_every_row_comes_back_once_with_its_own_reason(rows):
    prepared_rows = pa.Table.from_pylist(prepare(rows), schema=ROWS)
    assert prepared_rows["row"].to_pylist() == list(range(1, len(LINES) + 1))
    assert prepared_rows["reason"].to_pylist() == [reason for *_, reason in LINES]
    unchanged = ["split", "id", "path", "text"]
    assert prepared_rows.select(unchanged) == rows.select(unchanged)


def test_kept_rows_hold_the_normalized_label_the_first_size_and_the_fitted_picture(rows):
    for row in prepare(rows):
        if row["reason"] is None:
            assert (row["height"], row["width"]) == (20, 60)
            data = Path(row["path"]).read_bytes()
            assert row["digest"] == sha256(data).digest()
            assert np.array_equal(row["image"], fit(decode(data), CANVAS))
        else:
            assert row["image"] is row["height"] is None
        if row["reason"] == "undecodable_image":
            assert row["digest"] == sha256(b"no picture").digest()
    assert prepare(rows)[1]["kept_text"] == "BOB DOE"


@pytest.mark.parametrize("cut", [0, 1, 4, len(LINES)])
def test_a_row_does_not_depend_on_its_neighbours(rows, cut, monkeypatch):
    monkeypatch.setattr(line_reading, "MOST_TOGETHER", 2)
    parts = [*prepare(rows.slice(0, cut)), *prepare(rows.slice(cut))]
    for alone, whole in zip(parts, prepare(rows), strict=True):
        assert np.array_equal(alone.pop("image"), whole.pop("image"))
        assert alone == whole


def test_what_is_written_is_each_split_and_the_rejected_in_their_order(tmp_path, rows):
    mixed = rows.set_column(0, "split", pa.array(["train", "validation", "train"] * 3))
    ShardWriter(str(tmp_path / "out"), CleaningSettings(), CANVAS).write(prepare(mixed), "0.parquet")
    expected = {"train": [("a.png", "ANNA"), ("e.png", "NULL")], "validation": [("b.png", "BOB DOE")]}
    for split, lines in expected.items():
        table = pq.read_table(tmp_path / "out" / split / "0.parquet", partitioning=None)
        assert table.schema.equals(prepared.schema(CANVAS))
        assert list(zip(*table.select(["id", "text"]).to_pydict().values(), strict=True)) == lines
        for row in table.to_pylist():
            assert row["path"] == str(tmp_path / row["id"]) and (row["height"], row["width"]) == (20, 60)
            assert row["image"] == fit(decode(Path(row["path"]).read_bytes()), CANVAS).tobytes()
    table = pq.read_table(tmp_path / "out/rejected/0.parquet", partitioning=None)
    assert table.schema.equals(prepared.REJECTED)
    rejected_rows = [(number, *line[:2], line[3]) for number, line in enumerate(LINES, start=1) if line[3]]
    assert list(zip(*table.select(["row", "id", "text", "reason"]).to_pydict().values(), strict=True)) == rejected_rows
    assert table["split"].to_pylist() == [mixed["split"].to_pylist()[number - 1] for number, *_ in rejected_rows]
    details = dict(zip(table["reason"].to_pylist(), table["detail"].to_pylist(), strict=True))
    assert details["undecodable_image"] == "the file is not an image" and details["lowercase"] is None


def test_shards_that_are_written_again_replace_themselves(tmp_path, draw_text):
    (tmp_path / "a.png").write_bytes(encode_png(draw_text("a", height=20, width=60)))
    (tmp_path / "a.csv").write_text(
        "FILENAME,IDENTITY\n" + "".join(f"{n}/../a.png,ANNA\n" for n in range(3)) + "a.png,\n"
    )
    (tmp_path / "b.csv").write_text("FILENAME,IDENTITY\na.png,BOB\n")
    files = [
        LabelFile(path=str(tmp_path / f"{x}.csv"), form="delimited", images=str(tmp_path), split="train") for x in "ab"
    ]
    table = pa.Table.from_pylist([{"number": n, **asdict(file)} for n, file in enumerate(files)])
    shards = list(_shards_of(table, rows_per_shard=2))
    names = [name for table in shards for name in table["name"].to_pylist()]
    assert names == ["00-000000.parquet", "00-000001.parquet", "01-000000.parquet"]
    writer = ShardWriter(str(tmp_path / "out"), CleaningSettings(), CANVAS)
    for _ in range(2):
        results = [pickle.loads(table["statistics"][0].as_py()) for table in map(writer, shards)]  # noqa: S301
    assert sum(results, DatasetStatistics()).rows == {
        ("train", "unsafe_path"): 3,
        ("train", "missing_text"): 1,
        ("train", "prepared"): 1,
    }
    kept, rejected = (pd.read_parquet(tmp_path / "out" / folder) for folder in ("train", "rejected"))
    assert kept.text.tolist() == ["BOB"]
    assert sorted(rejected.row) == [1, 2, 3, 4]


def test_what_a_killed_process_left_half_written_is_no_part_of_the_data_set(tmp_path, rows):
    writer, out = ShardWriter(str(tmp_path / "out"), CleaningSettings(), CANVAS), str(tmp_path / "out")
    statistics = writer.write(prepare(rows), "0.parquet")
    partial = tmp_path / "out/train/1.parquet.partial-0a1b2c3d"
    partial.write_bytes(b"PAR1 and no end")
    check_whole(out, statistics)
    assert not partial.exists()
    (tmp_path / "out/train/0.parquet").unlink()
    with pytest.raises(RuntimeError, match="0 of 3 train rows"):
        check_whole(out, statistics)


def test_rejected_labels_are_not_read_from_disk(rows, monkeypatch):
    requested = Counter()

    def no_files(_folder, names):
        requested.update(names)
        return iter([b""] * len(names))

    monkeypatch.setattr("hwr_ray.data.shards.read_files", no_files)
    prepare(rows)
    assert requested == Counter(["a.png", "b.png", "gone.png", "bad.png", "e.png"])


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        ({}, "--data or --labels"),
        ({"data": "a", "labels": "b", "images": "c"}, "--data or --labels"),
        ({"data": "a", "images": "c"}, "--images and --split go with --labels"),
        ({"data": "a", "split": "test"}, "--images and --split go with --labels"),
        ({"data": "a", "validation_share": 1.0}, "--validation-share must be above 0 and below 1"),
        ({"labels": "a", "delimiter": "::"}, "--delimiter must be one character or tab"),
        ({"data": "a", "canvas": (4, 64)}, "4x64"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, culprit):
    with pytest.raises(UserError, match=culprit):
        PrepareSettings(out="out", **settings)
