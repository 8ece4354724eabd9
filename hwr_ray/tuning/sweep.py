"""Trials under Ray Tune: each a training run in a folder of its own, all of them in the books."""

import logging
import math
import os
import time
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util.placement_group import PlacementGroup, remove_placement_group

from hwr_ray.cluster.connection import configure_data
from hwr_ray.data.dataset import Prepared
from hwr_ray.files import storage
from hwr_ray.files.ownership import OwnershipToken
from hwr_ray.training.checkpoints import read_history
from hwr_ray.training.settings import TrainSettings
from hwr_ray.training.train import fit
from hwr_ray.tuning.search_space import settings_of
from hwr_ray.tuning.trials import FAILURE, FINISHED, KEPT, Ledger, Trial, read_trial, run_folder
from hwr_ray.tuning.trials_view import TrialsView

log = logging.getLogger(__name__)

TRIAL_CPUS = 0.25
"""Logical CPUs of the process that follows a trial's workers."""
REDUCTION = 2
"""ASHA goes on with one in so many trials at each rung; each rung has so many times the epochs of the one before."""
BROKEN_OFF = "broken off: the time was over"
"""The reason of a trial that the same command goes on with."""


def asha_scheduler(epochs: int, grace_epochs: int | None, ledger: Ledger) -> TrialScheduler:
    """Ray's ASHA as if it had seen the epochs of the trials that are over; none where grace leaves it no epoch.

    The last epoch has no rung: a trial that gets there ends by itself, with its best bundle written.
    """
    grace = grace_epochs or max(1, epochs // 4)
    if epochs <= grace:
        return FIFOScheduler()
    asha = _Asha(
        time_attr="epoch",
        metric="cer",
        mode="min",
        max_t=epochs - 1,
        grace_period=grace,
        reduction_factor=REDUCTION,
        stop_last_trials=False,
    )
    for trial in ledger.in_state("finished", "stopped"):
        stand_in: Any = SimpleNamespace(trial_id=f"known-{trial.number}")
        asha.on_trial_add(None, stand_in)  # type: ignore[arg-type]
        for row in trial.epochs:
            asha.on_trial_result(None, stand_in, row)
    return asha


class _Asha(ASHAScheduler):
    """Ray's, which lets a trial pass that tells again what it had told before an interruption."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        return self.CONTINUE if result.get("is_replayed") else decision


class Sweep:
    """Trials under Ray Tune, written to a ledger."""

    def __init__(
        self, base: TrainSettings, prepared: Prepared, folder: str, run_id: str, at_once: int, owner: OwnershipToken
    ) -> None:
        self.base, self.prepared, self.ledger = base, prepared, Ledger(folder, owner)
        self.run_id, self.at_once = run_id, at_once

    def run(
        self,
        propose: Callable[[int], dict[str, Any]],
        learn: Callable[[Trial], None] = lambda trial: None,
        scheduler: TrialScheduler | None = None,
        *,
        limit: int,
        deadline: float = math.inf,
    ) -> None:
        """Goes on with unfinished trials, then tries what is proposed until there are `limit` trials, or until the
        deadline on the monotonic clock, in seconds."""
        unfinished = self.ledger.in_state("unfinished")
        to_come = len(unfinished) + max(0, limit - len(self.ledger.trials))
        seconds = deadline - time.monotonic()
        if not to_come or seconds <= 0:
            return
        for trial in unfinished:
            trial.reason = None
            self.ledger.save(trial)
        at_once = min(self.at_once, to_come)
        state = storage.join(self.ledger.folder, "state")  # Ray Tune's own; nothing is read from it
        storage.delete(state)
        # Ray Tune would write files of its own for each trial, turn an interrupt into a normal end, and say that the
        # results are in its own folder.
        os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
        with TrialsView(self.ledger, self.base.epochs, limit) as view:
            record = _Record(self.ledger, learn, view, resumed={trial.number for trial in unfinished})
            ray.tune.Tuner(
                ray.tune.with_resources(self.trainable(at_once), {"CPU": TRIAL_CPUS}),
                tune_config=ray.tune.TuneConfig(
                    num_samples=to_come,
                    search_alg=_Proposals(self, propose, unfinished),
                    scheduler=scheduler,
                    max_concurrent_trials=at_once,
                    time_budget_s=None if math.isinf(seconds) else seconds,
                ),
                run_config=ray.tune.RunConfig(
                    name="state", storage_path=self.ledger.folder, callbacks=[record], verbose=0
                ),
            ).fit()
        storage.delete(state)
        broken_off = self.ledger.in_state("unfinished")
        for trial in broken_off:
            trial.reason = BROKEN_OFF
            self.ledger.save(trial)
            record.give_back(trial)
        if broken_off:
            log.info("%d trials are broken off: the same command goes on with them", len(broken_off))

    def trainable(self, at_once: int) -> Callable[[dict[str, Any]], None]:
        """The function that Ray Tune runs for each trial."""
        base, prepared, folder, run_id = self.base, self.prepared, self.ledger.folder, self.run_id
        owner = self.ledger.owner

        def run_trial(config: dict[str, Any]) -> None:
            configure_data()
            out = run_folder(folder, config["number"])
            trial = read_trial(out)
            for row in read_history(out):  # of an interrupted trial; its workers go on from their checkpoint
                ray.tune.report({**row, "is_replayed": True})
            try:
                fit(
                    settings_of(base, trial.values),
                    prepared,
                    out,
                    f"{run_id}-{trial.number}",
                    num_lines=prepared.num_lines("train"),
                    callbacks=[_Reports(out)],
                    runs_at_once=at_once,
                    owner=owner,
                    visibility_marker="trial.json",
                    has_cleaner=True,
                )
            except Exception as error:
                failures = list(getattr(error, "worker_failures", {}).values())
                cause = failures[0] if failures else getattr(error, "controller_failure", error)
                lines = str(cause).strip().splitlines() or [type(cause).__name__]
                is_traceback = any(line.startswith('  File "') for line in lines)  # as Ray passes on what workers raise
                reason = lines[-1 if is_traceback else 0]
                said = f"{reason}\n\n{traceback.format_exc()}"
                storage.write_bytes(storage.join(out, FAILURE), said.encode())
                raise
            storage.write_bytes(storage.join(out, FINISHED), b"")

        return run_trial

    def new_trial(self, values: dict[str, Any]) -> Trial:
        """A trial of those values, with the next number, written to the ledger."""
        from hwr_ray.tuning.cost import (
            size_of,  # with torch: the trials' processes, which import this module, need none
        )

        model = settings_of(self.base, values).model
        multiply_adds, num_parameters = size_of(model, self.prepared.charset, self.prepared.canvas)
        trial = Trial(
            number=max(self.ledger.trials, default=-1) + 1,
            values=values,
            conv_widths=list(model.conv_widths),
            multiply_adds=multiply_adds,
            num_parameters=num_parameters,
        )
        self.ledger.save(trial)
        return trial


class _Reports(TuneReportCallback):
    """Tells Ray Tune, from Ray Train's controller, of the epochs of the trial whose run is in a folder.

    A sweep takes away the workers of a trial that is over while the controller still lives. It would start new ones, in
    a placement group that the sweep does not know.
    """

    def __init__(self, out: str) -> None:
        super().__init__()
        self.out = out

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """What it raises ends the controller."""
        try:
            reason = read_trial(self.out).reason
        except OSError as error:  # which may pass; workers that were lost are to be started again
            log.warning("%s: %s", self.out, error)
            return
        if reason:
            raise RuntimeError(f"the trial is over, its workers are not started again: {reason}")


class _Proposals(Searcher):
    """Numbers of trials for Ray Tune: the unfinished ones, then new ones."""

    def __init__(self, sweep: Sweep, propose: Callable[[int], dict[str, Any]], unfinished: list[Trial]) -> None:
        super().__init__(metric="cer", mode="min")
        self.sweep, self.propose, self.unfinished = sweep, propose, list(unfinished)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        if self.unfinished:
            return {"number": self.unfinished.pop(0).number}
        number = max(self.sweep.ledger.trials, default=-1) + 1
        return {"number": self.sweep.new_trial(self.propose(number)).number}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        """The ledger holds all."""


class _Record(ray.tune.Callback):
    """Writes what Ray Tune tells of its trials to the ledger."""

    def __init__(self, ledger: Ledger, learn: Callable[[Trial], None], view: TrialsView, *, resumed: set[int]) -> None:
        self.ledger, self.learn, self.view, self.resumed = ledger, learn, view, resumed
        self.started: dict[int, float] = {}
        self.held: dict[int, str] = {}
        """Of each trial, Ray's id of the placement group of its workers."""

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        known = self.ledger.trials[trial.config["number"]]
        self.started[known.number], known.epochs = time.monotonic(), []
        self.view.started(known)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        known = self.ledger.trials[trial.config["number"]]
        known.epochs.append({name: result[name] for name in KEPT})
        self.view.advanced(known)
        if group := result.get("placement_group"):
            self.held[known.number] = group

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        known = self.ledger.trials[trial.config["number"]]
        if storage.is_file(storage.join(self.ledger.path(known), FINISHED)):
            known.state, last = "finished", None
        else:
            last = known.epochs[-1]["epoch"]
            known.state, known.reason = "stopped", f"ASHA: in the worse half after epoch {last}"
        # Ray Tune passes over an epoch that was made known just before an interruption, and the run's own list of them
        # may still lack the last.
        rows = {row["epoch"]: row for row in [*known.epochs, *read_history(self.ledger.path(known))]}
        epochs = sorted(epoch for epoch in rows if last is None or epoch <= last)
        known.epochs = [{name: rows[epoch][name] for name in KEPT} for epoch in epochs]
        self._close(known)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        known = self.ledger.trials[trial.config["number"]]
        told = storage.join(self.ledger.path(known), FAILURE)
        known.state, known.reason = "failed", "its process died"
        if storage.is_file(told):
            known.reason = storage.read_bytes(told).decode().splitlines()[0]
        self._close(known)

    def give_back(self, known: Trial) -> None:
        """Frees what the workers of a trial hold, and ends them, where they still do.

        Ray Train's own cleaner asks the dashboard, which may not be there, and gives up where a machine has two
        clusters.
        """
        if group := self.held.pop(known.number, None):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))

    def _close(self, known: Trial) -> None:
        if known.number in self.started and known.number not in self.resumed:  # it may have failed to start
            known.seconds = time.monotonic() - self.started[known.number]
        self.ledger.save(known)
        self.give_back(known)  # after the trial is known to be over: see _Reports
        self.learn(known)
        self.view.ended(known)
