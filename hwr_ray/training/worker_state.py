"""The state of one training worker, built from scratch or from a checkpoint."""

from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.collective
import ray.train.torch
import torch
from torch import nn

from hwr_ray.cluster.resources import per_node, threads_among
from hwr_ray.data.dataset import PreparedSets
from hwr_ray.data.selection import Teacher
from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.files.ownership import OwnershipToken
from hwr_ray.model.sync_batchnorm import synchronized
from hwr_ray.recognition.bundle import load_bundle, new_model
from hwr_ray.text.codec import Codec
from hwr_ray.training.checkpoint_trigger import CheckpointTrigger
from hwr_ray.training.checkpoints import CHECKPOINTS, Background, Checkpoints, check_fresh
from hwr_ray.training.dataloader import Lines, ValidationLines, WorkerShard, training_lines
from hwr_ray.training.settings import TrainSettings
from hwr_ray.training.step import TrainState, new_ema
from hwr_ray.training.warm_start import freeze_convolutions, parameters_to_learn, start_from


@dataclass
class WorkerState:
    """Everything that the training loop of one worker uses."""

    settings: TrainSettings
    prepared: PreparedSets
    out: str
    origin: dict[str, Any]
    """Digest of the bundle that the run started from; empty if it started from random weights."""
    owner: OwnershipToken | None
    codec: Codec
    shard: WorkerShard
    device: torch.device
    state: TrainState
    parallel: nn.Module
    """The model, wrapped to average the gradients of all workers."""
    lines: Lines
    validation_lines: ValidationLines
    teacher: Teacher | None
    trigger: CheckpointTrigger
    checkpoints: Checkpoints
    background: Background

    @property
    def is_first(self) -> bool:
        return self.shard.rank == 0

    @property
    def lines_done(self) -> int:
        """Training lines processed so far; each counts once per epoch."""
        return self.state.step * self.settings.batch_size


def begin(config: dict[str, Any]) -> WorkerState:
    """Builds the model, loads the lines and restores the last intact checkpoint, if there is one. All workers call it.

    Raises UserError if this node does not see the run's folder, or if the run has epochs but no intact checkpoint.
    Raises TakenOverError, on all workers, if another process writes the folder now.
    """
    settings: TrainSettings = config["settings"]
    prepared, out = PreparedSets(config["data"]), config["out"]
    if not storage.is_file(config["visibility_marker"]):
        raise UserError(f"a node does not see {out}: choose an --out on storage that all nodes share")
    if config["owner"]:
        config["owner"].check()
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    shard = WorkerShard(context.get_world_rank(), context.get_world_size())
    # Ray Train fills one node after the other with the workers of a run. The runs of a sweep are spread over all nodes.
    torch.set_num_threads(threads_among(context.get_local_world_size() * per_node(config["runs_at_once"])))
    checkpoints = Checkpoints(storage.join(out, CHECKPOINTS))
    checkpoint = checkpoints.newest() if shard.rank == 0 else None
    checkpoint = ray.train.collective.broadcast_from_rank_zero(checkpoint)
    if not checkpoint:
        check_fresh(out)
    codec = Codec(prepared.charset)
    state = new_state(settings, prepared, codec, device, is_fresh=checkpoint is None)
    if shard.world_size > 1:
        synchronized(state.model)
    if checkpoint:
        state.load(checkpoints.read(checkpoint))
    if shard.rank == 0:
        checkpoints.drop_after(checkpoint)
    parallel = ray.train.torch.prepare_model(state.model)
    if shard.world_size > 1:  # synchronized batch statistics are already equal on all workers
        parallel.broadcast_buffers = False  # type: ignore[assignment]
    num_lines, at_once = config["num_train_lines"], config["runs_at_once"]
    worker = WorkerState(
        settings=settings,
        prepared=prepared,
        out=out,
        origin=config["origin"],
        owner=config["owner"],
        codec=codec,
        shard=shard,
        device=device,
        state=state,
        parallel=parallel,
        lines=training_lines(
            prepared,
            settings,
            shard,
            device,
            num_lines=num_lines,
            selection=config["selection"],
            runs_at_once=at_once,
            may_stream=config["may_stream"],
        ),
        validation_lines=ValidationLines(prepared, shard),
        teacher=config["selection"].teacher,
        trigger=CheckpointTrigger(shard, device, config["channel"], minutes=settings.checkpoint_minutes),
        checkpoints=checkpoints,
        background=Background(),
    )
    if worker.is_first and checkpoint:
        position = f"epoch {len(state.history) + 1}, after {state.epoch_step} of {worker.lines.steps} steps"
        worker.trigger.send({"text": f"resuming from checkpoint {checkpoint}: {position}"})
    return worker


def new_state(
    settings: TrainSettings, prepared: PreparedSets, codec: Codec, device: torch.device, *, is_fresh: bool
) -> TrainState:
    """Returns a new model with its average and optimizer.

    The weights come from the settings' seed or, if `is_fresh`, from the bundle `init_from` of the settings, if any.
    """
    torch.manual_seed(settings.seed)
    model = new_model(settings.model, codec, prepared.canvas)
    if settings.init_from and is_fresh:
        start_from(model, codec, load_bundle(settings.init_from))
    model = model.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = new_ema(model, settings.ema_decay)
    if settings.freeze_convolutions:
        freeze_convolutions(model)
    optimizer = torch.optim.AdamW(
        parameters_to_learn(model), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    return TrainState(model, ema, optimizer)
