"""The training loop of one worker: epochs of optimizer steps, each followed by a validation and a checkpoint."""

import copy
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import ray.train
import ray.util
import torch
import torch.distributed as dist
from torch import Tensor

from hwr_ray.cluster.monitoring import show_epoch
from hwr_ray.cluster.tracking import Sample, Tracker
from hwr_ray.decoding.ctc import greedy_texts
from hwr_ray.files import storage
from hwr_ray.files.ownership import TakenOverError
from hwr_ray.images.arrow import images_of
from hwr_ray.images.augmentation import augment
from hwr_ray.model.crnn import to_ink
from hwr_ray.recognition.bundle import Bundle, save_bundle
from hwr_ray.recognition.runtime import log_probs_of
from hwr_ray.text.metrics import Counts, count
from hwr_ray.training.checkpoint_trigger import Stopwatch
from hwr_ray.training.checkpoints import METRICS, read_history
from hwr_ray.training.dataloader import Batch
from hwr_ray.training.settings import TrainSettings
from hwr_ray.training.step import dropout_seed, one_cycle, train_step
from hwr_ray.training.warm_start import freeze_convolutions
from hwr_ray.training.worker_state import WorkerState, begin
from hwr_ray.versions import versions

NUM_SAMPLES = 32
"""Validation lines in the table on Weights & Biases."""


def train_loop_per_worker(config: dict[str, Any]) -> dict[str, str]:
    """Trains until the last epoch or until patience runs out, from the last intact checkpoint if there is one.

    Every epoch ends with a validation on all workers, a checkpoint, a line on the console and a row in metrics.jsonl.
    The bundle OUT/best has the averaged weights of the best epoch. Returns `ended`: `finished`, `stopped` (by the
    user), or `diverged` or `refused`, with a `reason` that another attempt would not fix.
    """
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train logs a long line for each report; this loop logs its own
    settings: TrainSettings = config["settings"]
    try:
        worker = begin(config)
    except TakenOverError as error:  # raised on all workers, so none waits for another
        return {"ended": "refused", "reason": str(error)}
    placement = ray.util.get_current_placement_group()
    tracker = Tracker(
        project=settings.wandb_project if worker.is_first else None,
        out=worker.out,
        run_id=config["run_id"],
        config=asdict(settings),
    )
    state, ended = worker.state, {"ended": "finished"}
    if worker.is_first and len(read_history(worker.out)) < len(state.history):
        publish(worker)  # the run was interrupted between the checkpoint and its publication
    while len(state.history) < settings.epochs and state.epochs_since_best() < settings.patience:
        epoch = len(state.history) + 1
        try:
            trained = train_epoch(worker, epoch)
        except FloatingPointError as error:
            ended = {"ended": "diverged", "reason": str(error)}
            break
        if trained is None:
            ended = {"ended": "stopped"}
            break
        start = time.monotonic()
        of_sets, samples = validate(worker)
        trained["validation_seconds"] = time.monotonic() - start
        row = {"epoch": epoch, **trained, **validation_figures(of_sets, worker.prepared.names)}
        state.history.append(row)
        is_best = state.epochs_since_best() == 0
        if worker.is_first:
            publish(worker)
            worker.trigger.send({"text": describe(row, settings.epochs, is_best=is_best)})
            tracker.log(row)
            show_epoch(worker.out, row)
            if is_best:
                tracker.log_samples(samples, epoch=epoch)
        # A sweep removes the placement group itself.
        ray.train.report({**row, "placement_group": placement.id.hex() if placement else None})
    worker.background.wait()
    tracker.finish()
    return ended


def publish(worker: WorkerState) -> None:
    """Writes in the background: a checkpoint, then the averaged weights as the bundle OUT/best if the last epoch is
    the best, then metrics.jsonl."""
    state, settings, prepared = worker.state, worker.settings, worker.prepared
    save = _saving(worker)
    rows = "".join(json.dumps(row) + "\n" for row in state.history).encode()
    bundle = None
    if state.epochs_since_best() == 0:
        provenance = {
            "recipe": {**settings.recipe(), **worker.origin},
            "data": prepared.content_hash,
            "warnings": prepared.warning_shares,
            "invert": prepared.invert,
        }
        bundle = Bundle(
            model=copy.deepcopy(state.averaged_model),
            settings=settings.model,
            codec=worker.codec,
            canvas=prepared.canvas,
            training={**provenance, "versions": versions(), "metrics": state.history[-1]},
        )

    def work() -> None:
        save()
        if bundle:
            save_bundle(bundle, storage.join(worker.out, "best"))
        storage.write_bytes(storage.join(worker.out, METRICS), rows)

    worker.trigger.saved = time.monotonic()
    worker.background.do(work)


def _saving(worker: WorkerState) -> Callable[[], None]:
    """Returns a function that writes a checkpoint of the current state and deletes older ones."""
    data, step = worker.state.to_bytes(), worker.state.step

    def save() -> None:
        if worker.owner:
            worker.owner.check()
        worker.checkpoints.save(data, step=step)
        worker.checkpoints.prune(worker.settings.keep)

    return save


