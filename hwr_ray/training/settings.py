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
    data: tuple[str, ...]
    """Prepared data set (output of jobs/prepare.py), or several with the same canvas: their characters are joined, and
    validation gives figures for all lines and for each set."""
    out: str
    """Folder or URI of the run. The same command resumes an interrupted run."""
    model: ModelSettings = field(default_factory=ModelSettings)
    epochs: int = 60
    """Maximum number of passes over the training lines; after the last of these epochs the learning rate is 0."""
    batch_size: int = 64
    """Number of lines per step, over all workers."""
    gradient_accumulation_steps: int = 1
    """Number of micro-batches into which each worker splits its share of a batch, to save memory. Batch normalization
    then uses the statistics of one micro-batch."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW (one-cycle schedule)."""
    weight_decay: float = 1e-2
    """Weight decay of AdamW."""
    ema_decay: float = 0.998
    """Decay per step of the exponential moving average of the weights; the average is validated and saved."""
    shortcut_weight: float = 0.1
    """Weight of the auxiliary CTC loss on the convolution features, in training only (Retsinas et al. 2022)."""
    augmentation: bool = True
    """Apply random distortions to the training lines."""
    patience: int = 12
    """Stop after this many epochs without a lower validation CER."""
    init_from: str | None = None
    """Bundle to start from, or `shipped`. The run uses its architecture (except --dropout); the prepared lines must
    have its canvas height. Characters missing from its charset start with random weights."""
    freeze_convolutions: bool = False
    """Keep the weights and batch statistics of the convolution layers fixed."""
    teacher: tuple[str, ...] = ()
    """Evaluations of the training lines (`evaluate --split train --num-best 8`), one for each data set. In each epoch,
    some lines take their text from the candidates of that model, or of a vote, instead of from the label."""
    teacher_weight: float = 0.5
    """Probability, 0 to 1, that a line takes its text from --teacher."""
    num_folds: int = 1
    """Number of folds to split the training lines into, by a hash of their ids."""
    fold: int | None = None
    """Fold to exclude from training, from 0 to --num-folds minus 1; used by `evaluate --label-errors`."""
    label_errors: str | None = None
    """File label_errors.parquet of `evaluate --label-errors`. Of the training lines whose label it calls wrong, those
    with a sure prediction get it as their text; the others are left out."""
    seed: int = 0
    """Random seed of the initial weights, the order of lines, augmentation and dropout."""
    num_workers: Workers = 1
    """Number of workers (DDP). MIN:MAX uses as many as the cluster has room for and adapts when nodes leave or join."""
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    stream: bool = False
    """Stream the training lines through Ray Data in every epoch, even if they fit in memory."""
    checkpoint_minutes: float = 2.0
    """Minutes between checkpoints within an epoch. The run also saves one at the end of each epoch, when it is stopped,
    and every 15 s while Ray reports that a node will be removed."""
    max_failures: int = 3
    """Number of times the run resumes automatically after losing workers. Increase it for spot instances that are
    terminated without notice."""
    keep: int = 2
    """Number of newest checkpoints to keep."""
    label_list: str | None = None
    """CSV file (optionally .gz) of texts for the language model, useful if you have more texts than labelled images; by
    default the training labels."""
    label_column: str = "IDENTITY"
    """Column of --label-list that contains the texts."""
    wandb_project: str | None = None
    """Weights & Biases project for logging; the key comes from WANDB_API_KEY. WANDB_MODE=offline is supported."""

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
        if not 0 <= self.teacher_weight <= 1:
            raise UserError(f"--teacher-weight must be from 0 to 1, not {self.teacher_weight}")
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
        excluded |= {"init_from", "label_errors", "teacher"}  # identified by their content, not by their path
        excluded |= {"label_list", "label_column"}  # only for the decoder, which every run fits again at its end
        excluded |= set() if self.teacher else {"teacher_weight"}
        return {name: value for name, value in asdict(self).items() if name not in excluded}
