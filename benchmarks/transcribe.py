"""Throughput and memory of jobs/transcribe.py, compared with bare processes, a plain script and one image at a time.

Run on an idle machine as `python -m benchmarks.transcribe --data FOLDER --work FOLDER`. The result contains no image
and no text.
"""

import json
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import ROOT, commit, hardware
from benchmarks.measuring import alone, copies_of, cores, figures, on_every_core, ratios, run_job, started, write
from hwr_ray.cli import run_job as run_benchmark
from hwr_ray.errors import UserError
from hwr_ray.images.lines import Canvas
from hwr_ray.images.reader import lines_of
from hwr_ray.model.crnn import to_ink
from hwr_ray.recognition.bundle import Bundle, load_bundle
from hwr_ray.recognition.bundle_config import SHIPPED
from hwr_ray.recognition.recognizer import Recognizer
from hwr_ray.text.codec import collapse
from hwr_ray.versions import versions

log = logging.getLogger(__name__)

BATCH = 64


@dataclass(frozen=True, kw_only=True)
class TranscribeBenchmark:
    data: str
    """Folder with the line images, in the Kaggle layout."""
    work: str
    """Folder for the hard links and transcripts, on the file system of --data and outside the checkout."""
    copies: int = 20
    """Hard links of each image."""
    rounds: int = 3
    """Number of rounds. Each measures everything once, in turn. The result contains medians."""
    seconds: float = 20
    """Minimum seconds for which the bare processes run."""
    few: int = 20_000
    """Number of images for the smaller measurement of memory."""
    bare: int = 2048
    """Number of lines that the bare processes recognize repeatedly."""
    plain: int = 10_000
    """Number of images for the plain script."""
    single: int = 2000
    """Number of images to recognize one at a time."""
    out: str = str(ROOT / "benchmarks/results/transcribe.json")
    """JSON file of the result."""

    def __post_init__(self) -> None:
        for name in ("copies", "rounds", "few", "bare", "plain", "single"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, not {getattr(self, name)}")


WHAT = {
    "job": "jobs/transcribe.py from start to end, in its own process: beam search with the language model",
    "job_greedy": "the same with --greedy",
    "bare_read": "Recognizer.read, including the beam search, on pixels in memory, one process with one thread per "
    "core: the mean of a run just before `job` and one just after it",
    "bare_network": "only hwr_ray.recognition.runtime, as bare_read, just before `job_greedy` and just after it",
    "plain_script": "OpenCV and a DataLoader with one worker per core, eager float32 in batches of 64, greedy",
    "one_at_a_time": "OpenCV and eager float32, image by image in one process, greedy",
}


PAIRS = {"job": ("bare_read", []), "job_greedy": ("bare_network", ["--greedy"])}
"""Each job, with the measurement to make just before and just after it, and the flags of the job."""


def measure(settings: TranscribeBenchmark) -> None:
    """Measures all of WHAT in each round and writes the result."""
    data, work = Path(settings.data).resolve(), Path(settings.work).resolve()
    folders = [data / "train_v2/train", data / "validation_v2/validation"]
    images = copies_of(folders, work / "all", copies=settings.copies)
    few = copies_of(folders, work / "few", copies=settings.copies, limit=settings.few)
    memory = {len(few): transcribe(work / "few", work, with_memory=True)}
    if len(images) > len(few):
        memory[len(images)] = transcribe(work / "all", work, with_memory=True)
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in WHAT}
    for number in range(settings.rounds):
        for job, (bare, flags) in PAIRS.items():
            reading = (read_bare, spread(images, settings.bare), settings.seconds, bare == "bare_network")
            before = sum(on_every_core(*reading))
            rounds[job].append(transcribe(work / "all", work, *flags))
            after = sum(on_every_core(*reading))
            rounds[bare].append({"images_per_second": (before + after) / 2, "before": before, "after": after})
        rounds["plain_script"].append(alone(read_plainly, spread(images, settings.plain), len(cores())))
        rounds["one_at_a_time"].append(alone(read_singly, spread(images, settings.single), len(cores())))
        speeds = ", ".join(f"{name} {rows[-1]['images_per_second']:.0f}" for name, rows in rounds.items())
        log.info("round %d of %d, images per second: %s", number + 1, settings.rounds, speeds)
    command = f"python -m benchmarks.transcribe {' '.join(sys.argv[1:])}"
    write(settings.out, result_of(rounds, memory, images, command))


