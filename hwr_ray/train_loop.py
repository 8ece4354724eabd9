"""What one training worker does: epochs of steps and a validation, from lines to the best bundle."""

import copy
import json
import logging
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray.train
import ray.train.torch
import ray.util
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hwr_ray import storage
from hwr_ray.augmentation import augment
from hwr_ray.bundle import Bundle, new_model, save_bundle
from hwr_ray.cluster import threads_per_worker
from hwr_ray.codec import Codec
from hwr_ray.errors import UserError
from hwr_ray.ingest import ShardLines, shuffled_batches
from hwr_ray.metrics import Counts, count
from hwr_ray.model import CRNN, ModelSettings, to_ink
from hwr_ray.optimization import TrainState, one_cycle, train_step, update_average
from hwr_ray.prepared import Prepared, images_of
from hwr_ray.provenance import versions
from hwr_ray.recognizer import read_batch
from hwr_ray.tracking import Sample, Tracker

METRICS = "metrics.jsonl"
NUM_SAMPLES = 32
"""Validation lines in wandb's table."""
PROGRESS_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    data: str
    """A prepared data set (jobs/prepare.py)."""
    out: str
    """Folder or URI of the run. The same command again resumes it."""
    model: ModelSettings = field(default_factory=ModelSettings)
    epochs: int = 60
    """Passes over the training lines; the learning rate ends at 0 with the last."""
    batch_size: int = 64
    """Lines a step, over all workers."""
    learning_rate: float = 3e-3
    """The highest of AdamW's one cycle."""
    weight_decay: float = 1e-2
    """AdamW's."""
    average_decay: float = 0.998
    """Of the exponential moving average of the weights, a step. The average is what is validated and kept."""
    shortcut_weight: float = 0.1
    """Of the loss of a CTC head on the convolution features, there in training only (Retsinas et al. 2022)."""
    augmentation: bool = True
    """Distort the training lines at random."""
    patience: int = 12
    """Epochs without a better validation CER after which training stops."""
    num_folds: int = 1
    """Parts that the training lines are dealt out to, by the hash of their ids."""
    fold: int | None = None
    """The part to leave out of training, 0 to num-folds - 1; `evaluate --suspects` reads it with this run's model."""
    seed: int = 0
    """Of first weights, order, augmentation and dropout."""
    num_workers: int = 1
    """Processes that train together (DDP)."""
    use_gpu: bool = False
    """One GPU for each worker."""
    cpus_per_worker: float = 0.5
    """Ray's logical CPUs for each worker."""
    label_list: str | None = None
    """CSV with more texts than the prepared lines have, for the language model; without it those lines' are taken."""
    label_column: str = "IDENTITY"
    """Its column with the texts."""
    wandb_project: str | None = None
    """Follow the run in Weights & Biases; the key comes from WANDB_API_KEY, and WANDB_MODE=offline works."""

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch_size",
            "learning_rate",
            "patience",
            "num_folds",
            "num_workers",
            "cpus_per_worker",
        ):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} must be positive, not {getattr(self, name)}")
        for name in ("weight_decay", "shortcut_weight", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} must not be negative, not {getattr(self, name)}")
        if not 0 <= self.average_decay < 1:
            raise UserError(f"--average-decay must lie in 0 to 1 (excluded), not {self.average_decay}")
        if self.batch_size % self.num_workers:
            raise UserError(f"--batch-size {self.batch_size} does not divide by --num-workers {self.num_workers}")
        if self.num_folds == 1 and self.fold is not None:
            raise UserError(f"--fold {self.fold} needs --num-folds of 2 or more")
        if self.num_folds > 1 and self.fold not in range(self.num_folds):
            given = "is missing" if self.fold is None else f"{self.fold} is none of them"
            raise UserError(f"--num-folds {self.num_folds} has the folds 0 to {self.num_folds - 1}: --fold {given}")

    def recipe(self) -> dict[str, Any]:
        """The settings that decide the weights: a run resumes only under the same ones."""
        elsewhere = {"data", "out", "num_workers", "use_gpu", "cpus_per_worker", "wandb_project"}
        elsewhere |= {"label_list", "label_column"}  # of the decoder, which is fitted anew at the end of each run
        return {name: value for name, value in asdict(self).items() if name not in elsewhere}


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Trains until the last epoch, or until patience runs out, from the latest checkpoint if there is one.

    Every epoch ends with a validation on all workers, a checkpoint, a line on the console and one in metrics.jsonl.
    The best average of the weights so far is the bundle OUT/best.
    """
    settings: TrainSettings = config["settings"]
    prepared, out = Prepared(config["data"]), config["out"]
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train logs a long line a report; the epochs' own tell more
    torch.set_num_threads(threads_per_worker(config["num_processes"]))
    torch.manual_seed(settings.seed)
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    placement = ray.util.get_current_placement_group()
    codec = Codec(prepared.charset)
    model = new_model(settings.model, codec, prepared.canvas).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    state = TrainState(model, average, optimizer)
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state.load(folder)
        if rank == 0 and len(read_history(out)) < len(
            state.history
        ):  # stopped between the checkpoint and its publication
            publish(state, prepared, settings, out)
    parallel = ray.train.torch.prepare_model(model)
    num_lines = {"train": config["num_train_lines"], "validation": prepared.num_lines("validation")}
    train_lines, validation_lines = (ShardLines(s, prepared.num_bytes(n) // world_size) for s, n in num_lines.items())
    total_steps = settings.epochs * (num_lines["train"] // world_size // (settings.batch_size // world_size))
    tracker = Tracker(
        project=settings.wandb_project if rank == 0 else None,
        out=out,
        run_id=config["run_id"],
        config=asdict(settings),
    )
    for epoch in range(len(state.history) + 1, settings.epochs + 1):
        if state.epochs_since_best() >= settings.patience:
            break
        torch.manual_seed(hash((settings.seed, epoch, rank)))
        trained = train_epoch(state, parallel, train_lines, prepared, settings, epoch=epoch, total_steps=total_steps)
        start = time.monotonic()
        counts, samples = validate(state.average, validation_lines, prepared, codec, device)
        trained["validation_seconds"] = time.monotonic() - start
        row = {"epoch": epoch, **trained, "cer": counts.cer, "exact_match": counts.exact_match, **asdict(counts)}
        state.history.append(row)
        with tempfile.TemporaryDirectory() as folder:
            if rank == 0:
                state.save(folder)
            told = {**row, "placement_group": placement.id.hex() if placement else None}  # a sweep gives it back
            ray.train.report(told, ray.train.Checkpoint.from_directory(folder) if rank == 0 else None)
        if rank == 0:
            publish(state, prepared, settings, out)
            is_best = state.epochs_since_best() == 0
            print(describe(row, settings.epochs, is_best=is_best), flush=True)
            tracker.log(row)
            if is_best:
                tracker.log_samples(samples, epoch=epoch)
    tracker.finish()


def publish(state: TrainState, prepared: Prepared, settings: TrainSettings, out: str) -> None:
    """Writes the average of the weights as the bundle OUT/best if the last epoch is the best, then metrics.jsonl."""
    if state.epochs_since_best() == 0:
        provenance = {"recipe": settings.recipe(), "data": prepared.facts["content_hash"], "versions": versions()}
        bundle = Bundle(
            model=state.average,
            settings=settings.model,
            codec=Codec(prepared.charset),
            canvas=prepared.canvas,
            training={**provenance, "metrics": state.history[-1]},
        )
        save_bundle(bundle, storage.join(out, "best"))
    storage.write_bytes(storage.join(out, METRICS), "".join(json.dumps(row) + "\n" for row in state.history).encode())


def read_history(out: str) -> list[dict[str, Any]]:
    """The metrics of a run's epochs so far, from its metrics.jsonl."""
    path = storage.join(out, METRICS)
    lines = storage.read_bytes(path).decode().splitlines() if storage.is_file(path) else []
    return [json.loads(line) for line in lines]