def train_epoch(worker: WorkerState, epoch: int) -> dict[str, Any] | None:
    """Trains the remaining steps of an epoch; returns its metrics, or None if the run was asked to stop.

    Raises FloatingPointError if the loss or the gradient is not finite.
    """
    state, settings = worker.state, worker.settings
    # Sums of the losses and gradient norms since the last checkpoint, in float64: otherwise the last digits of an
    # epoch's metrics would depend on where its checkpoints were.
    sums = torch.zeros(2, dtype=torch.float64, device=worker.device)
    if not state.sums:
        state.sums = dict.fromkeys(("loss", "gradient_norm", "seconds", "waiting_seconds"), 0.0)
    watch = Stopwatch()
    worker.trigger.begin_epoch()
    batches = worker.lines.batches(epoch, state.epoch_step)
    worker.parallel.train()
    if settings.freeze_convolutions:
        freeze_convolutions(state.model)
    while batch := watch.waiting(batches):
        sums += torch.stack(step_on(worker, batch, epoch))
        state.epoch_step += 1
        save, stop = worker.trigger.poll(worker.lines_done)
        if stop or (save and state.epoch_step < worker.lines.steps):  # the end of the epoch has its own
            add_up(worker, sums, watch, epoch)
            if worker.is_first:
                worker.background.do(_saving(worker))
        if stop:
            worker.background.wait()
            return None
    add_up(worker, sums, watch, epoch)
    steps, state.epoch_step = state.epoch_step, 0
    totals, state.sums = state.sums, {}
    return {
        "step": state.step,
        "loss": totals["loss"] / steps,
        "gradient_norm": totals["gradient_norm"] / steps,
        "learning_rate": state.optimizer.param_groups[0]["lr"],
        "lines_per_second": steps * settings.batch_size / totals["seconds"],
        "seconds": totals["seconds"],
        "waiting_share": totals["waiting_seconds"] / totals["seconds"],
    }


def step_on(worker: WorkerState, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
    """Takes one step on this worker's share of a batch. Returns its part of the batch's loss, times the number of
    workers, and the norm of the gradient."""
    state, settings = worker.state, worker.settings
    torch.manual_seed(dropout_seed(settings.seed, state.step, worker.shard.rank))
    factor = one_cycle(state.step, settings.epochs * worker.lines.steps)
    for group in state.optimizer.param_groups:
        group["lr"] = settings.learning_rate * factor
    ink = to_ink(batch.images)
    if settings.augmentation:
        ink = augment(ink, batch.ids, seed=settings.seed, epoch=epoch)
    texts = batch.texts
    if worker.teacher:
        texts = worker.teacher.draw(batch.ids, batch.texts, seed=settings.seed, epoch=epoch)
    loss, norm = train_step(
        state,
        worker.parallel,
        ink,
        [worker.codec.encode(text) for text in texts],
        shortcut_weight=settings.shortcut_weight,
        line_weight=worker.shard.world_size / settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
    )
    state.ema.update_parameters(state.model)
    return loss, norm


def add_up(worker: WorkerState, sums: Tensor, watch: Stopwatch, epoch: int) -> None:
    """Adds the sums of all workers and the elapsed time to the state's sums of the epoch, and resets `sums` to 0.

    Raises FloatingPointError if the loss or the gradient is not finite.
    """
    if worker.shard.world_size > 1:
        dist.all_reduce(sums)
    loss, norm = (sums / worker.shard.world_size).tolist()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise FloatingPointError(f"the loss or the gradient of epoch {epoch} is not finite")
    seconds, waited = watch.lap()
    for name, value in zip(worker.state.sums, (loss, norm, seconds, waited), strict=True):
        worker.state.sums[name] += value
    sums.zero_()


def validate(worker: WorkerState) -> tuple[list[Counts], list[Sample]]:
    """Returns the counts over the validation lines of each data set, summed over all workers, and some of this worker's
    lines.

    Raises RuntimeError if the counts do not cover every line.
    """
    of_sets, samples = [Counts() for _ in worker.prepared.sets], list[Sample]()
    for number, table in worker.validation_lines:
        images, texts = images_of(table, worker.prepared.canvas), table["text"].to_pylist()
        with torch.inference_mode():
            log_probs = log_probs_of(worker.state.averaged_model, torch.tensor(images, device=worker.device))
        predictions = greedy_texts(log_probs, worker.codec)
        of_sets[number] += count(texts, predictions)
        samples += list(zip(images, texts, predictions, strict=True))[: NUM_SAMPLES - len(samples)]
    summed = torch.tensor([list(asdict(counts).values()) for counts in of_sets], device=worker.device)
    if worker.shard.world_size > 1:
        dist.all_reduce(summed)
    of_sets = [Counts(*row) for row in summed.tolist()]
    validated, expected = sum(counts.num_lines for counts in of_sets), worker.prepared.require_lines("validation")
    if validated != expected:
        raise RuntimeError(f"validated {validated} of {expected} lines")
    return of_sets, samples


def validation_figures(of_sets: list[Counts], names: list[str]) -> dict[str, Any]:
    """Returns the metrics over the validation lines of all data sets and, of several, `sets` with those of each."""

    def figures(counts: Counts) -> dict[str, Any]:
        return {"cer": counts.cer, "exact_match": counts.exact_match, **asdict(counts)}

    each = {name: figures(counts) for name, counts in zip(names, of_sets, strict=True) if counts.num_lines}
    return figures(sum(of_sets, Counts())) | ({"sets": each} if len(of_sets) > 1 else {})


def describe(row: dict[str, Any], epochs: int, *, is_best: bool) -> str:
    """Returns an epoch's metrics as one line for the console."""
    each = ", ".join(f"{name} {100 * figures['cer']:.2f} %" for name, figures in row.get("sets", {}).items())
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.3f}, CER {100 * row['cer']:.2f} %"
        f"{f' ({each})' if each else ''}, "
        f"exact match {100 * row['exact_match']:.1f} % of {row['num_lines']} lines, "
        f"learning rate {row['learning_rate']:.1e}, gradient {row['gradient_norm']:.2f}, "
        f"{row['lines_per_second']:.0f} lines/s, {row['waiting_share']:.0%} of {row['seconds']:.0f} s waiting for lines"
        + (" (best)" if is_best else "")
    )
