"""Tracking of a run in Weights & Biases.

wandb is imported only if a project is given, because the import takes time in each process of a run.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from hwr_ray.errors import UserError

Sample = tuple[np.ndarray, str, str]
"""A line image (H, W) uint8, its label and its prediction."""


def check_key(project: str | None) -> None:
    """Raises UserError if wandb would prompt for a missing key, since nobody can answer."""
    if not project or os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return
    import wandb

    if not wandb.login(prompt=False):
        raise UserError("--wandb-project needs a key: set WANDB_API_KEY, or set WANDB_MODE=offline")


class Tracker:
    """Sends a run's metrics to wandb. Does nothing without a project. Only rank 0 uses it.

    The key comes from WANDB_API_KEY, the mode from WANDB_MODE (`offline` works).
    """

    def __init__(self, *, project: str | None, out: str, run_id: str, config: dict[str, Any]) -> None:
        self.run = None
        if project:
            import wandb

            folder = out if "://" not in out else None
            self.run = wandb.init(project=project, id=run_id, resume="allow", dir=folder, config=config)

    def log(self, metrics: dict[str, Any]) -> None:
        if self.run:
            self.run.log(metrics, step=metrics["epoch"])

    def log_samples(self, samples: Sequence[Sample], *, epoch: int) -> None:
        """Logs a table of lines with their labels and predictions."""
        if self.run:
            import wandb

            rows: list[Any] = [[wandb.Image(image), text, prediction] for image, text, prediction in samples]
            self.run.log({"samples": wandb.Table(columns=["image", "text", "prediction"], data=rows)}, step=epoch)

    def finish(self) -> None:
        if self.run:
            self.run.finish()
