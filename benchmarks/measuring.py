"""Measures jobs in their own processes, with their peak memory, and functions on all cores at once."""

import json
import os
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier
from typing import Any

from benchmarks.machine import ROOT
from hwr_ray.errors import UserError

SAMPLE_SECONDS = 0.5
PATIENCE = 600
"""Seconds that a process waits for the others to be ready."""

_barrier: Barrier | None = None


def cores() -> list[int]:
    """Returns the processor cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def link(files: Iterable[tuple[Path, Path]]) -> None:
    """Creates a hard link to each first path at the second one, unless it exists."""
    for source, path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.hardlink_to(source)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(
                f"files of {source.parent} can't be hard-linked into {path.parent}: {error}; choose another --work"
            ) from error


def copies_of(folders: Sequence[Path], work: Path, *, copies: int, limit: int | None = None) -> list[Path]:
    """Creates `copies` hard links, at most `limit`, to each image of some folders below `work`; returns their paths.

    Each copy has its own subfolders and file names. Raises UserError if there are no images or `work` contains others.
    """
    images = [path for folder in folders for path in sorted(folder.iterdir())]
    if not images:
        raise UserError(f"{', '.join(map(str, folders))} contain no images: check --data")
    pairs = (
        (path, work / f"{copy:03}" / path.parent.name / f"{copy:03}-{path.name}")
        for copy in range(copies)
        for path in images
    )
    chosen = list(islice(pairs, limit))
    link(chosen)
    paths = [path for _, path in chosen]
    if (num_images := sum(1 for path in work.glob("*/*/*"))) != len(paths):
        raise UserError(f"{work} contains {num_images} images, not {len(paths)}: choose another --work")
    return paths


def run_job(*words: str, with_memory: bool = False) -> dict[str, Any]:
    """Runs a job from the root; returns its command, its seconds from start to end and, if asked for, its peak memory.

    Raises RuntimeError with the end of its output if it fails.
    """
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    memory = Memory(process.pid) if with_memory else None
    output, _ = process.communicate()
    seconds = time.monotonic() - start
    peaks = memory.stop() if memory else None
    if process.returncode:
        raise RuntimeError(f"{shlex.join(words)} failed:\n{output[-3000:]}")
    return {"command": shlex.join(["python", *words]), "seconds": seconds, **({"memory": peaks} if peaks else {})}


class Memory:
    """Samples the memory of a process and its descendants, such as Ray's processes, until it is stopped. Linux only.

    A page that several processes share counts once. The object store counts with the memory that it has allocated.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peaks = dict.fromkeys(("total", "processes", "object_store", "sum_of_rss"), 0)
        self.num_processes = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> dict[str, Any]:
        """Returns the peaks in MiB, each at its own time, and the maximum number of processes."""
        self._stopped.set()
        self._thread.join()
        return {f"{name}_mib": size >> 20 for name, size in self.peaks.items()} | {"processes": self.num_processes}

    def _watch(self) -> None:
        while not self._stopped.wait(SAMPLE_SECONDS):
            pids = descendants(self.pid)
            sizes = [pages_of(pid) for pid in pids]
            processes, store = sum(own for own, _ in sizes), object_store(pids)
            sample = {"total": processes + store, "processes": processes, "object_store": store}
            sample["sum_of_rss"] = sum(rss for _, rss in sizes)
            self.peaks = {name: max(peak, sample[name]) for name, peak in self.peaks.items()}
            self.num_processes = max(self.num_processes, len(pids))


def descendants(pid: int) -> list[int]:
    """Returns a process and all its descendants."""
    pids = [pid]
    for parent in pids:  # grows during the loop
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):
                pids += map(int, file.read_text().split())
    return pids


def pages_of(pid: int) -> tuple[int, int]:
    """Returns the bytes of a process, with its part of shared pages but without shared memory; and its RSS."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:  # it has ended
        return 0, 0
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    own = kilobytes.get("Pss", 0) - kilobytes.get("Pss_Shmem", 0)
    return own << 10, kilobytes.get("Rss", 0) << 10


def object_store(pids: list[int]) -> int:
    """Returns the bytes of Ray's object store: those of the shared memory files that some processes have open."""
    sizes = {}
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                if str(file.readlink()).startswith("/dev/shm/plasma"):  # noqa: S108 - Ray's file
                    status = file.stat()
                    sizes[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(sizes.values())


def on_every_core(function: Callable[..., Any], *args: Any) -> list[Any]:
    """Returns the results of a function in new processes, one per core; `started` makes them begin together."""
    number = len(cores())
    context = get_context("spawn")
    barrier = context.Barrier(number)
    with ProcessPoolExecutor(number, context, initializer=_share, initargs=(barrier,)) as pool:
        return [future.result() for future in [pool.submit(function, *args) for _ in range(number)]]


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """Returns the result of a function in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def started() -> int:
    """Waits until all processes of `on_every_core` have called this; returns the number of this process, from 0."""
    assert _barrier is not None
    return _barrier.wait(PATIENCE)


def _share(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def medians(rounds: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the median of each number over the rounds."""
    names = [name for name, value in rounds[0].items() if isinstance(value, int | float)]
    return {name: round(statistics.median(row[name] for row in rounds), 3) for name in names}


def figures(rounds: list[dict[str, Any]], speed: str) -> dict[str, float | list[float]]:
    """Returns the medians and, for each round, the speed; if it is a mean, also the speeds `before` and `after`."""
    names = [name for name in (speed, "before", "after") if name in rounds[0]]
    return {**medians(rounds), **{f"{name}_of_rounds": [round(row[name], 1) for row in rounds] for name in names}}


def ratios(
    jobs: list[dict[str, Any]], others: list[dict[str, Any]], speed: str, *, of_job: str | None = None
) -> dict[str, float | list[float]]:
    """Returns the ratios of the job's speed to another's in the same round, and their median.

    `of_job` is the name of the job's speed, by default `speed`.
    """
    quotients = [job[of_job or speed] / other[speed] for job, other in zip(jobs, others, strict=True)]
    return {"median": round(statistics.median(quotients), 3), "of_rounds": [round(ratio, 3) for ratio in quotients]}


def write(path: str, result: dict[str, Any]) -> None:
    Path(path).write_text(json.dumps(result, indent=1) + "\n")
    print(path)
