"""What one training worker does: epochs of steps and a validation, from lines to the best bundle."""

import copy
import json
import logging
import math
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hwr_ray import storage
from hwr_ray.augmentation import augment
from hwr_ray.bundle import Bundle, new_model, save_bundle
from hwr_ray.cluster import threads_per_worker
from hwr_ray.codec import Codec
from hwr_ray.errors import UserError
from hwr_ray.metrics import Counts, count
from hwr_ray.model import CRNN, ModelSettings, to_ink
from hwr_ray.prepared import Prepared, images_of
from hwr_ray.provenance import versions
from hwr_ray.recognizer import ctc_losses, read_batch
from hwr_ray.tracking import Sample, Tracker

SHORTCUT_WEIGHT = 0.1
"""Of the loss of the CTC head on the convolution features (Retsinas et al. 2022)."""
WARM_UP = 0.15
"""Share of the steps in which the learning rate rises."""
CLIP_NORM = 5.0
"""Largest norm of the gradient."""
SHUFFLE_WINDOW = 16_384
"""Lines that a worker shuffles at a time, on top of the random order of the shards."""
EVAL_BATCH = 128
MOST_KEPT_BYTES = 1 << 30
"""A worker's share of a split is read once and kept in memory up to this size: starting Ray Data again costs seconds
an epoch. A larger one is streamed every epoch."""
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
    epochs: int = 20
    """Passes over the training lines; the learning rate ends at 0 with the last."""
    batch_size: int = 64
    """Lines a step, over all workers."""
    learning_rate: float = 2e-3
    """The highest of AdamW's one cycle."""
    weight_decay: float = 1e-2
    """AdamW's."""
    average_decay: float = 0.998
    """Of the exponential moving average of the weights, a step. The average is what is validated and kept."""
    augmentation: bool = True
    """Distort the training lines at random."""
    patience: int = 10
    """Epochs without a better validation CER after which training stops."""
    seed: int = 0
    """Of first weights, order, augmentation and dropout."""
    num_workers: int = 1
    """Processes that train together (DDP)."""
    use_gpu: bool = False
    """One GPU for each worker."""
    cpus_per_worker: float = 0.5
    """Ray's logical CPUs for each worker."""
    wandb_project: str | None = None
    """Follow the run in Weights & Biases; the key comes from WANDB_API_KEY, and WANDB_MODE=offline works."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "patience", "num_workers", "cpus_per_worker"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} must be positive, not {getattr(self, name)}")
        for name in ("weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} must not be negative, not {getattr(self, name)}")
        if not 0 <= self.average_decay < 1:
            raise UserError(f"--average-decay must lie in 0 to 1 (excluded), not {self.average_decay}")
        if self.batch_size % self.num_workers:
            raise UserError(f"--batch-size {self.batch_size} does not divide by --num-workers {self.num_workers}")

    def recipe(self) -> dict[str, Any]:
        """The settings that decide the result: a run resumes only under the same ones."""
        elsewhere = {"data", "out", "num_workers", "use_gpu", "cpus_per_worker", "wandb_project"}
        return {name: value for name, value in asdict(self).items() if name not in elsewhere}


@dataclass
class TrainState:
    """All that a resumed run needs to go on: what is not here (order, augmentation, dropout) is drawn anew from the
    seed, the epoch and the rank."""

    model: CRNN
    average: CRNN
    """Exponential moving average of the model's weights, in evaluation mode."""
    optimizer: torch.optim.Optimizer
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    """Metrics of the epochs so far."""

    def epochs_since_best(self) -> int:
        cers = [row["cer"] for row in self.history]
        return len(cers) - 1 - cers.index(min(cers)) if cers else 0

    def save(self, folder: str) -> None:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer")}
        torch.save({**parts, "step": self.step, "history": self.history}, Path(folder) / "state.pt")

    def load(self, folder: str) -> None:
        saved = torch.load(Path(folder) / "state.pt", map_location="cpu", weights_only=True)
        for name in ("model", "average", "optimizer"):
            getattr(self, name).load_state_dict(saved[name])
        self.step, self.history = saved["step"], saved["history"]


