"""The `tune` job: runs Ray Tune over many training runs, each with the same `fit` as a single run."""

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
from hwr_ray.data.dataset import PreparedSets
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
"""Validation lines for measuring the throughput of a trial's model."""


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    data: tuple[str, ...]
    """Prepared data set (output of jobs/prepare.py), or several with the same canvas."""
    out: str
    """Folder or URI of the sweep. The same command resumes it; --trials may be increased."""
    space: tuple[str, ...] = ()
    """Settings to add to or replace in the default space (shape, scale, gru_size, learning_rate, dropout). Write
    name=VALUE,VALUE or name=LOW..HIGH; append :log (logarithmic) or :STEP (integers). One VALUE fixes the setting."""
    search: Literal["tpe", "random"] = "tpe"
    """`tpe`: Optuna's tree-structured Parzen estimator, minimizing CER and multiply-adds; `random`: random search."""
    trials: int = 20
    """Number of trials. The first uses the default settings of train, if the space contains them."""
    time_budget: float | None = None
    """Minutes after which unfinished trials are interrupted; the same command resumes them. By default unlimited."""
    epochs: int = 12
    """Number of epochs per trial."""
    asha: bool = True
    """Stop a trial whose CER is in the worse half of the trials at the same epoch. This is checked after
    --grace-epochs, twice as many, four times as many, and so on."""
    grace_epochs: int | None = None
    """Minimum number of epochs before ASHA may stop a trial; by default a quarter of --epochs."""
    choose: str = "best"
    """Trial whose bundle is saved as OUT/best: `best` (lowest CER), `knee` (knee point of the Pareto front) or
    budget=NUMBER (lowest CER with at most NUMBER million multiply-adds per line)."""
    repeat: int = 0
    """Number of extra seeds for training the chosen and the default settings, to measure variation between seeds."""
    retry_failed: bool = False
    """Resume failed trials too, for example after a node was lost or memory ran out."""
    seed: int = 0
    """Random seed of the search and of each trial."""
    trials_at_once: int | None = None
    """Number of concurrent trials, by default as many as fit. With --wait-minutes the job waits until all fit."""
    num_workers: int = 1
    """Number of workers per trial (DDP)."""
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    wandb_project: str | None = None
    """Weights & Biases project to log the trials to, as one group."""

    def __post_init__(self) -> None:
        for name in ("trials", "time_budget", "grace_epochs", "trials_at_once"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise UserError(f"--{name.replace('_', '-')} must be positive, not {value}")
        if self.repeat < 0:
            raise UserError(f"--repeat must not be negative, not {self.repeat}")
        parse_choice(self.choose)
        self.recipe()  # raises UserError for any other invalid setting

    def training(self) -> TrainSettings:
        """Returns the training settings that all trials share."""
        names = ("epochs", "seed", "num_workers", "workers", "wandb_project")
        return TrainSettings(data=self.data, out=self.out, **{name: getattr(self, name) for name in names})

    def recipe(self) -> dict[str, Any]:
        """Returns the settings that must not change when a sweep resumes; trials, choice and workers may."""
        space = {name: str(distribution) for name, distribution in space_of(self.space).items()}
        return {"training": self.training().recipe(), "space": space, "search": self.search}

    def needs(self) -> Needs:
        """Returns the resources of a trial, without the CPUs that read its lines."""
        return self.workers.needs(self.num_workers, other_cpus=TRIAL_CPUS)


def tune(settings: TuneSettings) -> str:
    """Starts or resumes the sweep of the settings and returns its path."""
    prepared, base, space = PreparedSets(settings.data), settings.training(), space_of(settings.space)
    for corner in corners(space):
        check_feasible(prepared, settings_of(base, corner), prepared.require_lines("train"))
    texts = language_model_texts(prepared)
    check_key(settings.wandb_project)
    out = storage.absolute(settings.out)
    # `connect` passes the variable to the workers, where wandb reads it.
    os.environ.setdefault("WANDB_RUN_GROUP", f"sweep-{sha256(out.encode()).hexdigest()[:12]}")
    connect(with_dashboard=True, show_workers=False)
    at_once = trials_at_once(settings)
    sweep_id = open_run(out, {**settings.recipe(), "data": prepared.content_hash})
    check_shared(storage.join(out, "recipe.json"), *prepared.paths)
    owner, deadline = OwnershipToken.take(out), time.monotonic() + 60 * (settings.time_budget or math.inf)

    def sweep_in(name: str, run_id: str) -> Sweep:
        sweep = Sweep(base, prepared, storage.join(out, name), f"{sweep_id}-{run_id}", at_once, owner)
        if settings.retry_failed:
            sweep.ledger.reopen_failed()
        return sweep

    sweep = sweep_in("trials", "trial")
    ledger = sweep.ledger
    if ledger.trials:
        unfinished = len(ledger.in_state("unfinished"))
        log.info("resuming: %d trials have ended, %d are unfinished", len(ledger.trials) - unfinished, unfinished)
    search = Search(space, settings.search, ledger, num_trials=settings.trials, seed=settings.seed, base=base)
    scheduler = asha_scheduler(settings.epochs, settings.grace_epochs, ledger) if settings.asha else FIFOScheduler()
    figures: dict[str, Any] = {"choose": settings.choose, "chosen": None, "decoder": None, "repeats": {}}
    best = storage.join(out, "best")
    try:
        sweep.run(search.propose, search.learn, scheduler, limit=settings.trials, deadline=deadline)
        measure_speeds(ledger, prepared)
        chosen = choose_trial(ledger, settings.choose)
        bundle = load_bundle(storage.join(ledger.path(chosen), "best"))
        provenance = {"id": sweep_id, "trial": chosen.number, "choose": settings.choose}
        save_bundle(replace(bundle, training={**bundle.training, "sweep": provenance}), best)
        log.info("decoder fitted: %s", fit_decoder_remotely(best, prepared, texts, base))
        figures |= {"chosen": chosen.number, "decoder": load_bundle(best).training["decoder"]}
        hand_set = hand_set_trial(list(ledger.trials.values()), space, base)  # even if ASHA stopped it
        for trial in [chosen] if hand_set in (None, chosen) else [chosen, hand_set]:
            repeats = sweep_in(f"repeats-{trial.number:03d}", str(trial.number))
            repeats.run(with_other_seeds(trial, settings.seed), limit=settings.repeat, deadline=deadline)
            figures["repeats"][trial.number] = [other.best["cer"] for other in repeats.ledger.in_state("finished")]
    finally:  # writes a report even if no trial can be chosen
        owner.check()
        write_sweep_report(out, ledger, space, base, figures)
    log.info("chose trial %d (%s): CER %.2f %%", chosen.number, settings.choose, 100 * chosen.best["cer"])
    for number, cers in figures["repeats"].items():
        if other := spread(cers):
            deviation = f", standard deviation {100 * other['deviation']:.2f} %" if other["number"] > 1 else ""
            message = "trial %d with other seeds (%d): mean CER %.2f %%%s"
            log.info(message, number, other["number"], 100 * other["mean"], deviation)
    return out


def with_other_seeds(trial: Trial, seed: int) -> Callable[[int], dict[str, Any]]:
    """Returns a function from the number of a repeat to its values: those of the trial, with another seed."""
    first = trial.values.get("seed", seed) + 1
    return lambda number: {**trial.values, "seed": first + number}


def trials_at_once(settings: TuneSettings) -> int:
    """Returns the number of trials to run at the same time. Raises UserError if the cluster holds none, or fewer than
    requested."""
    needs, wanted = settings.needs(), settings.trials_at_once or 1
    preflight(
        replace(needs, num_workers=wanted * needs.num_workers, other_cpus=wanted * TRIAL_CPUS + INGEST_CPUS),
        wait_minutes=settings.workers.wait_minutes,
    )
    cpus = needs.other_cpus + needs.num_workers * needs.cpus_per_worker
    cluster = ray.cluster_resources()
    available = f"{cluster.get('CPU', 0):g} CPUs and {cluster.get('GPU', 0):g} GPUs"
    demand = f"a trial needs {cpus:g} CPUs{f' and {needs.num_workers} GPUs' if settings.workers.use_gpu else ''}"
    demand += f", and {INGEST_CPUS:g} more CPU while it reads its lines"
    at_once = room_for(needs)
    if at_once < wanted:
        raise UserError(
            f"{demand}: the cluster has {available}, enough for {at_once or 'no'} trials; lower --trials-at-once, "
            "--num-workers or --cpus-per-worker"
        )
    at_once = settings.trials_at_once or at_once
    log.info("%d trials at a time: %s; the cluster has %s", at_once, demand, available)
    return at_once


def measure_speeds(ledger: Ledger, prepared: PreparedSets) -> None:
    """Measures the throughput of the finished trials' models, one after the other on an otherwise idle cluster."""
    unmeasured = [trial for trial in ledger.in_state("finished") if trial.throughput is None]
    if not unmeasured:
        return
    ids = sorted(prepared.table("validation", ["id"])["id"].to_pylist())[:SPEED_LINES]
    images: np.ndarray = images_of(prepared.table("validation", ["image"], ids=ids), prepared.canvas)
    measure: Any = ray.remote(num_cpus=1)(throughput)
    for trial in unmeasured:
        trial.throughput = ray.get(measure.remote(storage.join(ledger.path(trial), "best"), images))
        ledger.save(trial)


def choose_trial(ledger: Ledger, choice: str) -> Trial:
    """Returns the chosen trial among those that were trained to the end. Raises UserError if there is none."""
    finished = ledger.in_state("finished")
    if not finished:
        failed = ledger.in_state("failed")
        failure = f"; the first failed trial: {failed[0].reason}" if failed else ""
        raise UserError(f"none of {len(ledger.trials)} trials was trained to the end, so none can be chosen{failure}")
    points = [(trial.multiply_adds / 1e6, trial.best["cer"]) for trial in finished]
    return finished[choose(points, parse_choice(choice))]
