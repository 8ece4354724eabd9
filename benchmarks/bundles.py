"""Cost and throughput of bundles beside each other: the same drawn lines, in turns, on one thread.

Run as `python -m benchmarks.bundles --bundles BEFORE shipped`; the first bundle is the reference of the ratios.
"""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import ROOT, commit, hardware
from hwr_ray.cli import run_job
from hwr_ray.images.lines import fit
from hwr_ray.recognition.bundle import load_bundle
from hwr_ray.recognition.bundle_config import bundle_path
from hwr_ray.recognition.recognizer import Recognizer
from hwr_ray.synthetic.forms import draw_line
from hwr_ray.synthetic.synthesize import Names, without_accents
from hwr_ray.tuning.cost import multiply_adds
from hwr_ray.versions import versions

NUM_LINES, ROUNDS = 512, 7


@dataclass(frozen=True, kw_only=True)
class BundlesSettings:
    bundles: tuple[str, ...]
    """Bundles to compare, with the same canvas."""
    out: str = str(ROOT / "benchmarks/results/bundles.json")
    """JSON file of the result."""


def measure(settings: BundlesSettings) -> None:
    """Measures the bundles and the first one with test-time augmentation, and writes the result."""
    torch.set_num_threads(1)
    recognizers = {path: Recognizer(path) for path in settings.bundles}
    recognizers[f"{settings.bundles[-1]}, three sizes"] = Recognizer(settings.bundles[-1], test_time_augmentation=True)
    names, rng = Names.draw(seed=0), np.random.default_rng(0)
    canvas = recognizers[settings.bundles[0]].canvas
    texts = [without_accents(names.draw_one(rng)) for _ in range(NUM_LINES)]
    images = np.stack([fit(draw_line(text, rng), canvas) for text in texts])
    seconds: dict[str, list[float]] = {name: [] for name in recognizers}
    for _ in range(ROUNDS + 1):
        for name, recognizer in recognizers.items():
            start = time.perf_counter()
            recognizer.read_lines(images)
            seconds[name].append(time.perf_counter() - start)
    first = seconds[settings.bundles[0]]
    rows = {
        name: {
            "model_id": recognizers[name].model_id,
            "lines_per_second": round(NUM_LINES / statistics.median(taken[1:]), 1),
            "seconds_against_first": round(
                statistics.median(own / other for own, other in zip(taken[1:], first[1:], strict=True)), 3
            ),
        }
        for name, taken in seconds.items()
    }
    for path in settings.bundles:
        bundle = load_bundle(bundle_path(path))
        ink = torch.zeros(1, 1, bundle.canvas.height, bundle.canvas.width)
        size = sum(file.stat().st_size for file in Path(bundle_path(path)).glob("*.safetensors"))
        rows[path] |= {"multiply_adds": multiply_adds(bundle.model, ink), "bytes": size}
    result = {"rows": rows, "commit": commit(), "hardware": hardware(), "versions": versions()}
    Path(settings.out).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    run_job(BundlesSettings, measure)
