"""Speed of each step of the way on this machine, one thread, medians of five: lines a second as JSON."""

import copy
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from hwr_ray.augmentation import augment
from hwr_ray.bundle import Bundle, new_model
from hwr_ray.codec import Codec
from hwr_ray.line_images import Canvas, decode, fit
from hwr_ray.model import ModelSettings, to_ink
from hwr_ray.optimization import TrainState, train_step, update_average
from hwr_ray.provenance import versions
from hwr_ray.recognizer import read_batch
from hwr_ray.synthesis import SynthesisSettings, synthesize

NUM_LINES = 512
BATCH = 64


def lines_per_second(step: Callable[[], object], num_lines: int, repeats: int = 5) -> int:
    """Median over `repeats` after one warm-up."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return round(num_lines / statistics.median(seconds[1:]))


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    canvas, codec = Canvas(), Codec(" '-ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        synthesize(SynthesisSettings(out=f"{folder}/drawn", lines=NUM_LINES * 2))
        drawn = round(2 * NUM_LINES / (time.perf_counter() - start))
        paths = sorted(Path(folder, "drawn/train_v2/train").iterdir())[:NUM_LINES]
        files = [data for path in paths if (data := path.read_bytes()).endswith(b"\xff\xd9")]
    pictures = [decode(data) for data in files]
    images = torch.from_numpy(np.stack([fit(picture, canvas) for picture in pictures[:BATCH]]))
    model = new_model(ModelSettings(), codec, canvas).to(memory_format=torch.channels_last)
    bundle = Bundle(model=copy.deepcopy(model).eval(), settings=ModelSettings(), codec=codec, canvas=canvas)
    state = TrainState(model, copy.deepcopy(model), torch.optim.AdamW(model.parameters()))
    ids = [str(i) for i in range(BATCH)]

    def train() -> None:
        ink = augment(to_ink(images), ids, seed=0, epoch=0)
        train_step(state, model.train(), ink, [codec.encode("BALTHAZ")] * BATCH, shortcut_weight=0.1)
        update_average(state.average, model, 0.99)

    result = {
        "lines_per_second": {
            "synthesize": drawn,
            "decode": lines_per_second(lambda: [decode(data) for data in files], len(files)),
            "fit": lines_per_second(lambda: [fit(picture, canvas) for picture in pictures], len(pictures)),
            "augment": lines_per_second(lambda: augment(to_ink(images), ids, seed=0, epoch=0), BATCH),
            "train_step": lines_per_second(train, BATCH),
            "read": lines_per_second(lambda: read_batch(bundle.model, codec, images), BATCH),
        },
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": 1},
        "versions": versions(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
