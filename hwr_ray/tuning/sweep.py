"""Trials under Ray Tune: each is a training run in its own folder, recorded in a ledger."""

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
from hwr_ray.data.dataset import PreparedSets
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
"""Logical CPUs of the process that supervises a trial's workers."""
REDUCTION = 2
"""ASHA's reduction factor: at each rung one in this many trials continues, to this many times the epochs."""
INTERRUPTED = "interrupted: time budget reached"
"""Reason of an interrupted trial, which the same command resumes."""


def asha_scheduler(epochs: int, grace_epochs: int | None, ledger: Ledger) -> TrialScheduler:
    """Returns Ray's ASHA, with the epochs of ended trials replayed to it, or a scheduler that stops no trial if the
    grace period leaves no epoch.

    The last epoch has no rung: a trial that reaches it ends by itself, after it has written its best bundle.
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
    """Ray's ASHA, which never stops a trial at an epoch that it reports again after an interruption."""

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        return self.CONTINUE if result.get("is_replayed") else decision


class Sweep:
    """Runs trials under Ray Tune and records them in a ledger."""

    def __init__(
        self, base: TrainSettings, prepared: PreparedSets, folder: str, run_id: str, at_once: int, owner: OwnershipToken
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
        """Resumes unfinished trials, then runs proposed ones until there are `limit` trials, or until the deadline, in
        seconds of the monotonic clock."""
        unfinished = self.ledger.in_state("unfinished")
        remaining = len(unfinished) + max(0, limit - len(self.ledger.trials))
        seconds = deadline - time.monotonic()
        if not remaining or seconds <= 0:
            return
        for trial in unfinished:
            trial.reason = None
            self.ledger.save(trial)
        at_once = min(self.at_once, remaining)
        state = storage.join(self.ledger.folder, "state")  # Ray Tune's own state, which is never read
        storage.delete(state)
        # Otherwise Ray Tune writes its own files for each trial, turns an interrupt into a normal end, and prints that
        # the results are in its own folder.
        os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
        with TrialsView(self.ledger, self.base.epochs, limit) as view:
            record = _Record(self.ledger, learn, view, resumed={trial.number for trial in unfinished})
            ray.tune.Tuner(
                ray.tune.with_resources(self.trainable(at_once), {"CPU": TRIAL_CPUS}),
                tune_config=ray.tune.TuneConfig(
                    num_samples=remaining,
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
        interrupted = self.ledger.in_state("unfinished")
        for trial in interrupted:
            trial.reason = INTERRUPTED
            self.ledger.save(trial)
            record.release(trial)
        if interrupted:
            log.info("%d trials were interrupted: run the same command to resume them", len(interrupted))

    def trainable(self, at_once: int) -> Callable[[dict[str, Any]], None]:
        """Returns the function that Ray Tune runs for each trial."""
        base, prepared, folder, run_id = self.base, self.prepared, self.ledger.folder, self.run_id
        owner = self.ledger.owner

        def run_trial(config: dict[str, Any]) -> None:
            configure_data()
            out = run_folder(folder, config["number"])
            trial = read_trial(out)
            for row in read_history(out):  # of an interrupted trial, whose workers resume from their checkpoint
                ray.tune.report({**row, "is_replayed": True})
            try:
                fit(
                    settings_of(base, trial.values),
                    prepared,
                    out,
                    f"{run_id}-{trial.number}",
                    num_lines=prepared.require_lines("train"),
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
                is_traceback = any(line.startswith('  File "') for line in lines)  # from a worker, passed on by Ray
                reason = lines[-1 if is_traceback else 0]
                text = f"{reason}\n\n{traceback.format_exc()}"
                storage.write_bytes(storage.join(out, FAILURE), text.encode())
                raise
            storage.write_bytes(storage.join(out, FINISHED), b"")

        return run_trial

    def new_trial(self, values: dict[str, Any]) -> Trial:
        """Creates a trial with these values and the next number, and writes it to the ledger."""
        from hwr_ray.tuning.cost import (
            size_of,  # imports torch, which the trials' processes do not need
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
    """Reports the epochs of the trial in `out` from Ray Train's controller to Ray Tune.

    When a trial has ended, the sweep removes its workers while the controller is still alive. The controller would
    start new workers, in a placement group that is unknown to the sweep.
    """

    def __init__(self, out: str) -> None:
        super().__init__()
        self.out = out

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises RuntimeError, which ends the controller, if the trial has ended."""
        try:
            reason = read_trial(self.out).reason
        except OSError as error:  # may be temporary: let the controller restart the lost workers
            log.warning("%s: %s", self.out, error)
            return
        if reason:
            raise RuntimeError(f"the trial has ended, so its workers are not restarted: {reason}")


class _Proposals(Searcher):
    """Gives Ray Tune the numbers of the trials to run: unfinished ones first, then new ones."""

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
        """Does nothing, because the ledger stores all trials."""


class _Record(ray.tune.Callback):
    """Records Ray Tune's trials in the ledger."""

    def __init__(self, ledger: Ledger, learn: Callable[[Trial], None], view: TrialsView, *, resumed: set[int]) -> None:
        self.ledger, self.learn, self.view, self.resumed = ledger, learn, view, resumed
        self.started: dict[int, float] = {}
        self.placement_groups: dict[int, str] = {}
        """Ray's id of the placement group of each trial's workers, by trial number."""

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        known = self.ledger.trials[trial.config["number"]]
        self.started[known.number], known.epochs = time.monotonic(), []
        self.view.started(known)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        known = self.ledger.trials[trial.config["number"]]
        known.epochs.append({name: result[name] for name in KEPT})
        self.view.advanced(known)
        if group := result.get("placement_group"):
            self.placement_groups[known.number] = group

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        known = self.ledger.trials[trial.config["number"]]
        if storage.is_file(storage.join(self.ledger.path(known), FINISHED)):
            known.state, last = "finished", None
        else:
            last = known.epochs[-1]["epoch"]
            known.state, known.reason = "stopped", f"ASHA: in the worse half after epoch {last}"
        # Ray Tune skips an epoch that was reported just before an interruption, and the run's own metrics may not have
        # the last epoch yet.
        rows = {row["epoch"]: row for row in [*known.epochs, *read_history(self.ledger.path(known))]}
        epochs = sorted(epoch for epoch in rows if last is None or epoch <= last)
        known.epochs = [{name: rows[epoch][name] for name in KEPT} for epoch in epochs]
        self._close(known)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        known = self.ledger.trials[trial.config["number"]]
        failure = storage.join(self.ledger.path(known), FAILURE)
        known.state, known.reason = "failed", "its process died"
        if storage.is_file(failure):
            known.reason = storage.read_bytes(failure).decode().splitlines()[0]
        self._close(known)

    def release(self, known: Trial) -> None:
        """Removes the placement group of a trial's workers, if there is one, which ends the workers.

        Ray Train's own cleaner needs the dashboard, which may be missing, and gives up if a machine has two clusters.
        """
        if group := self.placement_groups.pop(known.number, None):
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))

    def _close(self, known: Trial) -> None:
        if known.number in self.started and known.number not in self.resumed:  # it may have failed to start
            known.seconds = time.monotonic() - self.started[known.number]
        self.ledger.save(known)
        self.release(known)  # after the ledger shows that the trial has ended: see _Reports
        self.learn(known)
        self.view.ended(known)
