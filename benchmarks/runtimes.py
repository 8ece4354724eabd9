"""Throughput of the default network in several runtimes on one core and thread, and their deviation from float32.

Run on an idle machine as `python -m benchmarks.runtimes [--prepared FOLDER]`, with the extra `export` for ONNX Runtime.
The result contains no image and no text.
"""

import copy
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import ROOT, commit, hardware
from benchmarks.measuring import alone, write
from hwr_ray.cli import run_job as run_benchmark
from hwr_ray.data.dataset import Prepared
from hwr_ray.errors import UserError
from hwr_ray.images.arrow import images_of
from hwr_ray.images.reader import lines_of
from hwr_ray.recognition.bundle import Bundle, load_bundle
from hwr_ray.recognition.bundle_config import SHIPPED
from hwr_ray.recognition.runtime import Head, compile_for_cpu, log_probs_of
from hwr_ray.synthetic.synthesize import SynthesisSettings, synthesize
from hwr_ray.text.codec import collapse
from hwr_ray.text.metrics import count
from hwr_ray.versions import versions

BATCHES = (1, 16, 64, 256)
TIMED = 256
"""Number of lines to time; a quarter of them in batches of 1."""
COMPARED_IN = 64
"""Batch size for comparing predictions."""
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""Environment that limits torch's kernels and its oneDNN to AVX2."""

Read = Callable[[np.ndarray], np.ndarray | Tensor]
"""Maps line images (N, H, W) uint8 to log-probabilities (N, T, C)."""


@dataclass(frozen=True, kw_only=True)
class RuntimesBenchmark:
    prepared: str | None = None
    """Prepared data set whose validation lines are recognized and scored; by default drawn lines, without scores."""
    only: tuple[str, ...] = ()
    """Names of the runtimes to measure; by default all."""
    repeats: int = 5
    """Number of measurements to take the median of, after a warm-up."""
    out: str = str(ROOT / "benchmarks/results/runtimes.json")
    """JSON file of the result."""

    def __post_init__(self) -> None:
        if unknown := set(self.only) - set(RUNTIMES):
            raise UserError(f"--only takes {', '.join(RUNTIMES)}, not {', '.join(sorted(unknown))}")
        if self.repeats < 1:
            raise UserError(f"--repeats must be at least 1, not {self.repeats}")


def eager(bundle: Bundle) -> Read:
    def read(images: np.ndarray) -> Tensor:
        return bundle.model(1 - torch.tensor(images).unsqueeze(1).float() / 255)[0].log_softmax(-1)

    return read


def channels_last(bundle: Bundle) -> Read:
    model = copy.deepcopy(bundle.model).to(memory_format=torch.channels_last)
    return lambda images: log_probs_of(model, torch.tensor(images))


def bfloat16(bundle: Bundle) -> Read:
    return in_bfloat16(channels_last(bundle))


def compiled(bundle: Bundle) -> Read:
    model = copy.deepcopy(bundle.model).to(memory_format=torch.channels_last)
    read = torch.compile(Head(model), dynamic=False)
    return lambda images: read(torch.tensor(images))


def compiled_bfloat16(bundle: Bundle) -> Read:
    return in_bfloat16(compiled(bundle))


def in_bfloat16(read: Read) -> Read:
    def cast(images: np.ndarray) -> np.ndarray | Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return read(images)

    return cast


def onnxruntime(bundle: Bundle) -> Read:
    import onnxruntime

    file, example = io.BytesIO(), torch.zeros(2, bundle.canvas.height, bundle.canvas.width, dtype=torch.uint8)
    names = {"input_names": ["images"], "output_names": ["log_probs"]}
    axes = {"images": {0: "lines"}, "log_probs": {0: "lines"}}
    torch.onnx.export(Head(bundle.model).eval(), (example,), file, dynamic_axes=axes, dynamo=False, **names)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def openvino(bundle: Bundle, precision: str) -> Read:
    canvas = bundle.canvas.height, bundle.canvas.width
    request = compile_for_cpu(Head(bundle.model), canvas, INFERENCE_PRECISION_HINT=precision).create_infer_request()
    return lambda images: request.infer({0: images}, share_inputs=True)[0].copy()


RUNTIMES: dict[str, Callable[[Bundle], Read]] = {
    "torch eager float32": eager,
    "torch eager float32, channels last": channels_last,
    "torch eager bfloat16, channels last": bfloat16,
    "torch.compile float32": compiled,
    "torch.compile bfloat16": compiled_bfloat16,
    "ONNX Runtime float32": onnxruntime,
    "OpenVINO float32": lambda bundle: openvino(bundle, "f32"),
    "OpenVINO bfloat16": lambda bundle: openvino(bundle, "bf16"),
}
REFERENCE = "torch eager float32"
UNLIMITED = {"ONNX Runtime float32": "no setting limits it: its kernels query the processor"}
"""Runtimes that can't be limited to AVX2 on a processor with AVX-512, and why. OpenVINO's oneDNN obeys the
environment; OpenVINO's own choice of kernels may not."""


