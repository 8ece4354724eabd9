"""Time in which jobs/transcribe.py lists a million paths, and in which a resumed run lists them again.

Lists a folder, a glob, a CSV manifest and a Parquet manifest. Run as
`python -m benchmarks.listing --data FOLDER --work FOLDER`. The result contains no path.
"""

import csv
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import ROOT, commit, hardware
from benchmarks.measuring import alone, copies_of, write
from hwr_ray.cli import run_job as run_benchmark
from hwr_ray.transcription.inputs import InputSettings, open_inputs
from hwr_ray.transcription.partitions import Partitions, repeated_key
from hwr_ray.transcription.transcribe import MOST_ROWS
from hwr_ray.versions import versions


@dataclass(frozen=True, kw_only=True)
class ListingBenchmark:
    data: str
    """Folder with the line images, in the Kaggle layout."""
    work: str
    """Folder for the hard links and manifests, on the file system of --data and outside the checkout."""
    paths: int = 1_000_000
    """Number of hard links to list."""
    out: str = str(ROOT / "benchmarks/results/listing.json")
    """JSON file of the result."""


def measure(settings: ListingBenchmark) -> None:
    """Lists the same paths in each way, each in its own process, and writes the result."""
    data, work = Path(settings.data).resolve(), Path(settings.work).resolve()
    folders = [data / "train_v2/train", data / "validation_v2/validation"]
    copies = -(-settings.paths // sum(1 for folder in folders for _ in folder.iterdir()))
    images = copies_of(folders, work / "many", copies=copies, limit=settings.paths)
    names = [str(path.relative_to(work)) for path in images]
    with (work / "many.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path"], *([name] for name in names)])
    pq.write_table(pa.table({"path": names}), work / "many.parquet")
    ways = {"folder": "many", "glob": "many/**/*.jpg", "csv": "many.csv", "parquet": "many.parquet"}
    figures = {name: alone(list_paths, str(work / path), str(work / "listed")) for name, path in ways.items()}
    about = {"commit": commit(), "hardware": hardware(), "versions": versions()}
    command = f"python -m benchmarks.listing {' '.join(sys.argv[1:])}"
    write(settings.out, {**about, "command": command, "paths": len(images), "ways": figures})


def list_paths(images: str, out: str) -> dict[str, float]:
    """Assigns the images to partitions, as the job does, then does so again in a second run.

    Returns the seconds to the first and to the last partition, those of the second run to take the partitions over and
    to list the images again, and the peak memory of both.
    """
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    settings = InputSettings(images=images)
    inputs = open_inputs(settings)
    repeated = repeated_key(inputs) if settings.has_keys else None
    assert repeated is None
    parts = Partitions(out, {})
    assigned = parts.assign(inputs.tables(), most=MOST_ROWS)
    next(assigned)
    first = time.perf_counter()
    num_parts = 1 + sum(1 for _ in assigned)
    seconds = time.perf_counter() - start
    start_again = time.perf_counter()
    again = Partitions(out, {})
    taken_over = time.perf_counter()
    assert next(again.assign(inputs.tables(), most=MOST_ROWS), None) is None
    end = time.perf_counter()
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak  # not getrusage, whose peak includes that of the parent process
    return {
        "first_part_seconds": round(first - start, 2),
        "seconds": round(seconds, 1),
        "take_over_seconds": round(taken_over - start_again, 1),
        "list_again_seconds": round(end - taken_over, 1),
        "num_paths": parts.num_rows,
        "num_parts": num_parts,
        "peak_mib": int(peak[1]) >> 10,
    }


if __name__ == "__main__":
    run_benchmark(ListingBenchmark, measure)
