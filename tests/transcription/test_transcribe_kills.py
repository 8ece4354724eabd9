"""Transcription on a real Ray after kills, on a full disk, and with bad or new images: every image once, same text."""

import json
import os
import re
import signal
import struct
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import new_tiny_bundle, wait_for
from job_runs import in_this_process, meanwhile, named_below, run, start
from latches import Latch, loading
from PIL import Image

from hwr_ray.cli import run_job
from hwr_ray.errors import UserError
from hwr_ray.images.lines import encode_png
from hwr_ray.images.reader import lines_of, read_files
from hwr_ray.recognition.bundle import save_bundle
from hwr_ray.recognition.recognizer import Recognizer
from hwr_ray.transcription.inputs import InputSettings
from hwr_ray.transcription.settings import ReadingSettings, TranscribeSettings
from hwr_ray.transcription.transcribe import transcribe

NUM_PICTURES, NUM_FILES = 50, 600
FIRST_PARTITION_ROWS = 32
"""Rows of the first partition, small enough for NUM_FILES to fill ten partitions."""
HELD = "from hwr_ray.transcription import partitions, transcribe\n"
HELD += "import latches, pathlib; partitions.FIRST_PARTITION_ROWS = {first}\n"
HELD += "transcribe.load_partition = latches.loading(({number}, pathlib.Path({folder!r})))"


def bomb() -> bytes:
    """Returns a PNG whose header declares 100,000 x 100,000 pixels."""
    chunks = [
        b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0),
        b"IDAT" + zlib.compress(b"0"),
        b"IEND",
    ]
    packed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def movie(path: Path) -> None:
    frames = [Image.fromarray(np.full((20, 60), grey, np.uint8)) for grey in (0, 255)]
    frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])


