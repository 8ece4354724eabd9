"""The training state and the optimizer step, without Ray."""

import io
import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from hwr_ray.decoding.ctc import ctc_losses
from hwr_ray.model.crnn import CRNN, has_bfloat16

WARM_UP_STEPS, MOST_WARM_UP = 500, 0.15
"""Warm-up steps of the learning rate, and their maximum share of all steps."""
LEAST_FACTOR = 0.04
"""Factor of the learning rate at the first steps."""
CLIP_NORM = 5.0
"""Norm to which larger gradients are clipped."""


@dataclass
class TrainState:
    """The state from which a run resumes, even in the middle of an epoch.

    The order of lines, augmentation and dropout are not part of it: they follow from the seed, epoch, step and rank.
    Only streamed lines come in another order after each resumption.
    """

    model: CRNN
    ema: AveragedModel
    """Exponential moving average of the model's weights and batch statistics, in evaluation mode."""
    optimizer: torch.optim.Optimizer
    step: int = 0
    epoch_step: int = 0
    """Steps done in the current epoch."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the metrics over those steps."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Metrics of each completed epoch."""

    @property
    def averaged_model(self) -> CRNN:
        return cast(CRNN, self.ema.module)

    def best_epoch(self) -> dict[str, Any]:
        """Returns the metrics of the epoch with the lowest CER (the first if several tie); empty before epoch 1."""
        return min(self.history, key=lambda row: row["cer"], default={})

    def epochs_since_best(self) -> int:
        return len(self.history) - 1 - self.history.index(self.best_epoch()) if self.history else 0

    def to_bytes(self) -> bytes:
        state_dicts = {name: getattr(self, name).state_dict() for name in ("model", "ema", "optimizer")}
        progress = {name: getattr(self, name) for name in ("step", "epoch_step", "sums", "history")}
        buffer = io.BytesIO()
        torch.save({**state_dicts, **progress}, buffer)
        return buffer.getvalue()

    def load(self, data: bytes) -> None:
        saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        for name in ("model", "ema", "optimizer"):
            getattr(self, name).load_state_dict(saved[name])
        for name in ("step", "epoch_step", "sums", "history"):
            setattr(self, name, saved[name])


def dropout_seed(seed: int, step: int, rank: int) -> int:
    """Returns the seed of a worker's dropout in a step; it does not depend on where the run was resumed."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])


def train_step(
    state: TrainState,
    parallel: nn.Module,
    ink: Tensor,
    labels: list[list[int]],
    *,
    shortcut_weight: float,
    line_weight: float | None = None,
    gradient_accumulation_steps: int = 1,
) -> tuple[Tensor, Tensor]:
    """Takes one step on ink (N, 1, H, W); returns the loss and the norm of the gradient before clipping.

    The loss is the sum over lines of the CTC loss per character, times `line_weight`, by default 1/N (the mean). With
    several workers, `line_weight` is their number divided by the lines of all workers, because DDP divides by their
    number. The step minimizes the loss + shortcut_weight * the loss of the CTC head on the convolution features. It
    processes the batch in `gradient_accumulation_steps` micro-batches.
    """
    line_weight = 1 / len(labels) if line_weight is None else line_weight
    state.optimizer.zero_grad(set_to_none=True)
    loss = ink.new_zeros(())
    bounds = [len(labels) * part // gradient_accumulation_steps for part in range(gradient_accumulation_steps + 1)]
    for start, end in pairwise(bounds):
        is_last = end == len(labels)
        with nullcontext() if is_last or not isinstance(parallel, DistributedDataParallel) else parallel.no_sync():
            part = _loss(parallel, ink[start:end], labels[start:end], shortcut_weight) * line_weight
            part.sum().backward()
        loss += part[0].detach()
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), CLIP_NORM)
    state.optimizer.step()
    state.step += 1
    return loss, norm


def _loss(parallel: nn.Module, ink: Tensor, labels: list[list[int]], shortcut_weight: float) -> Tensor:
    """Returns (2): the CTC loss per character summed over lines, and the same for the shortcut head, weighted."""
    with torch.autocast(ink.device.type, torch.bfloat16, enabled=has_bfloat16(ink.device)):
        logits, shortcut = parallel(ink.contiguous(memory_format=torch.channels_last))
    lengths = torch.tensor([max(1, len(line)) for line in labels], device=ink.device)
    # Always float32: CTC sums many small probabilities.
    loss, shortcut_loss = (
        (ctc_losses(out.float().log_softmax(-1), labels) / lengths).sum() for out in (logits, shortcut)
    )
    return torch.stack([loss, shortcut_weight * shortcut_loss])


def one_cycle(step: int, total_steps: int) -> float:
    """Returns the factor of the learning rate at a step, 0 to total_steps: a linear rise from LEAST_FACTOR, then half a
    cosine down to 0."""
    warm_up = min(WARM_UP_STEPS, MOST_WARM_UP * total_steps)
    if step < warm_up:
        return max(LEAST_FACTOR, step / warm_up)
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (step - warm_up) / (total_steps - warm_up)))


def new_ema(model: CRNN, decay: float) -> AveragedModel:
    """Returns a moving average of a model's weights and batch statistics; `update_parameters(model)` updates it.

    Update n keeps min(decay, (1 + n) / (10 + n)) of the average, so that the random initial weights fade quickly.
    """

    def update(average: Tensor, current: Tensor, num_updates: Tensor | int) -> Tensor:
        if not current.is_floating_point():  # the number of batches
            return current
        n = int(num_updates) + 1
        return average.lerp(current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(model, avg_fn=update, use_buffers=True).eval().requires_grad_(False)
