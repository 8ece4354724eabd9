"""A sweep: Ray Tune over many training runs, each through the same `fit` as a single one."""

import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import ray
from ray.tune.schedulers import FIFOScheduler

from hwr_ray.cluster.connection import check_shared, connect
from hwr_ray.cluster.resources import Needs, WorkerSettings, preflight, room_for
from hwr_ray.cluster.tracking import check_key
from hwr_ray.data.dataset import Prepared
from hwr_ray.data.label_list import language_model_texts
from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.files.ownership import OwnershipToken
from hwr_ray.images.arrow import images_of
from hwr_ray.recognition.bundle import load_bundle, save_bundle
from hwr_ray.training.settings import TrainSettings
from hwr_ray.training.train import INGEST_CPUS, check_feasible, fit_decoder_remotely, open_run
from hwr_ray.tuning.cost import throughput
from hwr_ray.tuning.pareto import choose, parse_choice
from hwr_ray.tuning.report import hand_set_trial, spread, write_sweep_report
from hwr_ray.tuning.search_space import Search, corners, settings_of, space_of
from hwr_ray.tuning.sweep import TRIAL_CPUS, Sweep, asha_scheduler
from hwr_ray.tuning.trials import Ledger, Trial

log = logging.getLogger(__name__)

SPEED_LINES = 256
"""Validation lines that a trial's model reads to measure its speed."""


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    data: str
    """A prepared data set (jobs/prepare.py)."""
    out: str
    """Folder or URI of the sweep. The same command again goes on with it, as does one with more --trials."""
    space: tuple[str, ...] = ()
    """Training settings to vary beside shape, scale, gru_size, learning_rate and dropout, or other values for these, as
    name=VALUE,VALUE or name=LOW..HIGH, with :log for a logarithmic scale or :STEP of whole numbers."""
    search: Literal["tpe", "random"] = "tpe"
    """Optuna's tree-structured Parzen estimator for CER and multiply-adds together, or chance."""
    trials: int = 20
    """Points of the space to try, the hand-set recipe first where it lies in the space."""
    time_budget: float | None = None
    """Minutes after which trials are broken off; the same command goes on with them."""
    epochs: int = 12
    """Of each trial."""
    asha: bool = True
    """Stop trials whose CER is in the worse half at the same epoch: after --grace-epochs, twice as many, and so on."""
    grace_epochs: int | None = None
    """By default a quarter of the epochs."""
    choose: str = "best"
    """Which trial is SWEEP/best: the one with the lowest CER (best), where the front bends (knee), or the one with the
    lowest CER for at most so many million multiply-adds a line (budget=NUMBER)."""
    repeat: int = 0
    """Other seeds to train the chosen settings and the hand-set recipe with, to measure the noise of seeds."""
    retry_failed: bool = False
    """Go on with the trials that failed, too, as after nodes or memory were lost."""
    seed: int = 0
    """Of the search and of each trial."""
    trials_at_once: int | None = None
    """Trials to run at the same time, for which --wait-minutes waits; by default as many as the cluster holds."""
    num_workers: int = 1
    """Processes that train a trial together (DDP)."""
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    wandb_project: str | None = None
    """Follow each trial in Weights & Biases, in a group of the sweep."""

    def __post_init__(self) -> None:
        for name in ("trials", "time_budget", "grace_epochs", "trials_at_once"):
            if (given := getattr(self, name)) is not None and given <= 0:
                raise UserError(f"--{name.replace('_', '-')} must be positive, not {given}")
        if self.repeat < 0:
            raise UserError(f"--repeat must not be negative, not {self.repeat}")
        parse_choice(self.choose)
        self.recipe()  # raises what is wrong with the rest

    def training(self) -> TrainSettings:
        """What all trials have in common."""
        names = ("epochs", "seed", "num_workers", "workers", "wandb_project")
        return TrainSettings(
            data=storage.absolute(self.data), out=self.out, **{name: getattr(self, name) for name in names}
        )

    def recipe(self) -> dict[str, Any]:
        """What a sweep goes on under; more trials, another choice and more workers are welcome."""
        space = {name: str(distribution) for name, distribution in space_of(self.space).items()}
        return {"training": self.training().recipe(), "space": space, "search": self.search}

    def needs(self) -> Needs:
        """Of a trial, beside what reads its lines."""
        return self.workers.needs(self.num_workers, other_cpus=TRIAL_CPUS)


