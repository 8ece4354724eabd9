"""Transcripts of partitions and their summary, without Ray."""

import json
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hwr_ray.decoding.calibration import Calibration
from hwr_ray.decoding.decoder import Decoding
from hwr_ray.errors import UserError
from hwr_ray.files.ownership import difference
from hwr_ray.images.lines import Canvas, encode_png, fit
from hwr_ray.recognition.bundle import load_bundle
from hwr_ray.recognition.bundle_config import SHIPPED
from hwr_ray.transcription.actors import LineReader, PartitionReader, partitions_at_once
from hwr_ray.transcription.inputs import InputSettings, open_inputs
from hwr_ray.transcription.partitions import Partitions, read_inputs
from hwr_ray.transcription.settings import ReadingSettings
from hwr_ray.transcription.transcribe import (
    TranscribeSettings,
    fingerprint_of,
    transcribe,
)
from hwr_ray.transcription.transcripts import (
    ALTERNATIVES,
    CHARACTERS,
    TRANSCRIPTS,
    describe_review,
    errors_of,
    fetch_partitions,
    load_packed,
    load_partition,
    slowest,
    store_partition,
    summarize,
    to_transcripts,
    unpack,
)

CANVAS = Canvas(16, 64)
CONFIDENCES = [0.9, None, 0.2, 0.5, 1.0, 0.0, 0.7]


def readings(*, partition: str = "a-000000.parquet", num_rows: int | None = None, padding: int = 0) -> pa.Table:
    """Returns the predictions for a partition in which one image could not be read."""
    number, noise = len(CONFIDENCES), np.random.default_rng(3)
    return pa.table(
        {
            "partition": [partition] * number,
            "num_rows": [num_rows or number] * number,
            "read_seconds": [0.25] * number,
            "decode_seconds": [0.5] * number,
            "model_seconds": [2.0] * number,
            "id": pa.nulls(number, pa.string()),
            "path": [f"{n}.png" for n in range(number)],
            "height": pa.array([None if c is None else 40 for c in CONFIDENCES], pa.int32()),
            "width": pa.array([None if c is None else 100 for c in CONFIDENCES], pa.int32()),
            "warning": pa.array([None, None, "blank", None, None, "page", "blank"]),
            "error": ["undecodable_image: the file is empty" if c is None else None for c in CONFIDENCES],
            "prediction": [None if c is None else noise.bytes(padding).hex() for c in CONFIDENCES],
            "confidence": pa.array(CONFIDENCES, pa.float32()),
            "alternatives": pa.array([None if c is None else [] for c in CONFIDENCES], ALTERNATIVES),
            "characters": pa.nulls(number, CHARACTERS),
        }
    )


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.71, 0.9, 1.0, np.inf])
def test_what_is_less_sure_than_the_threshold_or_unread_needs_review(threshold):
    transcripts = to_transcripts(readings(), model_id="m", threshold=threshold)
    confidences = np.array([np.nan if c is None else np.float32(c) for c in CONFIDENCES], np.float64)
    assert transcripts["needs_review"].to_pylist() == [not passes for passes in confidences >= threshold]


def test_without_a_threshold_it_is_not_known_what_needs_review():
    assert to_transcripts(readings(), model_id="m", threshold=None)["needs_review"].null_count == len(CONFIDENCES)


def test_transcripts_have_their_columns_and_the_readings_values():
    table = readings(padding=4)
    transcripts = to_transcripts(table, model_id="m", threshold=0.5)
    assert transcripts.schema == TRANSCRIPTS
    assert transcripts["text"].to_pylist() == table["prediction"].to_pylist()
    assert set(transcripts["model_id"].to_pylist()) == {"m"}
    for name in ("id", "path", "confidence", "alternatives", "characters", "warning", "error", "height", "width"):
        assert transcripts[name].to_pylist() == table[name].to_pylist()


