"""Throughput of jobs/train.py, compared with the same steps on tensors in memory, and its scaling with workers.

Run on an idle machine as `python -m benchmarks.train --prepared FOLDER --work FOLDER`. The result contains no image and
no text.
"""

import copy
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from ray.cluster_utils import Cluster

from benchmarks.machine import ROOT, commit, hardware
from benchmarks.measuring import alone, cores, medians, run_job, write
from hwr_ray.cli import run_job as run_benchmark
from hwr_ray.cluster.connection import ALLOCATOR, THREADS
from hwr_ray.data.dataset import Prepared
from hwr_ray.errors import UserError
from hwr_ray.images.arrow import images_of
from hwr_ray.images.augmentation import augment
from hwr_ray.model.architecture import ModelSettings
from hwr_ray.model.crnn import to_ink
from hwr_ray.recognition.bundle import new_model
from hwr_ray.text.codec import Codec
from hwr_ray.training.settings import TrainSettings
from hwr_ray.training.step import TrainState, new_ema, train_step
from hwr_ray.tuning.cost import multiply_adds
from hwr_ray.versions import versions

PRODUCT = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices whose product measures the peak throughput of a device."""


@dataclass(frozen=True, kw_only=True)
class TrainBenchmark:
    prepared: str
    """Prepared data set. The first epoch of a run is a warm-up, the second is measured."""
    work: str
    """Folder for the runs, outside the checkout."""
    rounds: int = 3
    """Number of rounds. Each measures everything once, in turn. The result contains medians."""
    seconds: float = 20
    """Minimum seconds for which the bare loop runs."""
    batch_size: int = 64
    """Lines per step, over all workers."""
    use_gpu: bool = False
    """Train on a GPU, with one worker only."""
    out: str = str(ROOT / "benchmarks/results/train.json")
    """JSON file of the result."""


WHAT = {
    "bare": "the default model's steps with augmentation and averaged weights on tensors in memory, in one process "
    "that may use all cores",
    "bare_with_allocator": "the same with the allocator settings of the workers",
    "bare_one_core": "the same on one core",
    "job": "jobs/train.py with one worker that may use all cores: its second epoch",
    "one_worker": "the same with one worker on one core of a Ray cluster of two nodes, each with its own core",
    "two_workers": "the same with one worker on each of the two nodes",
    "two_workers_one_node": "jobs/train.py with two workers on one node, one core each",
}


def measure(settings: TrainBenchmark) -> None:
    """Measures all of WHAT in each round and writes the result."""
    num_lines = Prepared(settings.prepared).require_lines("train")
    if num_lines < settings.batch_size:
        raise UserError(f"{settings.prepared} has {num_lines} training lines, fewer than --batch-size")
    rounds: list[dict[str, float]] = []
    profile: dict[str, Any] = {}
    os.environ["RAY_AUTH_MODE"] = "disabled"
    for number in range(settings.rounds):
        bare = alone(run_bare, settings, cores())
        with patch.dict(os.environ, ALLOCATOR | THREADS):
            tuned = alone(run_bare, settings, cores())
        row = {"bare": bare["lines_per_second"], "bare_with_allocator": tuned["lines_per_second"]}
        row |= job(settings, "job", num_workers=1)
        if not settings.use_gpu and len(cores()) > 1:
            row["bare_one_core"] = alone(run_bare, settings, cores()[:1])["lines_per_second"]
            row |= job(settings, "two_workers_one_node", num_workers=2)
            with two_nodes():
                row |= job(settings, "one_worker", num_workers=1, cpus=1.5)
                row |= job(settings, "two_workers", num_workers=2, cpus=1.5)
        profile = bare
        rounds.append(row)
        print(f"round {number + 1}: {row}", flush=True)
    figures = medians(rounds)
    result = {
        "commit": commit(),
        "command": " ".join(["python -m benchmarks.train", *sys.argv[1:]]),
        "hardware": hardware(),
        "versions": versions(),
        "lines": num_lines,
        "batch_size": settings.batch_size,
        "rounds": settings.rounds,
        "lines_per_second": {name: {"what": WHAT[name], "median": figures[name]} for name in WHAT if name in figures},
        "waiting_share": figures["waiting_share"],
        "job_over_bare": round(figures["job"] / figures["bare"], 3),
        "job_over_bare_with_allocator": round(figures["job"] / figures["bare_with_allocator"], 3),
        "ceiling": ceiling(profile, figures["job"]),
        "profile_of_bare": profile["profile"],
    }
    if "two_workers" in figures:
        result["two_workers_over_one"] = round(figures["two_workers"] / figures["one_worker"], 3)
        result["two_workers_one_node_over_bare"] = round(figures["two_workers_one_node"] / figures["bare"], 3)
    write(settings.out, result)


def ceiling(bare: dict[str, Any], lines_per_second: float) -> dict[str, Any]:
    """Returns the multiply-adds of the steps as a share of what the device reaches in a product of large matrices."""
    used = 3 * bare["multiply_adds"] * lines_per_second / 1e9  # the backward pass costs twice the forward pass
    return {
        "giga_multiply_adds_per_second": round(used, 1),
        "of_a_matrix_product": round(bare["product"], 1),
        "share": round(used / bare["product"], 3),
    }


def job(settings: TrainBenchmark, name: str, *, num_workers: int, cpus: float = 0.5) -> dict[str, float]:
    """Returns the lines per second of the second epoch of a training run of two epochs."""
    out = Path(settings.work).resolve() / name
    shutil.rmtree(out, ignore_errors=True)
    words = ["--data", settings.prepared, "--out", str(out), "--epochs", "2", "--batch-size", str(settings.batch_size)]
    words += ["--num-workers", str(num_workers), "--cpus-per-worker", str(cpus)]
    run_job("jobs/train.py", *words, *(["--use-gpu"] if settings.use_gpu else []))
    row = json.loads((out / "metrics.jsonl").read_text().splitlines()[1])
    figures = {name: row["lines_per_second"]}
    return {**figures, "waiting_share": row["waiting_share"]} if name == "job" else figures


@contextmanager
def two_nodes() -> Iterator[None]:
    """Starts a Ray cluster of two nodes on this machine, each on its own core; jobs in the context join it."""
    size = {"num_cpus": 2, "object_store_memory": 200 << 20}  # a node fits one worker of 1.5 CPUs
    available = cores()
    os.sched_setaffinity(0, available[:1])
    cluster = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
    try:
        os.sched_setaffinity(0, available[1:2])
        cluster.add_node(**size)
        os.sched_setaffinity(0, available)
        with patch.dict(os.environ, RAY_ADDRESS=cluster.address):
            yield
    finally:
        os.sched_setaffinity(0, available)
        cluster.shutdown()


def run_bare(settings: TrainBenchmark, on_cores: list[int]) -> dict[str, Any]:
    """Runs the steps of a training run without Ray; returns their throughput and profile, and the device's peak."""
    os.sched_setaffinity(0, on_cores)
    torch.set_num_threads(len(on_cores))
    recipe, prepared = TrainSettings(data=(), out="", batch_size=settings.batch_size), Prepared(settings.prepared)
    device = torch.device("cuda" if settings.use_gpu else "cpu")
    codec, canvas = Codec(prepared.charset), prepared.canvas
    model = new_model(ModelSettings(), codec, canvas)
    cost = multiply_adds(copy.deepcopy(model).eval(), torch.zeros(1, 1, canvas.height, canvas.width))
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    state = TrainState(model, new_ema(model, recipe.ema_decay), optimizer)
    batches = []
    for table in prepared.tables("train", ["id", "text", "image"], rows=settings.batch_size):
        if len(table) == settings.batch_size and len(batches) < 16:
            texts = table["text"].to_pylist()
            images = torch.tensor(images_of(table, canvas), device=device)
            batches.append((images, table["id"].to_pylist(), [codec.encode(text) for text in texts]))
    endless = cycle(batches)

    def step() -> None:
        images, ids, labels = next(endless)
        ink = augment(to_ink(images), ids, seed=0, epoch=state.step)
        train_step(state, model, ink, labels, shortcut_weight=recipe.shortcut_weight)
        state.ema.update_parameters(model)

    def wait() -> None:
        if settings.use_gpu:
            torch.cuda.synchronize()

    for _ in range(5):
        step()
    wait()
    steps, start = 0, time.perf_counter()
    while (seconds := time.perf_counter() - start) < settings.seconds:
        step()
        steps += 1
    wait()
    seconds = time.perf_counter() - start
    return {
        "lines_per_second": steps * settings.batch_size / seconds,
        "multiply_adds": cost,
        "product": product_speed(device),
        "profile": profile_of(step, device),
    }


def product_speed(device: torch.device) -> float:
    """Returns the giga multiply-adds per second of a bfloat16 product of large matrices."""
    size, times = PRODUCT[device.type], 4
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        for _ in range(times):
            product = left @ right
        product.sum().item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return times * size**3 / min(seconds[1:]) / 1e9


def profile_of(step: Any, device: torch.device) -> dict[str, float]:
    """Returns the ten operations that take the largest shares of a step's time, with these shares."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(5):
            step()
    on_gpu = device.type == "cuda"
    rows = [row for row in profile.key_averages() if (row.device_type == torch.autograd.DeviceType.CUDA) == on_gpu]
    times = {row.key: row.self_device_time_total if on_gpu else row.self_cpu_time_total for row in rows}
    total = sum(times.values())
    largest = sorted(times, key=times.__getitem__, reverse=True)[:10]
    return {key: round(times[key] / total, 3) for key in largest}


if __name__ == "__main__":
    run_benchmark(TrainBenchmark, measure)
