"""Tests storage, inputs, partitions and a whole job against moto's S3 server on this machine."""

import json

import pandas as pd
import pytest
from conftest import keys, new_tiny_bundle, wait_for
from job_runs import run, start
from latches import Latch

from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.images.lines import encode_png
from hwr_ray.images.reader import Line
from hwr_ray.recognition.bundle import save_bundle
from hwr_ray.transcription.inputs import InputSettings, open_inputs
from hwr_ray.transcription.partitions import Partitions, read_inputs, read_parquet, write_output

NUM_FILES = 200
HELD = "from hwr_ray.transcription import partitions, transcribe\n"
HELD += "import latches, pathlib; partitions.FIRST_PARTITION_ROWS = 16\n"
HELD += "transcribe.load_partition = latches.loading((2, pathlib.Path({folder!r})))"


def put(client, key: str, data: bytes) -> None:
    client.put_object(Bucket="bucket", Key=key, Body=data)


def test_names_of_any_kind_are_found_under_their_keys(bucket):
    names = ["a b#1? 50%25.png", "é.png", "deep/er/a+b&c=d.png", "deep/x.png"]
    for name in names:
        put(bucket, f"names/{name}", name.encode())
    assert storage.list_files("s3://bucket/names") == sorted(names)
    assert [storage.read_bytes(f"s3://bucket/names/{name}").decode() for name in names] == names
    storage.write_bytes("s3://bucket/names/new é.png", b"new")
    assert bucket.get_object(Bucket="bucket", Key="names/new é.png")["Body"].read() == b"new"
    storage.delete("s3://bucket/names/deep")
    assert keys(bucket, "names/deep") == []
    assert not storage.is_folder("s3://bucket/names/nowhere")


def test_a_manifest_in_a_bucket_reads_what_lies_below_its_root(bucket):
    put(bucket, "scans/a.png", b"a")
    put(bucket, "scans/deep/b.png", b"b")
    put(bucket, "secret", b"s3cret")
    listed = ["deep/b.png", "s3://bucket/scans/a.png", "gone.png", "../secret", "s3://bucket/secret"]
    put(bucket, "lists/m.csv", pd.DataFrame({"path": listed, "age": 1}).to_csv(index=False).encode())
    inputs = open_inputs(InputSettings(images="s3://bucket/lists/m.csv", root="s3://bucket/scans"))
    (table,) = inputs.tables()
    assert table["path"].to_pylist() == listed
    fetched = [file.reason if isinstance(file, Line) else file for file in inputs.fetch(table)]
    assert fetched == [b"b", b"a", "missing_image", "unsafe_path", "unsafe_path"]
    globbed = open_inputs(InputSettings(images="s3://bucket/scans/**/*.png"))
    assert [path for table in globbed.tables() for path in table["path"].to_pylist()] == ["a.png", "deep/b.png"]


def test_partitions_in_a_bucket_are_resumed_and_leave_only_their_files(bucket):
    for n in range(20):
        put(bucket, f"pages/{n:02}.png", b"x")
    out, images = "s3://bucket/books", open_inputs(InputSettings(images="s3://bucket/pages"))
    names = list(Partitions(out, {"a": 1}).assign(images.tables(), most=6))
    put(bucket, "pages/20.png", b"x")
    with pytest.raises(UserError, match="a = 1, not 2"):
        Partitions(out, {"a": 2})
    parts = Partitions(out, {"a": 1})
    assert parts.pending() == names
    assert len(list(parts.assign(images.tables(), most=6))) == 1
    for name in parts.pending():
        write_output(out, name, read_inputs(out, name))
    parts.finish()
    parts.close({"num_images": parts.num_rows})
    assert keys(bucket, "books") == ["books/_run.json", "books/transcripts-00000.parquet"]
    assert read_parquet(parts.files()[0])["path"].to_pylist() == [f"{n:02}.png" for n in range(21)]
    Partitions(out, {"a": 2}, overwrite=True)
    assert keys(bucket, "books") == ["books/_work/.owner", "books/_work/state.json"]


def test_a_job_from_bucket_to_bucket_killed_on_the_way_reads_each_image_once(ray_with_bucket, tmp_path, draw_text):
    bucket, latch = ray_with_bucket, Latch(tmp_path / "latch")
    images = [encode_png(draw_text("ABC"[: n % 4], height=20 + n, width=90)) for n in range(8)]
    for n in range(NUM_FILES):
        put(bucket, f"in/{n % 5}/{n:04}.png", images[n % 8])
    put(bucket, "in/empty.png", b"")
    save_bundle(new_tiny_bundle(), str(tmp_path / "bundle"))
    arguments = ["--images", "s3://bucket/in", "--out", "s3://bucket/out", "--model", tmp_path / "bundle"]
    arguments = ["transcribe", *arguments, "--num-workers", 1]
    process = start(*arguments, prelude=HELD.format(folder=str(latch.folder)))
    wait_for(latch.is_reached, process)
    process.kill()
    process.communicate()
    assert 2 <= len(keys(bucket, "out/_work/outputs")) < len(keys(bucket, "out/_work/inputs"))
    out, err = run(*arguments)
    assert "resuming" in err
    assert out.strip() == "s3://bucket/out"
    assert keys(bucket, "out") == ["out/_run.json", "out/transcripts-00000.parquet"]
    rows = read_parquet("s3://bucket/out/transcripts-00000.parquet").to_pandas().set_index("path")
    assert sorted(rows.index) == [key.removeprefix("in/") for key in keys(bucket, "in/")]
    assert rows.error.dropna().index.tolist() == ["empty.png"]
    for path, row in rows.drop(index="empty.png").iterrows():
        assert row.height == 20 + int(path[2:6]) % 8
    summary = json.loads(storage.read_bytes("s3://bucket/out/_run.json"))
    assert summary["num_images"] == NUM_FILES + 1 > summary["speed"]["num_images"]
