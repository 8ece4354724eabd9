"""Cost of ray.data.checkpoint, for comparison with the commit log of a transcription, in a job that only copies rows.

Run on an idle machine as `python -m benchmarks.checkpointing --work FOLDER`.
"""

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data.checkpoint import CheckpointConfig

from benchmarks.machine import ROOT, commit, hardware
from benchmarks.measuring import alone, write
from hwr_ray.cli import run_job as run_benchmark
from hwr_ray.cluster.connection import connect
from hwr_ray.transcription.transcribe import MOST_ROWS
from hwr_ray.versions import versions

TASK_CPUS = 0.25


@dataclass(frozen=True, kw_only=True)
class CheckpointingBenchmark:
    work: str
    """Folder for manifests, outputs and checkpoints."""
    rows: tuple[int, ...] = (2_000, 1_000_000)
    """Number of rows of each job."""
    out: str = str(ROOT / "benchmarks/results/checkpointing.json")
    """JSON file of the result."""


def measure(settings: CheckpointingBenchmark) -> None:
    """Runs each job without a checkpoint, with one, and again with all rows done; writes the result."""
    work, seconds = Path(settings.work).resolve(), {}
    for number in settings.rows:
        manifest, out, done = work / f"{number}.parquet", str(work / "out"), str(work / "done")
        work.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"path": [f"{n % 997:03}/{n:09}.png" for n in range(number)]}), manifest)
        row = {}
        for name, checkpoint in (("without", None), ("with", done), ("again", done)):
            shutil.rmtree(out, ignore_errors=True)
            if name == "with":
                shutil.rmtree(done, ignore_errors=True)
            row[name] = alone(copy_rows, str(manifest), out, checkpoint)
        seconds[f"{number}"] = row
    about = {"commit": commit(), "hardware": hardware(), "versions": versions()}
    command = f"python -m benchmarks.checkpointing {' '.join(sys.argv[1:])}"
    write(settings.out, {**about, "command": command, "seconds": seconds})


def copy_rows(manifest: str, out: str, checkpoint: str | None) -> float:
    """Returns the seconds that a job on a running cluster takes to copy a manifest in partitions of the usual size."""
    connect()
    context = ray.data.DataContext.get_current()
    if checkpoint:
        context.checkpoint_config = CheckpointConfig(
            id_column="path", checkpoint_path=checkpoint, delete_checkpoint_on_success=False
        )
    ray.data.range(10).materialize()  # starts Ray Data's own processes
    start = time.perf_counter()
    rows = ray.data.read_parquet(manifest).repartition(target_num_rows_per_block=MOST_ROWS)
    rows.map_batches(lambda table: table, batch_format="pyarrow", num_cpus=TASK_CPUS).write_parquet(
        out, ray_remote_args={"num_cpus": TASK_CPUS}
    )
    seconds = time.perf_counter() - start
    ray.shutdown()
    return round(seconds, 1)


if __name__ == "__main__":
    run_benchmark(CheckpointingBenchmark, measure)
