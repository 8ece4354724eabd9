"""Prepare, train and evaluate on real lines, from start to end; writes what was run, how long it took, what came out.

Neither an image nor a label lands in the result.
"""

import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hwr_ray.job import run_job
from hwr_ray.provenance import versions

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, kw_only=True)
class NamesSettings:
    data: str
    """Folder with the labelled lines, in the Kaggle layout."""
    work: str
    """Folder for the prepared lines, the run and the evaluation; outside the checkout."""
    out: str = "benchmarks/results/names.json"
    """The result."""
    epochs: int = 20
    """Of training."""
    num_workers: int = 2
    """Of training."""


def measure(settings: NamesSettings) -> None:
    """Runs the three jobs and writes the result."""
    work, data = Path(settings.work).resolve(), Path(settings.data).resolve()
    jobs = {
        "prepare": ["--data", str(data), "--out", f"{work}/prepared"],
        "train": ["--data", f"{work}/prepared", "--out", f"{work}/run", "--epochs", str(settings.epochs)],
        "evaluate": ["--data", f"{work}/prepared", "--model", f"{work}/run/best", "--out", f"{work}/evaluation"],
    }
    jobs["train"] += ["--num-workers", str(settings.num_workers)]
    dataset = work / "prepared/dataset.json"
    result: dict[str, Any] = {
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "jobs": {job: _run(job, arguments) for job, arguments in jobs.items()},
        "plain_count": {
            split: _plain_count(data / f"written_name_{split}_v2.csv") for split in ("train", "validation")
        },
        "lines": json.loads(dataset.read_text())["splits"],
        "metrics": json.loads((work / "evaluation/metrics.json").read_text()),
        "epochs": [json.loads(line) for line in (work / "run/metrics.jsonl").read_text().splitlines()],
    }
    Path(settings.out).write_text(json.dumps(result, indent=1) + "\n")
    print(settings.out)


def _run(job: str, arguments: list[str]) -> dict[str, Any]:
    """Command, seconds and last log line of a job that ran to its end."""
    command = ["python", f"jobs/{job}.py", *arguments]
    start = time.monotonic()
    last = ""
    with subprocess.Popen([sys.executable, *command[1:]], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            print(line, end="", file=sys.stderr, flush=True)
            last = line.strip() if re.match(r"\d\d:\d\d:\d\d ", line) else last
    if process.returncode:
        raise RuntimeError(f"{job} ended with status {process.returncode}")
    return {"command": " ".join(command), "seconds": round(time.monotonic() - start), "last_log_line": last}


def _plain_count(labels: Path) -> dict[str, int]:
    """Rows that leave a label CSV by what pandas says of its column alone."""
    texts = pd.read_csv(labels, keep_default_na=False)["IDENTITY"]
    words = texts[~texts.isin(["", "UNREADABLE", "EMPTY"])]
    small = words.str.upper() != words
    counts = {
        "missing_text": (texts == "").sum(),
        "unreadable": (texts == "UNREADABLE").sum(),
        "empty_field": (texts == "EMPTY").sum(),
        "lowercase": small.sum(),
        "too_long": (words[~small].str.len() > 20).sum(),
    }
    return {name: int(n) for name, n in counts.items() if n}


def commit() -> str:
    """Of the checkout, marked where files differ from it."""
    return _output("git", "-C", str(ROOT), "describe", "--always", "--dirty")


def hardware() -> dict[str, Any]:
    """Of a machine without a GPU."""
    names = [
        line.split(":")[1].strip() for line in _output("cat", "/proc/cpuinfo").splitlines() if "model name" in line
    ]
    processor = names[0] if names else platform.processor()
    return {"processor": processor, "cores": os.cpu_count(), "gpus": 0}


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    run_job(NamesSettings, measure)