def train_loop_per_worker(config: dict[str, Any]) -> None:
    """Trains until the last epoch, or until patience runs out, from the latest checkpoint if there is one.

    Every epoch ends with a validation on all workers, a checkpoint, a line on the console and one in metrics.jsonl.
    The best average of the weights so far is the bundle OUT/best.
    """
    settings: TrainSettings = config["settings"]
    prepared, out = Prepared(config["data"]), config["out"]
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train logs a long line a report; the epochs' own tell more
    torch.set_num_threads(threads_per_worker(settings.num_workers))
    torch.manual_seed(settings.seed)
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    codec = Codec(prepared.charset)
    model = new_model(settings.model, codec, prepared.canvas).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    state = TrainState(model, average, optimizer)
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state.load(folder)
        if rank == 0:  # what came of the epoch may not have been written before the run was stopped
            publish(state, prepared, settings, out)
    parallel = ray.train.torch.prepare_model(model)
    train_lines = ShardLines("train", prepared.num_bytes("train") // world_size)
    validation_lines = ShardLines("validation", prepared.num_bytes("validation") // world_size)
    total_steps = settings.epochs * (prepared.num_lines("train") // world_size // (settings.batch_size // world_size))
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
        counts, samples = validate(state.average, validation_lines, prepared, codec, device)
        row = {"epoch": epoch, **trained, "cer": counts.cer, "exact_match": counts.exact_match, **asdict(counts)}
        state.history.append(row)
        with tempfile.TemporaryDirectory() as folder:
            if rank == 0:
                state.save(folder)
            ray.train.report(row, ray.train.Checkpoint.from_directory(folder) if rank == 0 else None)
        if rank == 0:
            publish(state, prepared, settings, out)
            is_best = state.epochs_since_best() == 0
            print(describe(row, settings.epochs, is_best=is_best), flush=True)
            tracker.log(row)
            if is_best:
                tracker.log_samples(samples, epoch=epoch)
    tracker.finish()


def publish(state: TrainState, prepared: Prepared, settings: TrainSettings, out: str) -> None:
    """Writes metrics.jsonl, and the average of the weights as the bundle OUT/best if the last epoch is the best."""
    history = "".join(json.dumps(row) + "\n" for row in state.history)
    storage.write_bytes(storage.join(out, "metrics.jsonl"), history.encode())
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
        factor = one_cycle(state.step / total_steps)
        for group in state.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        ink = to_ink(torch.tensor(images_of(table, prepared.canvas), device=device))
        if settings.augmentation:
            ink = augment(ink, table["id"].to_pylist(), seed=settings.seed, epoch=epoch)
        labels = [codec.encode(text) for text in table["text"].to_pylist()]
        loss, norm = train_step(state, parallel, ink, labels)
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


def train_step(state: TrainState, parallel: nn.Module, ink: Tensor, labels: list[list[int]]) -> tuple[Tensor, Tensor]:
    """One step on ink (N, 1, H, W); returns the loss and the gradient's norm before clipping."""
    with torch.autocast(ink.device.type, torch.bfloat16, enabled=has_bfloat16(ink.device)):
        logits, shortcut = parallel(ink.contiguous(memory_format=torch.channels_last))
    lengths = torch.tensor([max(1, len(line)) for line in labels], device=ink.device)
    # CTC sums many small probabilities: float32 always.
    loss, shortcut_loss = (
        (ctc_losses(out.float().log_softmax(-1), labels) / lengths).mean() for out in (logits, shortcut)
    )
    total = loss + SHORTCUT_WEIGHT * shortcut_loss
    state.optimizer.zero_grad(set_to_none=True)
    total.backward()
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), CLIP_NORM)
    state.optimizer.step()
    state.step += 1
    return loss.detach(), norm


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


class ShardLines:
    """A worker's lines of a split as tables of EVAL_BATCH rows, the same number in every pass."""

    def __init__(self, split: str, num_bytes: int) -> None:
        self.split, self.is_small = split, num_bytes <= MOST_KEPT_BYTES
        self.kept: list[pa.Table] | None = None

    def __iter__(self) -> Iterator[pa.Table]:
        if self.kept is not None:
            return iter(self.kept)
        tables = ray.train.get_dataset_shard(self.split).iter_batches(batch_size=EVAL_BATCH, batch_format="pyarrow")
        if self.is_small:
            found = list(tables)
            # Sorted, since Ray's order is that in which its tasks end. That copies, too: Ray's own tables hold on to
            # its object store.
            lines = pa.concat_tables(found).sort_by("id") if found else None
            self.kept = [lines.slice(i, EVAL_BATCH) for i in range(0, len(lines), EVAL_BATCH)] if lines else []
            return iter(self.kept)
        return iter(tables)


def shuffled_batches(tables: Iterable[pa.Table], batch_size: int, rng: np.random.Generator) -> Iterator[pa.Table]:
    """Batches of `batch_size` rows drawn without replacement from windows of rows; the last rows that fill no batch
    stay out.

    Not Ray's local shuffle buffer: that one emits short batches in mid-stream, with other counts of batches on other
    workers, and DDP then waits for ever (ray-project/ray#66085).
    """
    window: list[pa.Table] = []
    for table in tables:
        window.append(table)
        if sum(map(len, window)) >= SHUFFLE_WINDOW:
            shuffled = _shuffle(window, rng)
            whole = len(shuffled) - len(shuffled) % batch_size
            yield from (shuffled.slice(i, batch_size) for i in range(0, whole, batch_size))
            window = [shuffled.slice(whole)]
    if window:
        shuffled = _shuffle(window, rng)
        yield from (shuffled.slice(i, batch_size) for i in range(0, len(shuffled) - batch_size + 1, batch_size))


def _shuffle(tables: list[pa.Table], rng: np.random.Generator) -> pa.Table:
    table = pa.concat_tables(tables)
    return table.take(rng.permutation(len(table)))


def one_cycle(progress: float) -> float:
    """Factor of the learning rate at a progress of 0 to 1: a linear rise, then half a cosine down to 0."""
    if progress < WARM_UP:
        return max(0.04, progress / WARM_UP)
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (progress - WARM_UP) / (1 - WARM_UP)))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, the batch statistics included."""
    for kept, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(now, 1 - decay)
        else:
            kept.copy_(now)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware, where autocast then saves time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # from torch 2.10 on
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def describe(row: dict[str, Any], epochs: int, *, is_best: bool) -> str:
    """An epoch in one line for the console."""
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.3f}, CER {100 * row['cer']:.2f} %, "
        f"exact match {100 * row['exact_match']:.1f} % of {row['num_lines']} lines, "
        f"{row['lines_per_second']:.0f} lines/s, {row['seconds']:.0f} s" + (" (best)" if is_best else "")
    )
