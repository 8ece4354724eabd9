"""What one training worker does: epochs of steps and a validation, from lines to the best bundle."""

import copy
import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import ray
import ray.train
import ray.train.collective
import ray.train.torch
import ray.util
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hwr_ray import storage
from hwr_ray.augmentation import augment
from hwr_ray.bundle import Bundle, load_bundle, new_model, save_bundle
from hwr_ray.checkpoints import Background, Checkpoints
from hwr_ray.cluster import threads_per_worker
from hwr_ray.codec import Codec
from hwr_ray.fine_tuning import freeze_convolutions, parameters_to_learn, start_from
from hwr_ray.ingest import READ_BATCH, Batch, Lines, Share, training_lines
from hwr_ray.metrics import Counts, count
from hwr_ray.model import to_ink
from hwr_ray.optimization import TrainState, one_cycle, train_step, update_average
from hwr_ray.prepared import Prepared, images_of
from hwr_ray.provenance import versions
from hwr_ray.recognizer import read_batch
from hwr_ray.synced_norm import synchronized
from hwr_ray.tracking import Sample, Tracker
from hwr_ray.train_settings import TrainSettings

METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"
NUM_SAMPLES = 32
"""Validation lines in wandb's table."""
LOOK_SECONDS = 2.0
"""After which the workers look up from their work: whether a node will go, whether to stop, whether to save."""


@dataclass
class Run:
    """What a worker works on."""

    settings: TrainSettings
    prepared: Prepared
    out: str
    codec: Codec
    share: Share
    device: torch.device
    state: TrainState
    parallel: nn.Module
    """The model, wrapped for the gradients of all workers."""
    lines: Lines
    steps_per_epoch: int
    checkpoints: Checkpoints
    background: Background
    board: Any = None

    @property
    def is_first(self) -> bool:
        return self.share.rank == 0

    def tell(self, what: dict[str, Any]) -> bool:
        """Tells the driver, if it follows; returns whether it asks the run to stop."""
        return self.board is not None and ray.get(self.board.tell.remote(what))


def train_loop_per_worker(config: dict[str, Any]) -> dict[str, str]:
    """Trains until the last epoch, or until patience runs out, from the last whole checkpoint if there is one.

    Every epoch ends with a validation on all workers, a checkpoint, a line on the console and one in metrics.jsonl.
    The best average of the weights so far is the bundle OUT/best. Returns how it ended, by `ended`: `finished`,
    `stopped` (by its user), or `diverged`, which another try would not mend, with a `reason`.
    """
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train logs a long line a report; the epochs' own tell more
    settings: TrainSettings = config["settings"]
    run = begin(config)
    placement = ray.util.get_current_placement_group()
    tracker = Tracker(
        project=settings.wandb_project if run.is_first else None,
        out=run.out,
        run_id=config["run_id"],
        config=asdict(settings),
    )
    state, lookout, ended = run.state, Lookout(run), {"ended": "finished"}
    while len(state.history) < settings.epochs and state.epochs_since_best() < settings.patience:
        epoch = len(state.history) + 1
        try:
            trained = train_epoch(run, lookout, epoch)
        except FloatingPointError as error:
            ended = {"ended": "diverged", "reason": str(error)}
            break
        if trained is None:
            ended = {"ended": "stopped"}
            break
        start = time.monotonic()
        counts, samples = validate(run)
        trained["validation_seconds"] = time.monotonic() - start
        row = {"epoch": epoch, **trained, "cer": counts.cer, "exact_match": counts.exact_match, **asdict(counts)}
        state.history.append(row)
        is_best = state.epochs_since_best() == 0
        if run.is_first:
            publish(run)
            lookout.saved = time.monotonic()
            run.tell({"text": describe(row, settings.epochs, is_best=is_best)})
            tracker.log(row)
            if is_best:
                tracker.log_samples(samples, epoch=epoch)
        # A sweep gives the placement group back.
        ray.train.report({**row, "placement_group": placement.id.hex() if placement else None})
    run.background.wait()
    tracker.finish()
    return ended