def train_epoch(
    state: TrainState,
    parallel: nn.Module,
    lines: Iterable[pa.Table],
    prepared: Prepared,
    settings: TrainSettings,
    *,
    epoch: int,
    total_steps: int,
) -> dict[str, float]:
    """One pass over this worker's lines; returns its loss, gradient norm, learning rate and lines a second."""
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    codec, world_size = Codec(prepared.charset), context.get_world_size()
    rng = np.random.default_rng((settings.seed, epoch, context.get_world_rank()))
    batches = shuffled_batches(lines, settings.batch_size // world_size, rng)
    losses: list[Tensor] = []
    norms: list[Tensor] = []
    start = shown = time.monotonic()
    parallel.train()
    for table in batches:
        factor = one_cycle(state.step, total_steps)
        for group in state.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        ink = to_ink(torch.tensor(images_of(table, prepared.canvas), device=device))
        if settings.augmentation:
            ink = augment(ink, table["id"].to_pylist(), seed=settings.seed, epoch=epoch)
        labels = [codec.encode(text) for text in table["text"].to_pylist()]
        loss, norm = train_step(state, parallel, ink, labels, shortcut_weight=settings.shortcut_weight)
        update_average(state.average, state.model, min(settings.average_decay, (1 + state.step) / (10 + state.step)))
        losses.append(loss)
        norms.append(norm)
        if context.get_world_rank() == 0 and time.monotonic() - shown > PROGRESS_SECONDS:
            shown = time.monotonic()
            done = len(losses) * settings.epochs / total_steps
            print(f"epoch {epoch}: {done:.0%}, loss {loss.item():.3f}", flush=True)
    mean_loss = torch.stack(losses).mean()
    if world_size > 1:
        dist.all_reduce(mean_loss.div_(world_size))
    if not mean_loss.isfinite():
        raise FloatingPointError(f"the loss of epoch {epoch} is not finite: lower --learning-rate")
    seconds = time.monotonic() - start
    return {
        "loss": mean_loss.item(),
        "gradient_norm": torch.stack(norms).mean().item(),
        "learning_rate": settings.learning_rate * factor,
        "lines_per_second": len(losses) * settings.batch_size / seconds,
        "seconds": seconds,
    }


def validate(
    average: CRNN, lines: Iterable[pa.Table], prepared: Prepared, codec: Codec, device: torch.device
) -> tuple[Counts, list[Sample]]:
    """Counts over all validation lines, summed over all workers, and some of this worker's lines.

    Raises RuntimeError where a line was lost on the way.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in average.buffers():  # each worker has its own batch statistics; rank 0's are those that are kept
            dist.broadcast(buffer, 0)
    counts, samples = Counts(), list[Sample]()
    for table in lines:
        images, texts = images_of(table, prepared.canvas), table["text"].to_pylist()
        predictions = [r.text for r in read_batch(average, codec, torch.tensor(images, device=device))]
        counts += count(texts, predictions)
        samples += list(zip(images, texts, predictions, strict=True))[: NUM_SAMPLES - len(samples)]
    total = torch.tensor(list(asdict(counts).values()), device=device)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(total)
    counts = Counts(*total.tolist())
    if counts.num_lines != prepared.num_lines("validation"):
        raise RuntimeError(f"validated {counts.num_lines} of {prepared.num_lines('validation')} lines")
    return counts, samples


def describe(row: dict[str, Any], epochs: int, *, is_best: bool) -> str:
    """An epoch in one line for the console."""
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.3f}, CER {100 * row['cer']:.2f} %, "
        f"exact match {100 * row['exact_match']:.1f} % of {row['num_lines']} lines, "
        f"{row['lines_per_second']:.0f} lines/s, {row['seconds']:.0f} s" + (" (best)" if is_best else "")
    )
