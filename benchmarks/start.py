"""Start-up cost of small jobs on their own Ray: the seconds until the first row and until the end.

Run on an idle machine as `python -m benchmarks.start --work FOLDER`. `--jobs FOLDER/jobs` measures the jobs of another
checkout, with that checkout's interpreter in `--python`. The lines are drawn.
"""

import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, commit, hardware
from benchmarks.measuring import run_job, write
from hwr_ray.cli import run_job as run_benchmark
from hwr_ray.errors import UserError
from hwr_ray.versions import versions

LINES = 600
TRAIN = ["--epochs", "1", "--batch-size", "32", "--conv-widths", "8", "8", "16", "16", "--gru-size", "16"]
JOBS: dict[str, tuple[list[str], str]] = {
    "prepare": (["--data", "drawn"], "OUT*/*/*.parquet"),
    "train": (["--data", "prepared", *TRAIN], "OUT/metrics.jsonl"),
    "evaluate": (["--data", "prepared"], "OUT*/predictions/*.parquet"),
    "transcribe": (["--images", "drawn/test_v2"], "OUT/_work/outputs/*.parquet"),
}
"""Arguments of each job, and the pattern of the file with its first row; for training, that of the first epoch."""


@dataclass(frozen=True, kw_only=True)
class StartBenchmark:
    work: str
    """New folder for the drawn lines and the outputs, outside the checkout."""
    jobs: str = str(ROOT / "jobs")
    """Folder of the scripts to measure."""
    python: str = sys.executable
    """Interpreter that runs the scripts."""
    rounds: int = 3
    """Number of runs of each job."""
    out: str = str(ROOT / "benchmarks/results/start.json")
    """JSON file of the result."""


def measure(settings: StartBenchmark) -> None:
    """Runs each job several times and writes the median seconds."""
    work = Path(settings.work).absolute()
    if work.exists():
        raise UserError(f"--work {work} already exists: choose a new folder")
    os.environ["RAY_ADDRESS"] = "local"
    run_job(f"{settings.jobs}/synthesize.py", "--out", str(work / "drawn"), "--lines", str(LINES))
    run_job(f"{settings.jobs}/prepare.py", "--data", str(work / "drawn"), "--out", str(work / "prepared"))
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in JOBS}
    for number in range(settings.rounds):
        for name, (arguments, first) in JOBS.items():
            out = f"{name}-{number}"
            command = [settings.python, f"{settings.jobs}/{name}.py", *arguments, "--out", out]
            seconds[name].append(time_job(command, work, first.replace("OUT", out)))
    result: dict[str, Any] = {
        "commit": commit(),
        "jobs": settings.jobs,
        "command": " ".join(["python", "-m", "benchmarks.start", *sys.argv[1:]]),
        "hardware": hardware(),
        "versions": versions(),
        "rounds": settings.rounds,
        "seconds": {
            name: {what: round(statistics.median(row[what] for row in rows), 1) for what in rows[0]}
            for name, rows in seconds.items()
        },
    }
    write(settings.out, result)


def time_job(command: list[str], work: Path, first: str) -> dict[str, float]:
    """Returns the seconds until a file matches `first`, and until the job ends. Raises RuntimeError if it fails."""
    start, first_row = time.monotonic(), None
    with (work / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=work, stdout=log, stderr=log)
        while process.poll() is None:
            if first_row is None and any(work.glob(first)):
                first_row = time.monotonic() - start
            time.sleep(0.02)
    if process.returncode or first_row is None:
        raise RuntimeError(f"{command} failed:\n{(work / 'log').read_text()[-3000:]}")
    return {"first_row": first_row, "end": time.monotonic() - start}


if __name__ == "__main__":
    run_benchmark(StartBenchmark, measure)