def begin(config: dict[str, Any]) -> Run:
    """Builds the model and gets the lines; loads the last whole checkpoint, if there is one, on all workers."""
    settings: TrainSettings = config["settings"]
    prepared, out = Prepared(config["data"]), config["out"]
    torch.manual_seed(settings.seed)
    context, device = ray.train.get_context(), ray.train.torch.get_device()
    share = Share(context.get_world_rank(), context.get_world_size())
    torch.set_num_threads(threads_per_worker(share.world_size * config["runs_at_once"]))
    codec = Codec(prepared.charset)
    model = new_model(settings.model, codec, prepared.canvas)
    if settings.init_from:
        start_from(model, codec, load_bundle(settings.init_from))
    model = model.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model).eval().requires_grad_(False)
    if settings.freeze_convolutions:
        freeze_convolutions(model)
    if share.world_size > 1:
        synchronized(model)
    optimizer = torch.optim.AdamW(
        parameters_to_learn(model), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    state = TrainState(model, average, optimizer)
    checkpoints = Checkpoints(storage.join(out, CHECKPOINTS))
    name, data = ray.train.collective.broadcast_from_rank_zero(checkpoints.newest() if share.rank == 0 else None) or (
        None,
        None,
    )
    if data:
        state.load(data)
    num_lines = config["num_train_lines"]
    parallel = ray.train.torch.prepare_model(model)
    # Batch statistics are the same on all workers as they are.
    parallel.broadcast_buffers = False  # type: ignore[assignment]
    run = Run(
        settings=settings,
        prepared=prepared,
        out=out,
        codec=codec,
        share=share,
        device=device,
        state=state,
        parallel=parallel,
        lines=training_lines(prepared, settings, share, device, num_lines=num_lines),
        steps_per_epoch=num_lines // settings.batch_size,
        checkpoints=checkpoints,
        background=Background(),
        board=config.get("board"),
    )
    if run.is_first and name:
        run.tell({"text": f"going on from checkpoint {name}: epoch {len(state.history) + 1}, step {state.epoch_step}"})
        if len(read_history(out)) < len(state.history):  # stopped between the checkpoint and its publication
            publish(run)
    return run


def publish(run: Run) -> None:
    """Writes, in the background, a checkpoint, the average of the weights as the bundle OUT/best if the last epoch is
    the best, then metrics.jsonl."""
    state, settings, prepared = run.state, run.settings, run.prepared
    save = _saving(run)
    rows = "".join(json.dumps(row) + "\n" for row in state.history).encode()
    bundle = None
    if state.epochs_since_best() == 0:
        provenance = {"recipe": settings.recipe(), "data": prepared.facts["content_hash"], "versions": versions()}
        bundle = Bundle(
            model=copy.deepcopy(state.average),
            settings=settings.model,
            codec=run.codec,
            canvas=prepared.canvas,
            training={**provenance, "metrics": state.history[-1]},
        )

    def work() -> None:
        save()
        if bundle:
            save_bundle(bundle, storage.join(run.out, "best"))
        storage.write_bytes(storage.join(run.out, METRICS), rows)

    run.background.do(work)


def _saving(run: Run) -> Any:
    """What writes a checkpoint of the state as it is now, and deletes older ones."""
    data, step, best = run.state.to_bytes(), run.state.step, run.state.best_epoch().get("step")

    def save() -> None:
        run.checkpoints.save(data, step=step)
        run.checkpoints.prune(run.settings.keep, best=best)

    return save


def read_history(out: str) -> list[dict[str, Any]]:
    """The metrics of a run's epochs so far, from its metrics.jsonl."""
    path = storage.join(out, METRICS)
    lines = storage.read_bytes(path).decode().splitlines() if storage.is_file(path) else []
    return [json.loads(line) for line in lines]


def train_epoch(run: Run, lookout: "Lookout", epoch: int) -> dict[str, Any] | None:
    """The rest of a pass over the lines; returns its figures, or None where the run was asked to stop.

    Raises FloatingPointError where the loss is not finite.
    """
    state, settings = run.state, run.settings
    sums = torch.zeros(2, device=run.device)  # of the losses and the gradients' norms since the last checkpoint
    if not state.sums:
        state.sums = dict.fromkeys(("loss", "gradient_norm", "seconds", "waiting_seconds"), 0.0)
    watch = Stopwatch()
    batches = run.lines.batches(epoch, state.epoch_step)
    run.parallel.train()
    if settings.freeze_convolutions:
        freeze_convolutions(state.model)
    while batch := watch.waiting(batches):
        sums += torch.stack(step_on(run, batch, epoch))
        state.epoch_step += 1
        save, stop = lookout.look()
        if save or stop:
            add_up(run, sums, watch, epoch)
            if run.is_first:
                run.background.do(_saving(run))
                run.background.wait()
            if stop:
                return None
    add_up(run, sums, watch, epoch)
    steps, state.epoch_step = state.epoch_step, 0
    figures, state.sums = state.sums, {}
    return {
        "step": state.step,
        "loss": figures["loss"] / steps,
        "gradient_norm": figures["gradient_norm"] / steps,
        "learning_rate": state.optimizer.param_groups[0]["lr"],
        "lines_per_second": steps * settings.batch_size / figures["seconds"],
        "seconds": figures["seconds"],
        "waiting_share": figures["waiting_seconds"] / figures["seconds"],
    }


def step_on(run: Run, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
    """One step of all workers on their shares of a batch; returns this worker's part of the loss, and the norm."""
    state, settings = run.state, run.settings
    torch.manual_seed(hash((settings.seed, state.step, run.share.rank)))  # dropout's
    factor = one_cycle(state.step, settings.epochs * run.steps_per_epoch)
    for group in state.optimizer.param_groups:
        group["lr"] = settings.learning_rate * factor
    ink = to_ink(batch.images)
    if settings.augmentation:
        ink = augment(ink, batch.ids, seed=settings.seed, epoch=epoch)
    loss, norm = train_step(
        state,
        run.parallel,
        ink,
        [run.codec.encode(text) for text in batch.texts],
        shortcut_weight=settings.shortcut_weight,
        line_weight=run.share.world_size / settings.batch_size,
        accumulation=settings.accumulation,
    )
    update_average(state.average, state.model, min(settings.average_decay, (1 + state.step) / (10 + state.step)))
    return loss, norm


class Stopwatch:
    """Seconds since the last look, and those of them that were spent waiting for lines."""

    def __init__(self) -> None:
        self.start, self.waited = time.monotonic(), 0.0

    def waiting(self, batches: Any) -> Batch | None:
        """The next batch, or None after the last."""
        start = time.monotonic()
        batch = next(batches, None)
        self.waited += time.monotonic() - start
        return batch

    def lap(self) -> tuple[float, float]:
        now = time.monotonic()
        seconds, waited = now - self.start, self.waited
        self.start, self.waited = now, 0.0
        return seconds, waited


def add_up(run: Run, sums: Tensor, watch: Stopwatch, epoch: int) -> None:
    """Adds the sums of all workers and the time to the state's figures of the epoch, and sets the sums to 0.

    Raises FloatingPointError where the loss is not finite.
    """
    if run.share.world_size > 1:
        dist.all_reduce(sums)
    loss, norm = (sums / run.share.world_size).tolist()
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss of epoch {epoch} is not finite: lower --learning-rate")
    seconds, waited = watch.lap()
    for name, value in zip(run.state.sums, (loss, norm, seconds, waited), strict=True):
        run.state.sums[name] += value
    sums.zero_()


class Lookout:
    """When the workers look up from their work, all after the same step: often enough for a notice of some seconds."""

    def __init__(self, run: Run) -> None:
        self.run, self.next, self.gap = run, 1, 1  # in steps
        self.looked = self.saved = time.monotonic()
        self.is_warned = False

    def look(self) -> tuple[bool, bool]:
        """Whether to save now, and whether to stop."""
        self.next -= 1
        if self.next:
            return False, False
        run, now = self.run, time.monotonic()
        will_go = ray.train.get_preemption_info() is not None  # the same on all workers, which wait for one another
        save = stop = False
        gap = 1
        if run.is_first:
            # Ray tells of a node that goes until it is gone: one checkpoint will do.
            save = (will_go and not self.is_warned) or now - self.saved > 60 * run.settings.checkpoint_minutes
            stop = run.tell({"lines": self.gap * run.settings.batch_size})
            gap = max(1, round(LOOK_SECONDS * self.gap / max(now - self.looked, 1e-3)))
        self.is_warned = self.is_warned or will_go
        decided = torch.tensor([save, stop, gap], device=run.device)
        if run.share.world_size > 1:
            dist.broadcast(decided, 0)
        save, stop, self.gap = bool(decided[0]), bool(decided[1]), int(decided[2])
        self.next, self.looked = self.gap, now
        if save:
            self.saved = now
        return save, stop


def validate(run: Run) -> tuple[Counts, list[Sample]]:
    """Counts over all validation lines, summed over all workers, and some of this worker's lines.

    Raises RuntimeError where a line was lost on the way.
    """
    counts, samples = Counts(), list[Sample]()
    for number, table in enumerate(run.prepared.tables("validation", ["text", "image"], rows=READ_BATCH)):
        if number % run.share.world_size != run.share.rank:
            continue
        images, texts = images_of(table, run.prepared.canvas), table["text"].to_pylist()
        readings = read_batch(run.state.average, run.codec, torch.tensor(images, device=run.device))
        predictions = [reading.text for reading in readings]
        counts += count(texts, predictions)
        samples += list(zip(images, texts, predictions, strict=True))[: NUM_SAMPLES - len(samples)]
    total = torch.tensor(list(asdict(counts).values()), device=run.device)
    if run.share.world_size > 1:
        dist.all_reduce(total)
    counts = Counts(*total.tolist())
    if counts.num_lines != run.prepared.num_lines("validation"):
        raise RuntimeError(f"validated {counts.num_lines} of {run.prepared.num_lines('validation')} lines")
    return counts, samples


def describe(row: dict[str, Any], epochs: int, *, is_best: bool) -> str:
    """An epoch in one line for the console."""
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.3f}, CER {100 * row['cer']:.2f} %, "
        f"exact match {100 * row['exact_match']:.1f} % of {row['num_lines']} lines, "
        f"{row['lines_per_second']:.0f} lines/s, {row['waiting_share']:.0%} of {row['seconds']:.0f} s waiting for lines"
        + (" (best)" if is_best else "")
    )
