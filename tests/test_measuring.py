"""Benchmarks: copies by hard links, the memory of a process tree, and the contents of the results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import wait_for

from benchmarks import prepare, transcribe
from benchmarks.measuring import Memory, copies_of, descendants, medians
from hwr_ray.errors import UserError


def test_copies_are_links_with_names_of_their_own(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / name).write_text(name)
    for _ in range(2):  # the second time the links exist
        paths = copies_of([tmp_path / "images"], tmp_path / "work", copies=3, limit=5)
    assert len({path.name for path in paths}) == 5
    assert len({path.stat().st_ino for path in paths}) == 2
    with pytest.raises(UserError, match="contains 5 images, not 2"):
        copies_of([tmp_path / "images"], tmp_path / "work", copies=1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_a_process_and_of_those_below_it():
    child = "import time; room = bytearray(b'x' * (64 << 20)); time.sleep(3)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        memory = Memory(process.pid)
        wait_for(lambda: len(descendants(process.pid)) == 2, process)
        process.wait()
        peaks = memory.stop()
    assert 64 <= peaks["processes_mib"] < 200 and peaks["processes"] == 2
    assert peaks["object_store_mib"] == 0
    assert descendants(os.getpid())[0] == os.getpid()


def test_medians_are_those_of_each_figure():
    assert medians([{"a": 3, "b": 1}, {"a": 1, "b": 9}, {"a": 2, "b": 2}]) == {"a": 2, "b": 2}


@pytest.fixture
def data(tmp_path) -> Path:
    folders = [tmp_path / "data/train_v2/train", tmp_path / "data/validation_v2/validation"]
    for folder in folders:
        folder.mkdir(parents=True)
        for name in ("SECRET_1.jpg", "SECRET_2.jpg"):
            (folder / name).write_bytes(name.encode())
    rows = "FILENAME,IDENTITY\nSECRET_1.jpg,ANNA\nSECRET_2.jpg,BOB\n"
    (tmp_path / "data/written_name_train_v2.csv").write_text(rows)
    return tmp_path / "data"


def write_result(words: tuple[str, ...], file: str, value: object) -> None:
    out = Path(words[words.index("--out") + 1])
    out.mkdir(parents=True, exist_ok=True)
    (out / file).write_text(json.dumps(value))


def test_transcribes_result_compares_the_job_and_names_no_image(tmp_path, data, monkeypatch):
    def run(*words: str, with_memory: bool = False) -> dict[str, object]:
        seconds = 2.0 if with_memory else next(job_seconds)
        speed = {"start_up_seconds": 1.5, "wall_seconds": seconds, "bound_by": "model"}
        write_result(words, "_run.json", {"num_images": 8, "num_read": 8, "errors": {}, "speed": speed})
        memory = {"memory": {"total_mib": 7}} if with_memory else {}
        return {"command": " ".join(words), "seconds": 2 * seconds, **memory}

    job_seconds = iter([2.0, 1.0, 1.0, 0.5, 4.0, 2.0])  # per round: the job, then the job with --greedy
    # Per round: before and after the job, then before and after the job with --greedy.
    bare_speeds = iter([20, 12, 6, 10, 2, 6, 8, 8, 10, 6, 12, 4])
    monkeypatch.setattr(transcribe, "run_job", run)
    is_network = []

    def read_bare(function, paths, seconds, network):
        is_network.append(network)
        return [next(bare_speeds) / 2] * 2

    monkeypatch.setattr(transcribe, "on_every_core", read_bare)
    monkeypatch.setattr(transcribe, "alone", lambda *_: {"images_per_second": 2.0})
    out = tmp_path / "out.json"
    work = str(tmp_path / "work")
    transcribe.measure(transcribe.TranscribeBenchmark(data=str(data), work=work, copies=2, few=3, out=str(out)))
    result = json.loads(out.read_text())
    assert result["images"]["files"] == 8 and result["images"]["inodes"] == 4
    job = result["figures"]["job"]
    assert [job[f"seconds_of_{name}"] for name in ("start_up", "reading", "the_rest")] == [1.5, 2, 0.5]
    assert result["job_over"] == {
        "bare_read": {"median": 0.25, "of_rounds": [0.25, 2, 0.25]},  # not the ratio of the medians, 4 / 8
        "bare_network": {"median": 0.5, "of_rounds": [0.5, 1, 0.25]},
        "plain_script": {"median": 2, "of_rounds": [2, 4, 1]},
        "one_at_a_time": {"median": 2, "of_rounds": [2, 4, 1]},
    }
    assert is_network == [False, False, True, True] * 3
    assert result["job_greedy_over"]["bare_network"] == {"median": 1, "of_rounds": [1, 2, 0.5]}
    assert ["--greedy" in result["figures"][job]["command"] for job in ("job", "job_greedy")] == [False, True]
    bare = result["figures"]["bare_read"]
    assert (bare["before_of_rounds"], bare["after_of_rounds"]) == ([20, 2, 10], [12, 6, 6])
    assert result["job_with_start_up_over"]["bare_network"] == {"median": 0.25, "of_rounds": [0.25, 0.5, 0.125]}
    assert [row["images"] for row in result["memory"]] == [3, 8]
    assert "SECRET" not in out.read_text()


def test_prepares_result_takes_the_start_up_out_and_names_no_label(tmp_path, data, monkeypatch):
    def run(*words: str) -> dict[str, object]:
        write_result(words, "dataset.json", {"splits": {"train": {"prepared": 1}}})
        ran.append(Path(words[2]).name)
        return {"command": " ".join(words), "seconds": next(job_seconds)}

    def run_pool(*_: object) -> list[float]:
        ran.append("pool")
        return [0.25, next(pool_seconds)]

    ran: list[str] = []
    job_seconds = iter([3, 5, 3, 4, 2, 6])  # per round: the job on few rows, then on all rows
    pool_seconds = iter([1, 0.5, 2, 2, 1, 1])  # per round: before the job, then after it
    monkeypatch.setattr(prepare, "run_job", run)
    monkeypatch.setattr(prepare, "on_every_core", run_pool)
    stages = dict.fromkeys(("rows", "read", "decode", "fit", "hash", "other", "statistics"), 1.0) | {"write": 2.0}
    monkeypatch.setattr(prepare, "alone", lambda *_: stages)
    out, work = tmp_path / "out.json", tmp_path / "work"
    prepare.measure(prepare.PrepareBenchmark(data=str(data), work=str(work), copies=5, out=str(out)))
    result = json.loads(out.read_text())
    assert result["rows"] == 10 and len(list((work / "all/train_v2/train").iterdir())) == 10
    assert ran == ["few", "pool", "all", "pool"] * 3
    assert result["job"]["rows_per_second"] == 4 and result["pool"]["rows_per_second"] == 10
    assert (result["pool"]["before_of_rounds"], result["pool"]["after_of_rounds"]) == ([10, 5, 10], [20, 5, 10])
    assert result["job_over_pool"] == {"median": 0.267, "of_rounds": [0.267, 1.6, 0.2]}
    assert result["job_with_start_up_over_pool"] == {"median": 0.167, "of_rounds": [0.133, 0.5, 0.167]}
    assert result["bound_by"] == "write"
    assert not any(word in out.read_text() for word in ("SECRET", "ANNA"))
