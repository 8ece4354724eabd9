"""Tests, without a cluster, that a trial's workers are removed only after Ray Train's controller can know its end."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune.integration.ray_train import TuneReportCallback

from hwr_ray.tuning import sweep
from hwr_ray.tuning.trials import Ledger, Trial, read_trial

EPOCH = {"epoch": 1, "loss": 2.0, "cer": 0.5, "exact_match": 0.1, "seconds": 1.0, "validation_seconds": 0.1}
EPOCH["lines_per_second"] = 100.0
GROUP = "ab" * 18


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(str(tmp_path))
    ledger.save(Trial(number=0, values={}, conv_widths=[4], multiply_adds=1, num_parameters=1))
    return ledger


@pytest.fixture
def reports(ledger, monkeypatch):
    """The callback that Ray Train's controller calls when workers are lost."""
    monkeypatch.setattr(TuneReportCallback, "__init__", lambda self: None)  # needs a running trial of Ray Tune
    return sweep._Reports(ledger.path(ledger.trials[0]))


@pytest.fixture
def removed(ledger, monkeypatch):
    """Each removed placement group, with the trial as the controller would read it at that time."""
    calls = []
    path = ledger.path(ledger.trials[0])
    monkeypatch.setattr(sweep, "remove_placement_group", lambda group: calls.append((group.id.hex(), read_trial(path))))
    return calls


def test_a_stopped_trial_is_known_to_be_over_before_its_workers_are_taken_away(ledger, reports, removed):
    view = SimpleNamespace(started=id, advanced=id, ended=id)
    record = sweep._Record(ledger, id, view, resumed=set())
    trial = SimpleNamespace(config={"number": 0})
    record.on_trial_start(0, [], trial)
    record.on_trial_result(0, [], trial, {**EPOCH, "placement_group": GROUP})
    reports.after_exception(None, {})  # workers that are lost now are restarted
    record.on_trial_complete(0, [], trial)
    ((group, known),) = removed
    assert (group, known.state) == (GROUP, "stopped")
    with pytest.raises(RuntimeError, match="not restarted: ASHA: in the worse half after epoch 1"):
        reports.after_exception(None, {})


def test_a_trial_that_is_broken_off_is_known_to_be_until_it_is_gone_on_with(ledger, reports, monkeypatch):
    running = sweep.Sweep(SimpleNamespace(epochs=3), None, ledger.folder, "run", 1, None)
    during = []
    monkeypatch.setattr(sweep.ray.tune.Tuner, "fit", lambda self: during.append(reports.after_exception(None, {})))
    for _ in range(2):
        running.run(lambda number: {}, limit=1)
        with pytest.raises(RuntimeError, match="not restarted: interrupted"):
            reports.after_exception(None, {})
    assert during == [None, None]


def test_lost_workers_are_started_again_where_the_trial_cannot_be_read(ledger, reports, caplog):
    Path(ledger.path(ledger.trials[0]), "trial.json").unlink()
    reports.after_exception(None, {})
    assert "trial.json" in caplog.text
