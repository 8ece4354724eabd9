"""Trains and scores the network and recipe that this project started from, on the same lines, for comparison.

Run as `python -m benchmarks.ancestor --data FOLDER --out FILE`. The result contains no image and no label.
"""

import copy
import logging
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.machine import commit, hardware
from hwr_ray.cli import run_job
from hwr_ray.data.cleaning import CleaningSettings, reason_for
from hwr_ray.data.labels import Split, find_label_files, read_rows
from hwr_ray.decoding.ctc import ctc_losses
from hwr_ray.errors import UserError
from hwr_ray.files.storage import read_bytes, write_json
from hwr_ray.images.decode import UndecodableImageError, decode
from hwr_ray.text.codec import Codec, collapse, frames_needed
from hwr_ray.text.metrics import edit_distances, figures
from hwr_ray.text.normalization import normalize
from hwr_ray.tuning.cost import multiply_adds, num_parameters
from hwr_ray.versions import versions

HEIGHT, WIDTH = 36, 324
FRAMES = 19
CONVOLUTIONS = ((32, (1, 2)), (64, (2, 2)), (128, (2, 2)), (256, (1, 2)))
"""Output channels and (height, width) stride of each 3x3 convolution. Maps: 34x161, 16x80, 7x39, 5x19."""
LEARNING_RATE = 1e-3
BATCH = 64
DECAY = 0.998
"""Decay of the exponential moving average of the weights, which the original recipe does not use."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AncestorSettings:
    data: str
    """Folder with the labelled lines, in the Kaggle layout."""
    out: str
    """JSON file of the result, rewritten after each epoch."""
    epochs: int = 24
    """Number of training epochs."""
    seed: int = 0
    """Seed of the weights, the order of the lines, the dropout and the bootstrap."""
    threads: int = 1
    """Number of threads of torch and OpenCV."""

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("seed", 0), ("threads", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} must be at least {least}, not {getattr(self, name)}")


class Ancestor(nn.Module):
    """Four convolutions without padding, two linear layers, two BiGRU layers, CTC: 19 frames for every line."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        c_in = 1
        for c_out, stride in CONVOLUTIONS:
            layers += [nn.Conv2d(c_in, c_out, 3, stride=stride, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
            c_in = c_out
        self.convolutions = nn.Sequential(*layers)
        # The original declares a dropout of 0.4 here and never calls it.
        self.linears = nn.Sequential(nn.Linear(c_in * 5, 512), nn.Linear(512, 256), nn.ReLU())
        self.gru = nn.GRU(256, 128, num_layers=2, bidirectional=True, batch_first=True, dropout=0.3)
        self.classifier = nn.Linear(2 * 128, num_classes)

    def forward(self, grey: Tensor) -> Tensor:
        """Returns the logits (N, T, C) of grey images (N, 1, 36, 324), 0 black to 1 white."""
        maps = self.convolutions(grey)  # (N, channels, 5, T)
        states, _ = self.gru(self.linears(maps.permute(0, 3, 1, 2).flatten(2)))
        return self.classifier(states)


@dataclass(frozen=True)
class Lines:
    """The cleaned lines of a split."""

    images: Tensor
    """(N, 36, 324) uint8, 255 white."""
    texts: list[str]
    figures: dict[str, Any]
    """Number of rows in the CSV, of kept rows, and of rejected rows by reason."""


def train(settings: AncestorSettings) -> None:
    """Trains by the recipe and writes the result after each epoch."""
    start = time.monotonic()
    torch.set_num_threads(settings.threads)
    cv2.setNumThreads(settings.threads)
    torch.manual_seed(settings.seed)
    lines, validation = read_split(settings.data, "train"), read_split(settings.data, "validation")
    codec = Codec("".join(sorted(set("".join(lines.texts)))))
    images, labels = trainable(lines, codec)
    model = Ancestor(codec.num_classes)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    result: dict[str, Any] = {
        "commit": commit(),
        "hardware": hardware() | {"threads": settings.threads},
        "versions": versions(),
        "command": f"python -m benchmarks.ancestor {' '.join(sys.argv[1:])}",
        "settings": asdict(settings),
        "params": num_parameters(model),
        "multiply_adds_per_line": multiply_adds(copy.deepcopy(model).eval(), torch.rand(1, 1, HEIGHT, WIDTH)),
        "lines": {
            "train": lines.figures | {"too_many_frames": len(lines.texts) - len(labels), "trained_on": len(labels)},
            "validation": validation.figures
            | {"too_many_frames": sum(frames_needed(text) > FRAMES for text in validation.texts)},
        },
        "epochs": [],
        "validation": {},
    }
    for epoch in range(1, settings.epochs + 1):
        epoch_start = time.monotonic()
        loss = train_epoch(model, average, optimizer, images, labels)
        training_seconds = time.monotonic() - epoch_start
        raw, averaged = (score(net, codec, validation, settings.seed) for net in (model, average))
        row = {"epoch": epoch, "loss": loss, "seconds": round(training_seconds, 1), "raw": raw, "average": averaged}
        result["epochs"].append({**row, "raw": short(raw), "average": short(averaged)})
        best = result["validation"].get("best_raw_epoch")
        if best is None or raw["cer"] < best["cer"]:
            best = {"epoch": epoch, **raw}
        # The best epoch is chosen by its score on these very lines, which makes the score optimistic.
        result["validation"] = {"last_raw": raw, "best_raw_epoch": best, "last_average": averaged}
        result["seconds"] = round(time.monotonic() - start)
        write_json(settings.out, result)
        log.info(
            "epoch %d: loss %.4f, CER %.2f %%, exact match %.2f %%; averaged weights %.2f %%, %.2f %%; %.0f s",
            *(epoch, loss, *(100 * figures[name] for figures in (raw, averaged) for name in ("cer", "exact_match"))),
            training_seconds,
        )
    print(settings.out)


def read_split(data: str, split: Split) -> Lines:
    """Cleans the rows of a split as `prepare` does and resizes its images without keeping their aspect."""
    file = next((file for file in find_label_files(data) if file.split == split), None)
    if file is None:
        raise UserError(f"{data} has no label CSV of the {split} split: check --data")
    images, texts, reasons = [], [], Counter[str]()
    for row in (row for table in read_rows(file) for row in table.to_pylist()):
        text = normalize(row["text"])
        reason = row["reason"] or reason_for(text, CleaningSettings(), is_training=split == "train")
        image = None
        if reason is None:
            image, reason = read_image(row["path"])
        if image is None:
            reasons[str(reason)] += 1
        else:
            images.append(image)
            texts.append(text)
    if not texts:
        raise UserError(f"{file.path} has no readable line: check --data")
    figures = {"rows": len(texts) + reasons.total(), "kept": len(texts), "rejected": dict(sorted(reasons.items()))}
    return Lines(torch.from_numpy(np.stack(images)), texts, figures)


def read_image(path: str) -> tuple[np.ndarray | None, str | None]:
    """Returns the image of a file, resized to (36, 324) uint8, or the reason why there is none."""
    try:
        return cv2.resize(decode(read_bytes(path)), (WIDTH, HEIGHT)), None
    except FileNotFoundError:
        return None, "missing_image"
    except UndecodableImageError:
        return None, "undecodable_image"


def trainable(lines: Lines, codec: Codec) -> tuple[Tensor, list[list[int]]]:
    """Returns images and labels of the lines that fit into 19 frames; the loss of the others is infinite."""
    kept = [i for i, text in enumerate(lines.texts) if frames_needed(text) <= FRAMES]
    return lines.images[kept], [codec.encode(lines.texts[i]) for i in kept]


def train_epoch(
    model: Ancestor, average: AveragedModel, optimizer: torch.optim.Optimizer, images: Tensor, labels: list[list[int]]
) -> float:
    """Trains on all lines once, in random order; returns the mean loss of the batches."""
    model.train()
    losses = []
    for indices in torch.randperm(len(labels)).split(BATCH):
        batch = [labels[i] for i in indices]
        log_probs = model(to_grey(images[indices])).log_softmax(-1)
        # As with reduction="mean" in torch: divide each loss by its target length, then average over the batch.
        loss = (ctc_losses(log_probs, batch) / torch.tensor([len(line) for line in batch])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.inference_mode()
def read(model: Ancestor, codec: Codec, images: Tensor) -> list[str]:
    """Returns greedy predictions for line images (N, 36, 324) uint8."""
    model.eval()
    paths = [path for batch in images.split(BATCH) for path in model(to_grey(batch)).argmax(-1).tolist()]
    return [codec.decode(collapse(path)) for path in paths]


def to_grey(images: Tensor) -> Tensor:
    """Returns line images (N, H, W) uint8 as the network's input (N, 1, H, W), 0 black to 1 white."""
    return images.unsqueeze(1).float() / 255


def score(model: Ancestor, codec: Codec, lines: Lines, seed: int) -> dict[str, Any]:
    """Returns CER and exact match over the lines, with their intervals and counts."""
    predictions = read(model, codec, lines.images)
    return figures(lines.texts, edit_distances(lines.texts, predictions), seed=seed)


def short(row: dict[str, Any]) -> dict[str, float]:
    """Returns only the two rates."""
    return {name: row[name] for name in ("cer", "exact_match")}


if __name__ == "__main__":
    run_job(AncestorSettings, train)
