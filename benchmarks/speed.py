"""Throughput of each processing step on this machine as JSON: lines per second with one thread, medians of five."""

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

from hwr_ray.decoding.beam_search import beam_search
from hwr_ray.decoding.ngram import fit_language_model
from hwr_ray.images.augmentation import augment
from hwr_ray.images.decode import decode
from hwr_ray.images.lines import Canvas, fit
from hwr_ray.model.architecture import ModelSettings
from hwr_ray.model.crnn import to_ink
from hwr_ray.recognition.bundle import Bundle, new_model
from hwr_ray.recognition.recognizer import read_log_probs
from hwr_ray.recognition.runtime import log_probs_of
from hwr_ray.synthetic.synthesize import Names, SynthesisSettings, synthesize, without_accents
from hwr_ray.text.codec import BLANK, Codec
from hwr_ray.training.step import TrainState, new_ema, train_step
from hwr_ray.versions import versions

NUM_LINES = 512
BATCH = 64


def lines_per_second(step: Callable[[], object], num_lines: int, repeats: int = 5) -> int:
    """Returns the median over `repeats` after one warm-up."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return round(num_lines / statistics.median(seconds[1:]))


def drawn_frames(texts: list[str], codec: Codec, *, frames: int = 80) -> np.ndarray:
    """Returns log-probabilities (N, T, C) float32 that resemble those of a trained model.

    Each letter has one frame. Most frames are certain of the blank; the frames of letters are less certain.
    """
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(len(texts), frames, codec.num_classes)).astype(np.float32)
    logits[:, :, BLANK] += 13
    for line, text in zip(logits, texts, strict=True):
        for position, label in enumerate(codec.encode(text), start=1):
            frame = position * frames // (len(text) + 1)
            line[frame, BLANK] -= 9
            line[frame, label] += rng.uniform(4, 9)
    return torch.from_numpy(logits).log_softmax(-1).numpy()


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
    state = TrainState(model, new_ema(model, 0.99), torch.optim.AdamW(model.parameters()))
    ids = [str(i) for i in range(BATCH)]
    names, rng = Names.draw(seed=0), np.random.default_rng(0)
    texts = [text for _ in range(NUM_LINES) if not codec.unknown(text := without_accents(names.draw_one(rng)))]
    frames, language_model = drawn_frames(texts, codec), fit_language_model(texts, codec, min_count=2)

    def train() -> None:
        ink = augment(to_ink(images), ids, seed=0, epoch=0)
        train_step(state, model.train(), ink, [codec.encode("BALTHAZ")] * BATCH, shortcut_weight=0.1)
        state.ema.update_parameters(model)

    def search() -> None:
        beam_search(frames, language_model=language_model, lm_weight=0.35, length_bonus=1.5)

    @torch.inference_mode()
    def read() -> None:
        read_log_probs(log_probs_of(bundle.model, images), codec)

    result = {
        "lines_per_second": {
            "synthesize": drawn,
            "decode": lines_per_second(lambda: [decode(data) for data in files], len(files)),
            "fit": lines_per_second(lambda: [fit(picture, canvas) for picture in pictures], len(pictures)),
            "augment": lines_per_second(lambda: augment(to_ink(images), ids, seed=0, epoch=0), BATCH),
            "train_step": lines_per_second(train, BATCH),
            "read": lines_per_second(read, BATCH),
            "beam_search": lines_per_second(search, len(texts)),
        },
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "threads": 1},
        "versions": versions(),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