def test_a_part_is_loaded_in_its_order_each_row_with_its_picture_or_its_reason(tmp_path, draw_text):
    (tmp_path / "in/deep").mkdir(parents=True)
    pictures = {f"deep/{n}.png": draw_text("ABC"[n % 3] * n, height=20 + n, width=90) for n in range(5)}
    for name, picture in pictures.items():
        (tmp_path / "in" / name).write_bytes(encode_png(picture))
    (tmp_path / "in/empty.png").touch()
    (tmp_path / "in/gone.png").write_bytes(b"x")
    inputs, out = open_inputs(InputSettings(images=str(tmp_path / "in"))), str(tmp_path / "out")
    names = list(Partitions(out, {}).assign(inputs.tables(), most=4))
    (tmp_path / "in/gone.png").unlink()
    rows = []
    for name in names:
        table = load_partition(pa.table({"partition": [name]}), out=out, inputs=inputs, canvas=CANVAS)
        paths = read_inputs(out, name)["path"].to_pylist()
        assert table["path"].to_pylist() == paths
        assert table["partition"].to_pylist() == [name] * len(paths)
        assert table["num_rows"].to_pylist() == [len(paths)] * len(paths)
        rows += table.to_pylist()
    by_path = {row["path"]: row for row in rows}
    assert sorted(by_path) == sorted([*pictures, "empty.png", "gone.png"])
    for name, picture in pictures.items():
        image = np.frombuffer(by_path[name]["image"], np.uint8).reshape(16, 64)
        assert np.array_equal(image, fit(picture, CANVAS))
        assert (by_path[name]["height"], by_path[name]["width"], by_path[name]["error"]) == (*picture.shape, None)
    for name, error in (("empty.png", "undecodable_image: the file is empty"), ("gone.png", "missing_image: ")):
        assert by_path[name]["error"].startswith(error)
        assert by_path[name]["image"] is by_path[name]["height"] is by_path[name]["width"] is None


def test_a_partition_is_read_the_same_whether_its_images_are_loaded_or_fetched_here_or_elsewhere(
    tmp_path, draw_text, bundle_path, monkeypatch
):
    loaded = []

    def load_model(*args):
        reader = LineReader(*args)
        loaded.append(time.monotonic())
        return reader

    monkeypatch.setattr("hwr_ray.transcription.actors.LineReader", load_model)
    monkeypatch.setattr("hwr_ray.transcription.settings.per_node", lambda number: number)
    monkeypatch.setattr("hwr_ray.transcription.settings.threads_among", lambda _: torch.get_num_threads())
    (tmp_path / "in").mkdir()
    for n in range(5):
        (tmp_path / f"in/{n}.png").write_bytes(encode_png(draw_text("ABC"[n % 3] * (n + 1), height=16, width=60)))
    (tmp_path / "in/bad.png").touch()
    inputs, written = open_inputs(InputSettings(images=str(tmp_path / "in"))), []
    for where in ("here", "loaded", "fetched"):
        out = str(tmp_path / f"out-{where}")
        (name,) = Partitions(out, {}).assign(inputs.tables(), most=9)
        load = partial(load_partition, out=out, inputs=inputs, canvas=load_bundle(bundle_path).canvas)
        partition = pa.table({"partition": [name]})
        if where == "loaded":
            partition, load = load_packed(partition, load=load), unpack
        elif where == "fetched":
            (partition,) = fetch_partitions(partition, out=out, inputs=inputs)
        reader = PartitionReader(bundle_path, ReadingSettings(), load, out, 0.5)
        (row,) = reader(partition).to_pylist()
        assert row["model_seconds"] + row["write_seconds"] <= row["ready_seconds"] <= time.monotonic() - loaded[-1]
        reason = "missing_image" if where == "fetched" else "undecodable_image"  # of an empty file, as of a null
        assert (row["partition"], row["num_rows"], row["errors"]) == (name, 6, [(reason, 1)])
        written.append(pq.read_table(f"{out}/_work/outputs/{name}").drop_columns("error"))
    assert written[0] == written[1] == written[2]
    assert written[0]["text"].null_count == 1


def test_a_part_is_stored_as_its_transcripts_and_told_in_one_row(tmp_path):
    rows = store_partition(readings(), out=str(tmp_path), model_id="m", threshold=0.5).to_pylist()
    assert len(rows) == 1
    assert rows[0].pop("write_seconds") >= 0
    assert rows[0] == {
        "partition": "a-000000.parquet",
        "num_rows": 7,
        "errors": [("undecodable_image", 1)],
        "read_seconds": 0.25,
        "decode_seconds": 0.5,
        "model_seconds": 2.0,
    }
    stored = pd.read_parquet(tmp_path / "_work/outputs/a-000000.parquet")
    assert stored.path.tolist() == [f"{n}.png" for n in range(7)]
    assert list(stored.columns) == TRANSCRIPTS.names


