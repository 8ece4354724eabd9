"""Throughput of jobs/prepare.py, compared with a bare pool of processes, and the cost of each of its stages.

Run on an idle machine as `python -m benchmarks.prepare --data FOLDER --work FOLDER`. The result contains no image and
no label.
"""

import csv
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import ROOT, commit, hardware
from benchmarks.measuring import alone, cores, figures, link, on_every_core, ratios, run_job, started, write
from hwr_ray.cli import run_job as run_benchmark
from hwr_ray.data import dataset as prepared
from hwr_ray.data.cleaning import CleaningSettings
from hwr_ray.data.labels import find_label_files, read_rows
from hwr_ray.data.shards import MOST_ROWS, ShardWriter, count_row, prepare_rows
from hwr_ray.data.statistics import DatasetStatistics
from hwr_ray.errors import UserError
from hwr_ray.images.decode import decode, plain_size
from hwr_ray.images.lines import Canvas, fit
from hwr_ray.images.reader import read_files
from hwr_ray.versions import versions

CSV, IMAGES = "written_name_train_v2.csv", "train_v2/train"
ROWS_PER_SHARD = MOST_ROWS
"""Rows per shard of the pool, as in the job."""
WHAT = (
    "one process per core: read, OpenCV's imdecode, resize, pad, write_table; "
    "the mean of a run just before the job and one just after it"
)
PROFILED = 2048
"""Number of rows on which the stages are timed."""
REPEATS = 5

Row = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class PrepareBenchmark:
    data: str
    """Folder with the labelled lines, in the Kaggle layout."""
    work: str
    """Folder for the hard links, CSVs and shards, on the file system of --data and outside the checkout."""
    copies: int = 10
    """Hard links of each training image, each with its own row."""
    rounds: int = 3
    """Number of rounds. Each measures the job on few rows, then the pool, the job and the pool again on all rows. The
    result contains medians."""
    out: str = str(ROOT / "benchmarks/results/prepare.json")
    """JSON file of the result."""

    def __post_init__(self) -> None:
        for name, least in (("copies", 2), ("rounds", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} must be at least {least}, not {getattr(self, name)}")


def measure(settings: PrepareBenchmark) -> None:
    """Measures the job and the pool in each round, then the stages, and writes the result.

    The job's rate leaves out fixed costs: it divides the additional rows of the whole job over a small one by the
    additional seconds.
    """
    data, work = Path(settings.data).resolve(), Path(settings.work).resolve()
    rows = lay_out(data, work / "all", copies=settings.copies)
    few = lay_out(data, work / "few", copies=1)  # enough for all of Ray's processes to start
    jobs, pools = [], []
    for _ in range(settings.rounds):
        small = prepare(work / "few", work / "prepared")
        before = run_pool(rows, work)
        whole = prepare(work / "all", work / "prepared")
        after = run_pool(rows, work)
        working = whole["seconds"] - small["seconds"]
        jobs.append(
            {
                "command": whole["command"],
                "seconds": whole["seconds"],
                "seconds_of_few": small["seconds"],
                "rows_per_second": (len(rows) - len(few)) / working,
                "rows_per_second_of_all": len(rows) / whole["seconds"],
            }
        )
        pools.append({"rows_per_second": (before + after) / 2, "before": before, "after": after})
    stages = alone(profile, str(work / "all"))
    parts = {name: stages[name] for name in ("rows", "read", "decode", "fit", "hash", "other", "statistics", "write")}
    write(
        settings.out,
        {
            "commit": commit(),
            "hardware": hardware() | {"cores_used": len(cores())},
            "versions": versions(),
            "command": f"python -m benchmarks.prepare {' '.join(sys.argv[1:])}",
            "rows": len(rows),
            "few": len(few),
            "job": {"command": jobs[0]["command"], **figures(jobs, "rows_per_second")},
            "pool": {"what": WHAT, **figures(pools, "rows_per_second")},
            "job_over_pool": ratios(jobs, pools, "rows_per_second"),
            "job_with_start_up_over_pool": ratios(jobs, pools, "rows_per_second", of_job="rows_per_second_of_all"),
            "microseconds_a_row_in_one_process": stages,
            "bound_by": max(parts, key=parts.__getitem__),
        },
    )


def lay_out(data: Path, folder: Path, *, copies: int) -> list[Row]:
    """Creates `copies` hard links to each training image in a folder, and a CSV with their rows; returns the rows."""
    with (data / CSV).open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    link(
        (data / IMAGES / row[0], folder / IMAGES / f"{copy:03}-{row[0]}")
        for copy in range(copies)
        for row in rows
        if (data / IMAGES / row[0]).is_file()
    )
    repeated = [(f"{copy:03}-{name}", text) for copy in range(copies) for name, text in rows]
    with (folder / CSV).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *repeated])
    return repeated


