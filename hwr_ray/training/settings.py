"""The settings of a training run."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import tyro

from hwr_ray.cluster.resources import WorkerSettings
from hwr_ray.errors import UserError
from hwr_ray.model.architecture import ModelSettings

KEPT_SHARE = 0.5
"""Maximum share of memory for the training lines: of a GPU's free memory, or of a run's part of a node's memory."""


def parse_workers(text: str) -> int | tuple[int, int]:
    """Parses `4`, or `2:8` for 2 to 8 workers, as many as the cluster holds. Raises ValueError for any other text."""
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
    """Prepared data set (jobs/prepare.py)."""
    out: str
    """Folder or URI of the run. The same command resumes an interrupted run."""
    model: ModelSettings = field(default_factory=ModelSettings)
    epochs: int = 60
    """Maximum number of passes over the training lines; the learning rate reaches 0 at the end of the last."""
    batch_size: int = 64
    """Lines per step, over all workers."""
    gradient_accumulation_steps: int = 1
    """Micro-batches that each worker splits its share of a batch into, to save memory. Batch normalization then uses
    the statistics of one micro-batch at a time."""
    learning_rate: float = 3e-3
    """Peak learning rate of the one-cycle schedule of AdamW."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW."""
    ema_decay: float = 0.998
    """Decay per step of the exponential moving average of the weights, which is validated and saved."""
    shortcut_weight: float = 0.1
    """Weight of the loss of a CTC head on the convolution features, used in training only (Retsinas et al. 2022)."""
    augmentation: bool = True
    """Distort the training lines at random."""
    patience: int = 12
    """Epochs without a lower validation CER after which training stops."""
    init_from: str | None = None
    """Bundle to start from, or `shipped`; its architecture and canvas height must match. Characters that are missing
    from its charset start with random weights."""
    freeze_convolutions: bool = False
    """Keep the weights and batch statistics of the convolution layers fixed."""
    num_folds: int = 1
    """Number of folds to split the training lines into, by the hash of their ids."""
    fold: int | None = None
    """Fold to exclude from training, 0 to num-folds - 1, for `evaluate --label-errors`."""
    seed: int = 0
    """Random seed of the initial weights, the order of lines, augmentation and dropout."""
    num_workers: Workers = 1
    """Processes that train together (DDP): a number, or MIN:MAX for as many as the cluster currently holds."""
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    stream: bool = False
    """Stream the training lines through Ray Data in every epoch, even if they fit into memory."""
    checkpoint_minutes: float = 2.0
    """Minutes between checkpoints within an epoch. The run also writes one at the end of each epoch, and while a node
    is about to be preempted."""
    max_failures: int = 3
    """Number of times the run resumes by itself after losing workers; raise it for spot machines that vanish without
    notice."""
    keep: int = 2
    """Number of newest checkpoints to keep."""
    label_list: str | None = None
    """CSV file of texts for the language model, usually more than there are prepared lines; by default the texts of
    the training lines."""
    label_column: str = "IDENTITY"
    """Column of --label-list with the texts."""
    wandb_project: str | None = None
    """Weights & Biases project to log the run to; the key comes from WANDB_API_KEY, and WANDB_MODE=offline works."""

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
            raise UserError(f"--ema-decay must be at least 0 and below 1, not {self.ema_decay}")
        fewest, most = self.worker_range
        if not 1 <= fewest <= most:
            raise UserError(f"--num-workers must be at least 1, with MIN at most MAX, not {fewest}:{most}")
        if self.batch_size < most * self.gradient_accumulation_steps:
            raise UserError(
                f"--batch-size {self.batch_size} is too small for {most} workers with --gradient-accumulation-steps "
                f"{self.gradient_accumulation_steps}: each worker needs a line in each accumulation step"
            )
        if self.freeze_convolutions and self.init_from is None:
            raise UserError("--freeze-convolutions needs --init-from: random convolutions must be trained")
        if self.num_folds == 1 and self.fold is not None:
            raise UserError(f"--fold {self.fold} needs --num-folds of 2 or more")
        if self.num_folds > 1 and self.fold not in range(self.num_folds):
            problem = "is missing" if self.fold is None else f"{self.fold} is not one of them"
            raise UserError(f"--num-folds {self.num_folds} has the folds 0 to {self.num_folds - 1}: --fold {problem}")

    @property
    def worker_range(self) -> tuple[int, int]:
        """Minimum and maximum number of workers."""
        return self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)

    def recipe(self) -> dict[str, Any]:
        """Returns the settings that determine the weights; a run resumes only if they are unchanged."""
        excluded = {"data", "out", "num_workers", "workers", "wandb_project"}
        excluded |= {"stream", "checkpoint_minutes", "keep", "max_failures"}
        excluded |= {"init_from"}  # identified by its weights, not by its path
        excluded |= {"label_list", "label_column"}  # only for the decoder, which every run fits again at its end
        return {name: value for name, value in asdict(self).items() if name not in excluded}
