"""One step of learning, and the state that it changes; knows no Ray."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hwr_ray.model import CRNN
from hwr_ray.network import has_bfloat16
from hwr_ray.recognizer import ctc_losses

WARM_UP_STEPS, MOST_WARM_UP = 500, 0.15
"""Steps in which the learning rate rises, at most this share of all steps."""
CLIP_NORM = 5.0
"""Largest norm of the gradient."""


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


def train_step(
    state: TrainState, parallel: nn.Module, ink: Tensor, labels: list[list[int]], *, shortcut_weight: float
) -> tuple[Tensor, Tensor]:
    """One step on ink (N, 1, H, W); returns the loss and the gradient's norm before clipping.

    What is minimized is the loss + shortcut_weight * that of the CTC head on the convolution features.
    """
    with torch.autocast(ink.device.type, torch.bfloat16, enabled=has_bfloat16(ink.device)):
        logits, shortcut = parallel(ink.contiguous(memory_format=torch.channels_last))
    lengths = torch.tensor([max(1, len(line)) for line in labels], device=ink.device)
    # CTC sums many small probabilities: float32 always.
    loss, shortcut_loss = (
        (ctc_losses(out.float().log_softmax(-1), labels) / lengths).mean() for out in (logits, shortcut)
    )
    total = loss + shortcut_weight * shortcut_loss
    state.optimizer.zero_grad(set_to_none=True)
    total.backward()
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), CLIP_NORM)
    state.optimizer.step()
    state.step += 1
    return loss.detach(), norm


def one_cycle(step: int, total_steps: int) -> float:
    """Factor of the learning rate at a step of 0 to total_steps: a linear rise, then half a cosine down to 0."""
    warm_up = min(WARM_UP_STEPS, MOST_WARM_UP * total_steps)
    if step < warm_up:
        return max(0.04, step / warm_up)
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (step - warm_up) / (total_steps - warm_up)))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, the batch statistics included."""
    for kept, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(now, 1 - decay)
        else:
            kept.copy_(now)