def test_a_part_of_which_rows_are_missing_or_strange_is_not_stored(tmp_path):
    for table in (readings(num_rows=8), pa.concat_tables([readings().slice(0, 4), readings(partition="b").slice(4)])):
        with pytest.raises(RuntimeError, match=r"the partition a-000000\.parquet has 7 of its [78] rows"):
            store_partition(table, out=str(tmp_path), model_id="m", threshold=0.5)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_to_be_full_and_holds_no_half_part(small_disk):
    out = str(small_disk.path)
    with pytest.raises(UserError, match=f"no space is left to write {out}"):
        store_partition(readings(padding=50_000), out=out, model_id="m", threshold=0.5)
    assert [path for path in small_disk.path.rglob("*") if path.is_file()] == []
    small_disk.mount("remount,size=4m")
    store_partition(readings(padding=50_000), out=out, model_id="m", threshold=0.5)
    assert len(pd.read_parquet(small_disk.path / "_work/outputs")) == 7


def test_errors_of_earlier_attempts_are_counted_and_those_of_unread_parts_are_not(tmp_path):
    rows = pa.table({"id": pa.nulls(21, pa.string()), "path": [f"{n}.png" for n in range(21)]})
    partitions = Partitions(str(tmp_path), {})
    assert errors_of(partitions) == (0, {})
    names = list(partitions.assign([rows], most=7))
    for name in names[1:]:
        store_partition(readings(partition=name).slice(0, 7), out=partitions.out, model_id="m", threshold=None)
        store_partition(readings(partition="unknown"), out=partitions.out, model_id="m", threshold=None)
    assert errors_of(partitions) == (14, {"undecodable_image": 2})


@pytest.mark.parametrize("threshold", [None, 0.0, 0.6, np.inf])
def test_the_summary_counts_what_is_in_the_files(tmp_path, threshold):
    errors = [None, "missing_image: there is no such file", "undecodable_image: it is: no image", None, None]
    for number in range(2):  # the second job adds to the first
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        for n in range(5):
            (folder / f"{number}-{n}.png").touch()
        partitions = Partitions(str(tmp_path / "out"), {})
        for name in partitions.assign(open_inputs(InputSettings(images=str(folder))).tables(), most=2):
            rows = read_inputs(partitions.out, name)
            numbers = [int(path.split("-")[1][0]) for path in rows["path"].to_pylist()]
            columns = {
                "path": rows["path"],
                "warning": pa.array(["page" if n == 3 else None for n in numbers], pa.string()),
                "error": pa.array([errors[n] for n in numbers], pa.string()),
                "confidence": pa.array([None if errors[n] else n / 4 for n in numbers], pa.float32()),
            }
            read = readings(partition=name, num_rows=len(rows)).slice(0, len(rows)).drop_columns(list(columns))
            for column, values in columns.items():
                read = read.append_column(column, values)
            store_partition(read, out=partitions.out, model_id="m", threshold=threshold)
        partitions.finish()
    frame = pd.read_parquet(tmp_path / "out")
    assert len(frame) == 10
    assert summarize(partitions) == {
        "num_images": 10,
        "num_read": frame.error.isna().sum(),
        "num_review": None if threshold is None else frame.needs_review.sum(),
        "errors": {"missing_image": 2, "undecodable_image": 2},
        "warnings": {"page": 2},
    }


def test_the_threshold_is_that_of_the_decoder_that_reads(tiny_bundle):
    greedy = Calibration(slope=1, intercept=0, quantiles=(0.2, 0.5, 0.8))
    beam = Calibration(slope=1, intercept=0, quantiles=(0.3, 0.6, 0.9))
    shipped = load_bundle(SHIPPED).decoding.language_model
    for model, is_greedy, expected in (
        (None, False, (0.8, 1 / 3)),  # without a language model decoding is always greedy
        (None, True, (0.8, 1 / 3)),
        (shipped, True, (0.8, 1 / 3)),
        (shipped, False, (0.6, 2 / 3)),
    ):
        decoding = Decoding(language_model=model, greedy_calibration=greedy, beam_calibration=beam)
        assert decoding.review_threshold(0.75, greedy=is_greedy) == pytest.approx(expected)


@pytest.mark.parametrize("calibration", [None, Calibration(slope=1, intercept=0)])
def test_a_bundle_that_knows_no_thresholds_gives_none(tiny_bundle, calibration):
    assert Decoding(greedy_calibration=calibration).review_threshold(0.9)[0] is None