def prepare(data: Path, out: Path) -> dict[str, Any]:
    """Runs the job; returns its command and its seconds. Raises UserError if it prepares no row."""
    ran = run_job("jobs/prepare.py", "--data", str(data), "--out", str(out), "--overwrite")
    metadata = json.loads((out / "dataset.json").read_text())
    if not metadata["splits"]["train"]["prepared"]:
        raise UserError(f"no row of {data} was prepared: check --data")
    return ran


def run_pool(rows: list[Row], work: Path) -> float:
    """Runs the pool; returns its rows per second, from the first read to the last write."""
    shutil.rmtree(work / "pool", ignore_errors=True)
    (work / "pool").mkdir()
    return len(rows) / max(on_every_core(prepare_share, rows, str(work / "all" / IMAGES), str(work / "pool")))


def prepare_share(rows: list[Row], folder: str, out: str) -> float:
    """Writes this process's share of the shards, as a script with a pool would; returns the seconds it took."""
    cv2.setNumThreads(1)
    pa.set_cpu_count(1)
    number, canvas = started(), Canvas()
    start = time.perf_counter()
    shards = range(0, len(rows), ROWS_PER_SHARD)
    for first in shards[number :: len(cores())]:
        table = to_table(rows[first : first + ROWS_PER_SHARD], folder, canvas)
        pq.write_table(table, f"{out}/{first:06}.parquet", compression="zstd", compression_level=1)
    return time.perf_counter() - start


def to_table(rows: list[Row], folder: str, canvas: Canvas) -> pa.Table:
    """Returns the rows whose images OpenCV can read, with the schema of prepared lines."""
    records = []
    for name, text in rows:
        path = f"{folder}/{name}"
        try:
            picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)
        except (OSError, cv2.error):
            continue
        if picture is None:
            continue
        height, width = picture.shape
        fitted = on_canvas(picture, canvas)
        records.append(
            {"id": name, "path": path, "text": text, "height": height, "width": width, "image": fitted.tobytes()}
        )
    return pa.Table.from_pylist(records, schema=prepared.schema(canvas))


def on_canvas(picture: np.ndarray, canvas: Canvas) -> np.ndarray:
    """Returns a grey image, shrunk to fit, at the left of a white canvas."""
    scale = min(1.0, canvas.height / picture.shape[0], canvas.width / picture.shape[1])
    if scale < 1:
        picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    fitted = np.full((canvas.height, canvas.width), 255, np.uint8)
    height, width = (min(a, b) for a, b in zip(picture.shape, fitted.shape, strict=True))
    fitted[:height, :width] = picture[:height, :width]
    return fitted


def profile(data: str) -> dict[str, float]:
    """Returns microseconds per row of the job's functions, medians of five, in this process with one thread.

    `decode` includes `header`. `prepare_rows` consists of `read`, `decode`, `fit`, `hash` and `other`, which converts
    rows to records and cleans labels. `shard` consists of `statistics` and `write`, which builds the columns and writes
    the Parquet file.
    """
    cv2.setNumThreads(1)
    pa.set_cpu_count(1)
    (file, *_) = find_label_files(data)
    canvas, cleaning = Canvas(), CleaningSettings()
    rows = next(read_rows(file)).slice(0, PROFILED)
    names = rows["id"].to_pylist()
    files = [data for data in read_files(file.images, names) if isinstance(data, bytes)]
    pictures = [decode(data) for data in files]
    records, statistics = prepare_rows(rows, cleaning=cleaning, canvas=canvas), DatasetStatistics()
    with tempfile.TemporaryDirectory(dir=Path(data).parent) as out:
        writer = ShardWriter(out, cleaning, canvas)
        steps: dict[str, Callable[[], object]] = {
            "rows": lambda: next(read_rows(file, rows_per_table=len(rows))),
            "read": lambda: list(read_files(file.images, names)),
            "header": lambda: [plain_size(data) for data in files],
            "decode": lambda: [decode(data) for data in files],
            "fit": lambda: [fit(picture, canvas) for picture in pictures],
            "hash": lambda: [sha256(data).digest() for data in files],
            "prepare_rows": lambda: prepare_rows(rows, cleaning=cleaning, canvas=canvas),
            "statistics": lambda: [count_row(row, statistics, canvas) for row in records],
            "shard": lambda: writer.write(records, "0.parquet"),
        }
        times = {name: median_seconds(step) / len(rows) * 1e6 for name, step in steps.items()}
    times["other"] = times["prepare_rows"] - sum(times[name] for name in ("read", "decode", "fit", "hash"))
    times["write"] = times["shard"] - times["statistics"]
    return {name: round(microseconds, 1) for name, microseconds in times.items()}


def median_seconds(step: Callable[[], object]) -> float:
    """Returns the median seconds of REPEATS calls after one warm-up."""
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    run_benchmark(PrepareBenchmark, measure)