def tune(settings: TuneSettings) -> str:
    """Runs the sweep of the settings or goes on with it, and returns its path."""
    prepared, base, space = Prepared(settings.data), settings.training(), space_of(settings.space)
    for corner in corners(space):
        check_feasible(prepared, settings_of(base, corner), prepared.num_lines("train"))
    texts = language_model_texts(prepared)
    check_key(settings.wandb_project)
    out = storage.absolute(settings.out)
    # connect passes it on, and wandb reads it
    os.environ.setdefault("WANDB_RUN_GROUP", f"sweep-{sha256(out.encode()).hexdigest()[:12]}")
    connect(with_dashboard=True, show_workers=False)
    at_once = trials_at_once(settings)
    sweep_id = open_run(out, {**settings.recipe(), "data": prepared.metadata["content_hash"]})
    check_shared(storage.join(out, "recipe.json"), prepared.path)
    owner, deadline = OwnershipToken.take(out), time.monotonic() + 60 * (settings.time_budget or math.inf)

    def sweep_in(name: str, run_id: str) -> Sweep:
        sweep = Sweep(base, prepared, storage.join(out, name), f"{sweep_id}-{run_id}", at_once, owner)
        if settings.retry_failed:
            sweep.ledger.reopen_failed()
        return sweep

    sweep = sweep_in("trials", "trial")
    ledger = sweep.ledger
    if ledger.trials:
        over = len(ledger.trials) - len(ledger.in_state("unfinished"))
        log.info("going on: %d trials are over, %d were broken off", over, len(ledger.trials) - over)
    search = Search(space, settings.search, ledger, num_trials=settings.trials, seed=settings.seed, base=base)
    scheduler = asha_scheduler(settings.epochs, settings.grace_epochs, ledger) if settings.asha else FIFOScheduler()
    figures: dict[str, Any] = {"choose": settings.choose, "chosen": None, "decoder": None, "repeats": {}}
    best = storage.join(out, "best")
    try:
        sweep.run(search.propose, search.learn, scheduler, limit=settings.trials, deadline=deadline)
        measure_speeds(ledger, prepared)
        chosen = choose_trial(ledger, settings.choose)
        bundle = load_bundle(storage.join(ledger.path(chosen), "best"))
        came_from = {"id": sweep_id, "trial": chosen.number, "choose": settings.choose}
        save_bundle(replace(bundle, training={**bundle.training, "sweep": came_from}), best)
        log.info("decoder fitted: %s", fit_decoder_remotely(best, prepared, texts, base))
        figures |= {"chosen": chosen.number, "decoder": load_bundle(best).training["decoder"]}
        hand_set = hand_set_trial(list(ledger.trials.values()), space, base)  # whether ASHA stopped it or not
        for trial in [chosen] if hand_set in (None, chosen) else [chosen, hand_set]:
            again = sweep_in(f"repeats-{trial.number:03d}", str(trial.number))
            again.run(with_other_seeds(trial, settings.seed), limit=settings.repeat, deadline=deadline)
            figures["repeats"][trial.number] = [other.best["cer"] for other in again.ledger.in_state("finished")]
    finally:  # with no trial to choose there is a report, too
        owner.check()
        write_sweep_report(out, ledger, space, base, figures)
    log.info("trial %d is chosen (%s): CER %.2f %%", chosen.number, settings.choose, 100 * chosen.best["cer"])
    for number, cers in figures["repeats"].items():
        if other := spread(cers):
            deviation = f", standard deviation {100 * other['deviation']:.2f} %" if other["number"] > 1 else ""
            said = "trial %d with other seeds (%d): mean CER %.2f %%%s"
            log.info(said, number, other["number"], 100 * other["mean"], deviation)
    return out


def with_other_seeds(trial: Trial, seed: int) -> Callable[[int], dict[str, Any]]:
    """What to propose for the number of a repeat: the trial's values with a seed after its own."""
    first = trial.values.get("seed", seed) + 1
    return lambda number: {**trial.values, "seed": first + number}


def trials_at_once(settings: TuneSettings) -> int:
    """Trials to run at the same time. Raises UserError where the cluster holds none, or fewer than are asked for."""
    needs, wanted = settings.needs(), settings.trials_at_once or 1
    preflight(
        replace(needs, num_workers=wanted * needs.num_workers, other_cpus=wanted * TRIAL_CPUS + INGEST_CPUS),
        wait_minutes=settings.workers.wait_minutes,
    )
    cpus = needs.other_cpus + needs.num_workers * needs.cpus_per_worker
    cluster = ray.cluster_resources()
    have = f"{cluster.get('CPU', 0):g} CPUs and {cluster.get('GPU', 0):g} GPUs"
    said = f"a trial holds {cpus:g} CPUs{f' and {needs.num_workers} GPUs' if settings.workers.use_gpu else ''}"
    said += f", and reading its lines takes {INGEST_CPUS:g} CPU for a while"
    at_once = room_for(needs)
    if at_once < wanted:
        number = at_once or "none"
        raise UserError(f"{said}: the cluster's {have} hold {number}; lower --num-workers or --cpus-per-worker")
    at_once = settings.trials_at_once or at_once
    log.info("%d trials at a time: %s, of %s", at_once, said, have)
    return at_once


def measure_speeds(ledger: Ledger, prepared: Prepared) -> None:
    """Measures how fast the finished trials' models read, one after the other on an otherwise idle cluster."""
    waiting = [trial for trial in ledger.in_state("finished") if trial.throughput is None]
    if not waiting:
        return
    ids = sorted(prepared.table("validation", ["id"])["id"].to_pylist())[:SPEED_LINES]
    images: np.ndarray = images_of(prepared.table("validation", ["image"], ids=ids), prepared.canvas)
    measure: Any = ray.remote(num_cpus=1)(throughput)
    for trial in waiting:
        trial.throughput = ray.get(measure.remote(storage.join(ledger.path(trial), "best"), images))
        ledger.save(trial)


def choose_trial(ledger: Ledger, choice: str) -> Trial:
    """The chosen one of the trials that were trained to their end. Raises UserError where there is none."""
    finished = ledger.in_state("finished")
    if not finished:
        failed = ledger.in_state("failed")
        first = f"; the first that failed: {failed[0].reason}" if failed else ""
        raise UserError(f"none of {len(ledger.trials)} trials was trained to its end, so none can be chosen{first}")
    points = [(trial.multiply_adds / 1e6, trial.best["cer"]) for trial in finished]
    return finished[choose(points, parse_choice(choice))]