def result_of(
    rounds: dict[str, list[dict[str, Any]]], memory: dict[int, dict[str, Any]], images: list[Path], command: str
) -> dict[str, Any]:
    """Returns the figures and the ratios of the jobs to the other measurements."""
    others = {name: rows for name, rows in rounds.items() if name not in PAIRS}
    return {
        "commit": commit(),
        "hardware": hardware() | {"cores_used": len(cores())},
        "versions": versions() | {"openvino": version("openvino")},
        "command": command,
        "images": {
            "files": len(images),
            "inodes": len({path.stat().st_ino for path in images}),  # in the page cache after the first pass
            "mean_bytes": round(np.mean([path.stat().st_size for path in images]).item()),
        },
        "figures": {
            name: {
                "what": WHAT[name],
                "command": rows[0].get("command", command),
                **figures(rows, "images_per_second"),
            }
            for name, rows in rounds.items()
        },
        **{
            f"{job}_over": {name: ratios(rounds[job], rows, "images_per_second") for name, rows in others.items()}
            for job in PAIRS
        },
        "job_with_start_up_over": {
            name: ratios(rounds["job"], rows, "images_per_second", of_job="images_per_second_of_all")
            for name, rows in others.items()
        },
        "speed": [row["speed"] for row in rounds["job"]],
        "memory": [{"images": number, "command": row["command"], **row["memory"]} for number, row in memory.items()],
    }


def transcribe(images: Path, work: Path, *flags: str, with_memory: bool = False) -> dict[str, Any]:
    """Runs the job on a folder of images; returns its figures. Raises UserError if it fails to read an image."""
    out = work / "transcripts"
    shutil.rmtree(out, ignore_errors=True)
    ran = run_job("jobs/transcribe.py", "--images", str(images), "--out", str(out), *flags, with_memory=with_memory)
    summary = json.loads((out / "_run.json").read_text())
    speed = summary["speed"]
    if summary["num_read"] != summary["num_images"]:
        raise UserError(f"some images of {images} can't be read: {summary['errors']}")
    return {
        **ran,
        "seconds_of_start_up": speed["start_up_seconds"],
        "seconds_of_reading": speed["wall_seconds"],
        "seconds_of_the_rest": ran["seconds"] - speed["start_up_seconds"] - speed["wall_seconds"],
        "images_per_second": summary["num_images"] / speed["wall_seconds"],
        "images_per_second_of_all": summary["num_images"] / ran["seconds"],
        "speed": speed,
    }


def spread(images: Sequence[Path], number: int) -> list[str]:
    """Returns `number` of the images, or all, at even intervals."""
    indices = np.linspace(0, len(images), min(number, len(images)), endpoint=False).astype(int)
    return [str(images[index]) for index in indices]


def read_bare(paths: list[str], seconds: float, is_network: bool = False) -> float:
    """Returns the lines per second of this process, which recognizes the same lines repeatedly."""
    torch.set_num_threads(1)
    recognizer = Recognizer(SHIPPED, batch_size=BATCH)
    lines = lines_of([Path(path).read_bytes() for path in paths], recognizer.canvas)
    images = np.stack([line.image for line in lines if line.image is not None])
    read = recognizer.network if is_network else recognizer.read
    read(images[:BATCH])
    started()
    number, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        read(images)
        number += len(images)
    return number / passed


class Pictures(Dataset):
    """Image files, resized to a canvas without keeping their aspect, as a script would read them."""

    def __init__(self, paths: list[str], canvas: Canvas) -> None:
        self.paths, self.canvas = paths, canvas

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        grey = cv2.imread(self.paths[index], cv2.IMREAD_GRAYSCALE)
        return cv2.resize(grey, (self.canvas.width, self.canvas.height))


def read_plainly(paths: list[str], threads: int) -> dict[str, float]:
    """Runs the plain script; returns its images per second, including the start of the DataLoader's workers."""
    torch.set_num_threads(threads)
    bundle = load_bundle(SHIPPED)
    start = time.perf_counter()
    loader = DataLoader(Pictures(paths, bundle.canvas), batch_size=BATCH, num_workers=threads)
    texts = [text for images in loader for text in read_greedily(bundle, images)]
    assert len(texts) == len(paths)
    return {"images_per_second": len(paths) / (time.perf_counter() - start)}


def read_singly(paths: list[str], threads: int) -> dict[str, float]:
    """Recognizes one image at a time, as the ancestor does; returns the images per second."""
    torch.set_num_threads(threads)
    bundle = load_bundle(SHIPPED)
    pictures = Pictures(paths, bundle.canvas)
    start = time.perf_counter()
    for index in range(len(pictures)):
        read_greedily(bundle, torch.from_numpy(pictures[index])[None])
    return {"images_per_second": len(paths) / (time.perf_counter() - start)}


@torch.inference_mode()
def read_greedily(bundle: Bundle, images: torch.Tensor) -> list[str]:
    """Returns the texts of line images (N, H, W) uint8."""
    logits, _ = bundle.model(to_ink(images))
    return [bundle.codec.decode(collapse(path)) for path in logits.argmax(-1).tolist()]


if __name__ == "__main__":
    run_benchmark(TranscribeBenchmark, measure)