BAD = {"bomb.png": "more than 40 million", "movie.gif": "2 images", "empty.png": "empty", "a.txt": "not an image"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr("hwr_ray.transcription.partitions.FIRST_PARTITION_ROWS", FIRST_PARTITION_ROWS)


@pytest.fixture(scope="module")
def model(folder):
    save_bundle(new_tiny_bundle(), str(folder / "bundle"))
    return folder / "bundle"


@pytest.fixture(scope="module")
def pictures(folder, draw_text):
    """A folder of drawn lines, all different."""
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for n in range(NUM_PICTURES):
        text = "".join(rng.choice(list("ABC"), rng.integers(1, 5)))
        (folder / f"pictures/{n:02}.png").write_bytes(encode_png(draw_text(text, height=24 + n % 20, width=90)))
    return folder / "pictures"


@pytest.fixture(scope="module")
def link(pictures):
    """A function that links the pictures into a folder under many names and adds bad files."""

    def make(target, numbers, *, bad=True):
        for n in numbers:
            path = target / f"{n % 7}/{n:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(pictures / f"{n % NUM_PICTURES:02}.png", path)
        if bad:
            (target / "bomb.png").write_bytes(bomb())
            movie(target / "movie.gif")
            (target / "empty.png").touch()
            (target / "a.txt").write_text("ANNA")
        return target

    return make


@pytest.fixture(scope="module")
def many(folder, link):
    return link(folder / "many", range(NUM_FILES))


@pytest.fixture(scope="module")
def few(folder, link):
    return link(folder / "few", range(40))


def read(images, model, out, **changes) -> None:
    """Runs the job in this process, whose workers stay for the next job."""
    reading = ReadingSettings(num_workers=1)
    settings = {"inputs": InputSettings(images=str(images)), "model": str(model), "out": str(out), "reading": reading}
    transcribe(TranscribeSettings(**{**settings, **changes}))


def read_here(*args, **changes) -> None:
    with in_this_process():
        read(*args, **changes)


def command(images, model, out) -> list:
    return ["--images", images, "--model", model, "--out", out, "--num-workers", 1]


def rows(out) -> pd.DataFrame:
    return pd.read_parquet(out).set_index("path").sort_index()


def paths_in(images) -> list[str]:
    return sorted(str(p.relative_to(images)) for p in images.rglob("*") if p.is_file())


def check_same(out, images, truth) -> None:
    """Checks that each file has one row, with the same text and error as in the undisturbed run."""
    transcripts = rows(out)
    assert list(transcripts.index) == paths_in(images)
    truth = truth.loc[transcripts.index]
    assert transcripts.text.equals(truth.text) and transcripts.error.equals(truth.error)
    assert transcripts.confidence.to_numpy() == pytest.approx(truth.confidence.to_numpy(), abs=1e-6, nan_ok=True)
    assert not (Path(out) / "_work").exists()


def number_of(out, kind) -> int:
    return len(list((out / "_work" / kind).glob("*.parquet")))


def number_read(out) -> int:
    """Returns the number of images that the last run transcribed itself."""
    return json.loads((out / "_run.json").read_text())["speed"]["num_images"]


def rows_of(out, kind) -> int:
    return sum(pq.read_metadata(path).num_rows for path in (out / "_work" / kind).glob("*.parquet"))


def kill_driver(arguments, out, number, latch) -> None:
    """Kills the job's driver when `number` partitions are done."""
    held = HELD.format(first=FIRST_PARTITION_ROWS, number=number, folder=str(latch.folder))
    process = start("transcribe", *arguments, prelude=held)
    wait_for(latch.is_reached, process)
    process.kill()
    process.communicate()
    assert number <= number_of(out, "outputs") < number_of(out, "inputs")
    assert not (out / "_run.json").exists()


@pytest.fixture(scope="module")
def truth(ray_cluster, folder, many, model):
    """The transcripts of an undisturbed run."""
    read(many, model, folder / "undisturbed")
    return rows(folder / "undisturbed")


def test_an_undisturbed_run_reads_each_file_as_the_model_does_and_says_why_it_can_not(truth, many, pictures, model):
    assert list(truth.index) == paths_in(many)
    names = [f"{n:02}.png" for n in range(NUM_PICTURES)]
    recognizer = Recognizer(str(model))
    lines = list(lines_of(read_files(str(pictures), names), recognizer.canvas))
    readings = recognizer.read_lines(np.stack([line.image for line in lines]))
    assert len({reading.text for reading in readings}) > 4
    for path, row in truth.drop(index=list(BAD)).iterrows():
        n = int(Path(path).stem) % NUM_PICTURES
        assert row.text == readings[n].text and pd.isna(row.error)
        assert row.confidence == pytest.approx(readings[n].confidence, abs=1e-3)
        assert (row.height, row.width) == (24 + n % 20, 90)
    for path, reason in BAD.items():
        assert truth.error[path].startswith("undecodable_image: ") and reason in truth.error[path]
        assert pd.isna(truth.text[path]) and pd.isna(truth.confidence[path])


def test_a_driver_killed_twice_goes_on_and_reads_nothing_twice_nor_otherwise(folder, many, model, truth):
    out = folder / "killed"
    kill_driver(command(many, model, out), out, 3, Latch(folder / "first"))
    kill_driver(command(many, model, out), out, 6, Latch(folder / "second"))
    num_pending = len(truth) - rows_of(out, "outputs")
    read_here(many, model, out)
    assert 0 < number_read(out) <= num_pending < len(truth) / 3
    check_same(out, many, truth)


def test_images_in_one_row_group_are_transcribed_as_their_files_are(folder, many, model, truth):
    out, paths = folder / "from-parquet", [path for path in paths_in(many) if path != "empty.png"]
    images = [(many / path).read_bytes() for path in paths]
    pq.write_table(pa.table({"key": paths, "image": images}), folder / "images.parquet")
    read(
        folder / "images.parquet",
        model,
        out,
        inputs=InputSettings(images=str(folder / "images.parquet"), image_column="image", id_column="key"),
    )
    transcripts = pd.read_parquet(out).set_index("id").sort_index()
    assert list(transcripts.index) == paths
    for column in ("text", "error"):
        assert transcripts[column].equals(truth.loc[paths, column])


def test_the_models_process_killed_on_the_way_costs_no_row(folder, many, model, truth, monkeypatch):
    out, latch = folder / "actor", Latch(folder / "actor-latch")

    def kill() -> None:
        wait_for(latch.is_reached)
        assert "MapBatches(PartitionReader)" in Path(f"/proc/{latch.pid()}/cmdline").read_text()
        assert 0 < number_of(out, "outputs") < number_of(out, "inputs")
        os.kill(latch.pid(), signal.SIGKILL)

    monkeypatch.setattr("hwr_ray.transcription.transcribe.load_partition", loading((2, latch.folder)))
    with meanwhile(kill):
        read(many, model, out)
    check_same(out, many, truth)


def test_a_node_lost_on_the_way_costs_no_row(folder, many, model, truth, ray_cluster, second_node, monkeypatch):
    out, latches = folder / "node", [Latch(folder / "node-first"), Latch(folder / "node-second")]
    raylet = second_node.all_processes["raylet"][0].process.pid

    def lose() -> None:
        for latch in latches:  # the processes of both models
            wait_for(latch.is_reached)
        assert number_of(out, "outputs") < number_of(out, "inputs")
        assert {latch.pid() for latch in latches} & set(named_below(raylet, "PartitionReader"))
        ray_cluster.remove_node(second_node, allow_graceful=False)
        for latch in latches:
            latch.release()

    held = loading(*((2, latch.folder) for latch in latches))
    monkeypatch.setattr("hwr_ray.transcription.transcribe.load_partition", held)
    with meanwhile(lose):
        _, err = run("transcribe", *command(many, model, out), "--num-workers", 2, "--cpus-per-worker", 1.5)
    assert "on Ray: 2 nodes" in err
    check_same(out, many, truth)


def test_a_full_disk_is_one_sentence_and_with_more_room_the_same_command_goes_on(
    small_disk, many, model, truth, monkeypatch, capsys
):
    out = small_disk.path / "out"
    monkeypatch.setattr("sys.argv", ["jobs/transcribe.py", *map(str, command(many, model, out))])
    with pytest.raises(SystemExit) as stop:
        run_job(TranscribeSettings, transcribe)
    assert stop.value.code == 2
    messages = [line for line in capsys.readouterr().err.splitlines() if line.startswith("jobs/transcribe.py: ")]
    assert len(messages) == 1 and f"no space is left to write {out}/_work/" in messages[0]
    small_disk.mount("remount,size=20m")
    run_job(TranscribeSettings, transcribe)
    assert number_read(out) < len(truth)
    check_same(out, many, truth)


def test_new_images_are_added_to_a_finished_run_and_nothing_else_changes(folder, link, model, truth):
    images, out = link(folder / "growing", range(60), bad=False), folder / "grown"
    read_here(images, model, out)
    before = (out / "transcripts-00000.parquet").read_bytes()
    link(images, range(60, 90), bad=False)
    read_here(images, model, out)
    assert (out / "transcripts-00000.parquet").read_bytes() == before
    added = pd.read_parquet(out / "transcripts-00001.parquet").path
    assert sorted(added) == [path for path in paths_in(images) if int(Path(path).stem) >= 60]
    check_same(out, images, truth)


def test_too_many_errors_stop_a_large_job_long_before_its_end(ray_cluster, folder, link, model, monkeypatch):
    """The last files, which are read first, are empty."""
    images = link(folder / "failing", range(400), bad=False)
    monkeypatch.setattr("hwr_ray.transcription.transcribe.FEWEST_ROWS", 100)
    (images / "7").mkdir()
    for n in range(4):
        (images / f"7/{n}.png").touch()
    with pytest.raises(UserError, match=r"4 of \d+ images failed") as stop:
        read(images, model, folder / "early", max_error_rate=0.001)
    num_images = int(re.search(r"of (\d+) images", str(stop.value))[1])
    assert 100 <= num_images < 300


def test_too_many_errors_stop_the_job_and_a_higher_rate_goes_on(folder, few, model, truth):
    out = folder / "errors"
    for _ in range(2):  # the second time all images are done already
        with pytest.raises(
            UserError, match=r"4 of 44 images failed \(undecodable_image 4\), more than --max-error-rate 0\.09"
        ):
            read_here(few, model, out, max_error_rate=0.09)
    assert not (out / "_run.json").exists()
    outputs = {path.name: path.stat().st_mtime_ns for path in (out / "_work/outputs").iterdir()}
    assert outputs
    read_here(few, model, out, max_error_rate=0.1)
    check_same(out, few, truth)
    for changes, named in (
        ({"precision": 0.9}, r"precision = 0\.99, not 0\.9"),
        ({"reading": ReadingSettings(greedy=True)}, "greedy = False, not True"),
        ({"inputs": InputSettings(images=f"{few}/*.png")}, r"inputs\.images = .*/few, not .*/few/\*\.png"),
    ):
        with pytest.raises(UserError, match=named):
            read_here(few, model, out, **changes)
    check_same(out, few, truth)


def test_a_folder_without_images_is_a_mistake_and_leaves_nothing_behind(ray_cluster, folder, model):
    (folder / "none").mkdir()
    for _ in range(2):
        with pytest.raises(UserError, match="/none contains no images"):
            read_here(folder / "none", model, folder / "of-none")
        assert [p for p in (folder / "of-none").rglob("*") if p.is_file()] == []
