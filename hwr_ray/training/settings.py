"""What a training run is told."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import tyro

from hwr_ray.cluster.resources import WorkerSettings
from hwr_ray.errors import UserError
from hwr_ray.model.architecture import ModelSettings

KEPT_SHARE = 0.5
"""Of the memory that the training lines may take: a node's, dealt out to its workers, or what is free on a GPU."""


def parse_workers(text: str) -> int | tuple[int, int]:
    """`4`, or `2:8` for as many as the cluster holds of 2 to 8. Raises ValueError where it is neither."""
    fewest, colon, most = text.partition(":")
    return (int(fewest), int(most)) if colon else int(fewest)


Workers = Annotated[
    int | tuple[int, int],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="N|MIN:MAX",
        instance_from_str=lambda words: parse_workers(words[0]),
        is_instance=lambda value: isinstance(value, int | tuple),
        str_from_instance=lambda value: [str(value) if isinstance(value, int) else ":".join(map(str, value))],
    ),
]


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
    gradient_accumulation_steps: int = 1
    """Partitions in which each worker computes its share of a batch, one after the other, where memory is small. Batch
    normalization then sees a part at a time."""
    learning_rate: float = 3e-3
    """The highest of AdamW's one cycle."""
    weight_decay: float = 1e-2
    """AdamW's."""
    ema_decay: float = 0.998
    """Of the exponential moving average of the weights, a step. The average is what is validated and kept."""
    shortcut_weight: float = 0.1
    """Of the loss of a CTC head on the convolution features, there in training only (Retsinas et al. 2022)."""
    augmentation: bool = True
    """Distort the training lines at random."""
    patience: int = 12
    """Epochs without a better validation CER after which training stops."""
    init_from: str | None = None
    """A bundle to start from, or `shipped`, of the same architecture and canvas height. Characters that it does not
    know start anew."""
    freeze_convolutions: bool = False
    """Leave the convolution layers as they are, with their batch statistics."""
    num_folds: int = 1
    """Partitions that the training lines are dealt out to, by the hash of their ids."""
    fold: int | None = None
    """Fold to leave out of training, 0 to num-folds - 1, for `evaluate --label-errors`."""
    seed: int = 0
    """Of first weights, order, augmentation and dropout."""
    num_workers: Workers = 1
    """Processes that train together (DDP): a number, or MIN:MAX for as many as the cluster holds at the time."""
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    stream: bool = False
    """Read the training lines anew in each epoch, by Ray Data, even where they fit into memory."""
    checkpoint_minutes: float = 2.0
    """Between checkpoints within an epoch; there is one at the end of each, and while a node says that it will go."""
    max_failures: int = 3
    """Times that the run goes on by itself after workers were lost; more for spot machines that go without notice."""
    keep: int = 2
    """Checkpoints that stay, the newest; the best epoch's stays beside them."""
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
            "gradient_accumulation_steps",
            "learning_rate",
            "patience",
            "num_folds",
            "checkpoint_minutes",
            "keep",
        ):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} must be positive, not {getattr(self, name)}")
        for name in ("weight_decay", "shortcut_weight", "seed", "max_failures"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} must not be negative, not {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"--ema-decay must lie in 0 to 1 (excluded), not {self.ema_decay}")
        fewest, most = self.worker_range
        if not 1 <= fewest <= most:
            raise UserError(f"--num-workers must be at least 1, and MIN:MAX in that order, not {fewest}:{most}")
        if self.batch_size < most * self.gradient_accumulation_steps:
            raise UserError(
                f"--batch-size {self.batch_size} is too small for {most} workers with --gradient-accumulation-steps "
                f"{self.gradient_accumulation_steps}: each must get a line"
            )
        if self.freeze_convolutions and self.init_from is None:
            raise UserError("--freeze-convolutions needs --init-from: random convolutions should learn")
        if self.num_folds == 1 and self.fold is not None:
            raise UserError(f"--fold {self.fold} needs --num-folds of 2 or more")
        if self.num_folds > 1 and self.fold not in range(self.num_folds):
            given = "is missing" if self.fold is None else f"{self.fold} is none of them"
            raise UserError(f"--num-folds {self.num_folds} has the folds 0 to {self.num_folds - 1}: --fold {given}")

    @property
    def worker_range(self) -> tuple[int, int]:
        """The fewest and the most workers."""
        return self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)

    def recipe(self) -> dict[str, Any]:
        """The settings that decide the weights: a run resumes only under the same ones."""
        elsewhere = {"data", "out", "num_workers", "workers", "wandb_project"}
        elsewhere |= {"stream", "checkpoint_minutes", "keep", "max_failures"}
        elsewhere |= {"init_from"}  # known by its weights, wherever it lies
        elsewhere |= {"label_list", "label_column"}  # of the decoder, which is fitted anew at the end of each run
        return {name: value for name, value in asdict(self).items() if name not in elsewhere}