def measure(settings: RuntimesBenchmark) -> None:
    """Measures each runtime in its own process, the reference first, and writes the result after each."""
    chosen = [name for name in RUNTIMES if name in (settings.only or RUNTIMES) or name == REFERENCE]
    result: dict[str, Any] = {
        "commit": commit(),
        "hardware": hardware() | {"threads": 1},
        "versions": versions() | versions_of("openvino", "onnxruntime"),
        "command": f"python -m benchmarks.runtimes {' '.join(sys.argv[1:])}",
        "lines": "validation split" if settings.prepared else "drawn",
        "avx2_environment": AVX2,
        "runtimes": {name: {} for name in chosen},
    }
    with tempfile.TemporaryDirectory() as folder:
        reference = f"{folder}/reference.npy"
        for instructions, environment in (("native", {}), ("avx2", AVX2)):
            os.environ |= environment  # inherited by the new processes
            for name in chosen:
                if instructions == "avx2" and name in UNLIMITED:
                    figures: dict[str, Any] = {"not_measured": UNLIMITED[name]}
                else:
                    try:
                        figures = alone(measure_one, name, settings.prepared, reference, settings.repeats)
                    except BrokenExecutor:
                        figures = {"error": "the process crashed"}
                result["runtimes"][name][instructions] = figures
                write(settings.out, result)


def versions_of(*packages: str) -> dict[str, str | None]:
    installed: dict[str, str | None] = {}
    for name in packages:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = None
    return installed


def measure_one(name: str, prepared: str | None, reference: str, repeats: int) -> dict[str, Any]:
    """Returns the figures of a runtime in this process, or its error."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    bundle = load_bundle(SHIPPED)
    images, texts = lines_to_read(prepared, bundle)
    start = time.perf_counter()
    try:
        with torch.inference_mode():
            read = RUNTIMES[name](bundle)
            in_batches(read, images[:COMPARED_IN], COMPARED_IN)
            ready = time.perf_counter() - start
            actual = in_batches(read, images, COMPARED_IN)
            speeds = {str(size): lines_per_second(read, images, size, repeats) for size in BATCHES}
    except Exception as error:  # of any library: the other runtimes are still measured
        return {"error": f"{type(error).__name__}: {error}".strip().splitlines()[-1][:300]}
    if name == REFERENCE and not Path(reference).is_file():
        np.save(reference, actual)
    expected = np.load(reference)
    predictions, references = (greedy_texts(log_probs, bundle) for log_probs in (actual, expected))
    scores = count(texts, predictions) if prepared else None
    return {
        "lines_per_second": speeds,
        "seconds_to_first_reading": round(ready, 1),
        "num_lines": len(images),
        "largest_difference_of_probabilities": float(np.abs(np.exp(actual) - np.exp(expected)).max()),
        "lines_that_read_differently": sum(a != b for a, b in zip(predictions, references, strict=True)),
        **({"cer": scores.cer, "exact_match": scores.exact_match} if scores else {}),
    }


def lines_to_read(prepared: str | None, bundle: Bundle) -> tuple[np.ndarray, list[str]]:
    """Returns line images (N, H, W) uint8 and their labels; no labels for drawn lines."""
    if prepared:
        table = Prepared(prepared).table("validation", ["image", "text"])
        return images_of(table, bundle.canvas), table["text"].to_pylist()
    with tempfile.TemporaryDirectory() as folder:
        synthesize(SynthesisSettings(out=f"{folder}/drawn", lines=2 * TIMED))
        files = sorted(Path(folder, "drawn/train_v2/train").iterdir())
        lines = lines_of([path.read_bytes() for path in files], bundle.canvas)
    return np.stack([line.image for line in lines if line.image is not None][:TIMED]), []


def in_batches(read: Read, images: np.ndarray, size: int) -> np.ndarray:
    """Returns log-probabilities (N, T, C) of all images. Pads the last batch: compiled models accept one size only."""
    padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % size, axis=0)])
    batches = [np.array(read(padded[i : i + size])) for i in range(0, len(padded), size)]
    return np.concatenate(batches)[: len(images)].astype(np.float32)


def lines_per_second(read: Read, images: np.ndarray, size: int, repeats: int) -> int:
    """Returns the median throughput over the repeats, after a warm-up."""
    number = TIMED // 4 if size == 1 else TIMED
    images = np.resize(images, (number, *images.shape[1:]))  # repeats the images if there are too few
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for i in range(0, number, size):
            read(images[i : i + size])
        seconds.append(time.perf_counter() - start)
    return round(number / statistics.median(seconds[1:]))


def greedy_texts(log_probs: np.ndarray, bundle: Bundle) -> list[str]:
    """Returns the texts of the most probable paths of lines (N, T, C)."""
    return [bundle.codec.decode(collapse(path)) for path in log_probs.argmax(-1).tolist()]


if __name__ == "__main__":
    run_benchmark(RuntimesBenchmark, measure)
