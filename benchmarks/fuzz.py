"""Random label files and images: no crash, no lost row, no image that is read otherwise than Pillow shows it.

Run as `python -m benchmarks.fuzz --number 20000 --out FILE`; half of them are label files.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.machine import commit, hardware
from hwr_ray.cli import run_job
from hwr_ray.files.storage import write_json
from hwr_ray.versions import versions

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fuzzing import check_image, check_labels


@dataclass(frozen=True, kw_only=True)
class FuzzSettings:
    number: int = 20_000
    """Number of files, half of them label files and half images."""
    seed: int = 0
    """Seed of the files."""
    out: str = "benchmarks/results/fuzz.json"
    """JSON file of the result."""


def fuzz(settings: FuzzSettings) -> str:
    """Checks the files and writes how many were read. Raises AssertionError at the first one that is read wrongly."""
    rng, start = np.random.default_rng(settings.seed), time.monotonic()
    with TemporaryDirectory() as folder:
        for _ in range(settings.number // 2):
            check_labels(rng, Path(folder))
    num_read = sum(check_image(rng) for _ in range(settings.number // 2))
    result = {
        "command": f"python -m benchmarks.fuzz --number {settings.number} --seed {settings.seed}",
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "num_label_files": settings.number // 2,
        "num_images": settings.number // 2,
        "num_images_read": num_read,
        "seconds": round(time.monotonic() - start, 1),
    }
    write_json(settings.out, result)
    return settings.out


if __name__ == "__main__":
    run_job(FuzzSettings, fuzz)