def test_what_is_told_of_review_has_the_counts_and_the_share():
    counts = {"num_images": 200, "num_review": 50}
    sentence = describe_review(counts, 0.9123, 0.7, 0.99)
    for phrase in ("150 of 200", "(75.0%)", "precision of 0.99", "at least 0.912", "70.0%"):
        assert phrase in sentence
    assert describe_review(counts, 0.9123, 0.7, 0.99, 0.04) == (
        f"{sentence[:-1]}, of whose labels an estimated 4.0% are wrong)"
    )
    assert "no calibration" in describe_review({"num_images": 200, "num_review": None}, None, 0.0, 0.99)


def settings(tmp_path, **changes) -> TranscribeSettings:
    return TranscribeSettings(**{"inputs": InputSettings(images=str(tmp_path)), "out": "out", **changes})


def test_what_decides_the_rows_is_a_fact_and_what_does_not_is_none(tmp_path, monkeypatch):
    (tmp_path / "names").write_text("ANNA\n")
    reading = ReadingSettings(lexicon=str(tmp_path / "names"))

    def fingerprint(*, reading=reading, model_id="0123", **changes):
        return json.loads(json.dumps(fingerprint_of(settings(tmp_path, **changes), model_id, reading)))

    known = fingerprint()
    monkeypatch.chdir(tmp_path)
    same = [
        fingerprint(inputs=InputSettings(images=".")),
        fingerprint(reading=replace(reading, lexicon="names", num_workers=3, batch_size=7)),
        fingerprint(out="other", max_error_rate=0.1, overwrite=True),
    ]
    assert same == [known] * 3
    assert difference(known, fingerprint(inputs=InputSettings(images=".."))) is not None
    assert difference(known, fingerprint(precision=0.9))[0] == "precision"
    assert difference(known, fingerprint(reading=replace(reading, num_best=3)))[0] == "num_best"
    assert difference(known, fingerprint(model_id="other"))[0] == "model_id"
    assert difference(known, fingerprint(reading=ReadingSettings(greedy=True)))[0] == "greedy"
    (tmp_path / "names").write_text("BOB\n")
    assert difference(known, fingerprint())[0] == "lexicon"


@pytest.mark.parametrize("name", ["precision", "max_error_rate"])
@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_shares_lie_between_none_and_all(tmp_path, name, value):
    with pytest.raises(UserError, match=rf"--{name.replace('_', '-')} must be between 0 and 1, not {value}"):
        settings(tmp_path, **{name: value})


@pytest.mark.parametrize("out", ["", "out", "deep/er/out"])
def test_transcripts_among_the_images_are_refused(tmp_path, out):
    (tmp_path / "a.png").write_bytes(encode_png(np.full((40, 100), 230, np.uint8)))
    with pytest.raises(UserError, match="is inside --images"):
        transcribe(TranscribeSettings(inputs=InputSettings(images=str(tmp_path)), out=str(tmp_path / out)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("seconds", "use_gpu", "stage"),
    [
        ({"read": 5, "decode": 15, "model": 85, "write": 1}, False, "model"),
        ({"read": 5, "decode": 15, "model": 70, "write": 1}, False, "model"),  # even if the CPUs did other work, too
        ({"read": 5, "decode": 60, "model": 40, "write": 1}, False, "decode"),
        ({"read": 150, "decode": 5, "model": 30, "write": 1}, False, "read"),
        ({"read": 5, "decode": 900, "model": 95, "write": 1}, True, "model"),  # sixteen processes decode for one model
        ({"read": 5, "decode": 900, "model": 60, "write": 1}, True, "decode"),
    ],
)
def test_what_bounds_the_speed_is_what_the_others_wait_for(seconds, use_gpu, stage):
    assert slowest(seconds, 100, use_gpu=use_gpu) == stage


@pytest.mark.parametrize(
    ("images", "out", "use_gpu", "number"),
    [
        ("/lines", "/out", False, 1),
        ("s3://bucket/lines", "/out", False, 2),
        ("/lines", "s3://bucket/out", False, 2),
        ("/lines", "/out", True, 2),
    ],
)
def test_a_process_works_on_two_parts_where_it_would_wait_for_a_server_or_a_gpu(images, out, use_gpu, number):
    assert partitions_at_once(images, out, use_gpu=use_gpu) == number
