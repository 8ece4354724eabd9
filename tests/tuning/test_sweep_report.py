"""Tests the ledger of a sweep, its table and the effects of settings in its report."""

import statistics
from dataclasses import replace
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from rich.console import Console

from hwr_ray.errors import UserError
from hwr_ray.files import storage
from hwr_ray.training.settings import TrainSettings
from hwr_ray.tuning.report import against_hand_set, comparable, effects, group_labels, spread, write_sweep_report
from hwr_ray.tuning.search_space import DEFAULT_SPACE, default_values
from hwr_ray.tuning.sweep import _Record, asha_scheduler
from hwr_ray.tuning.trials import Ledger, Trial
from hwr_ray.tuning.trials_view import TrialsView
from hwr_ray.tuning.tune import TuneSettings, choose_trial

BASE = TrainSettings(data=("prepared",), out="sweep")
SPACE = {"dropout": FloatDistribution(0.0, 0.4), "shape": CategoricalDistribution(("late", "early"))}


def rows(*cers):
    seconds = {"seconds": 2.0, "validation_seconds": 0.5, "lines_per_second": 9.0}
    return [
        {"epoch": n, "loss": 1.0, "cer": cer, "exact_match": 1 - cer, **seconds} for n, cer in enumerate(cers, start=1)
    ]


def trial(number, cers, *, cost=10e6, state="finished", values=None):
    return Trial(
        number=number,
        values=values or {"dropout": 0.1, "shape": "late"},
        conv_widths=[8, 8, 16, 16],
        multiply_adds=int(cost),
        num_parameters=1000,
        state=state,
        epochs=rows(*cers),
        seconds=10.0,
    )


@pytest.fixture
def ledger(tmp_path):
    """Four trials: two on the Pareto front, one stopped, one that failed before its first epoch."""
    ledger = Ledger(str(tmp_path / "trials"))
    ledger.save(trial(0, [0.9, 0.3, 0.4], cost=20e6))
    ledger.save(trial(1, [0.8, 0.6, 0.5], cost=10e6, values={"dropout": 0.2, "shape": "early"}))
    ledger.save(trial(2, [0.95], cost=5e6, state="stopped", values={"dropout": 0.3, "shape": "early"}))
    ledger.save(trial(3, [], cost=1e6, state="failed", values={"dropout": 0.4, "shape": "late"}))
    return ledger


def test_the_books_are_read_as_they_were_written(ledger):
    assert Ledger(ledger.folder).trials == ledger.trials
    assert ledger.trials[0].best["epoch"] == 2
    assert ledger.trials[0].overhead == 10 - 3 * 2.5


def test_the_table_has_a_row_a_trial_with_its_best_epoch(ledger, tmp_path):
    figures = {"choose": "best", "chosen": 0, "decoder": {"greedy_cer": 0.3}, "repeats": {0: [0.31, 0.35]}}
    write_sweep_report(str(tmp_path), ledger, SPACE, BASE, figures)
    table = pd.read_csv(tmp_path / "trials.csv")
    assert table.state.tolist() == ["finished", "finished", "stopped", "failed"]
    assert table.cer[:3].tolist() == [0.3, 0.5, 0.95] and np.isnan(table.cer[3])
    assert table.best_epoch[0] == 2 and table.epochs.tolist() == [3, 3, 1, 0]
    assert table.on_pareto_front.tolist() == [True, True, False, False]  # only of trials trained to the end
    assert table.chosen.tolist() == [True, False, False, False]
    assert table.dropout.tolist() == [0.1, 0.2, 0.3, 0.4]
    report = (tmp_path / "report.html").read_text()
    assert "30.00%" in report and "with 2 other\nseeds: CER" in report and "33.00%" in report


def test_a_sweep_without_a_finished_trial_has_a_report_too(tmp_path):
    ledger = Ledger(str(tmp_path / "trials"))
    figures = {"choose": "best", "chosen": None, "decoder": None, "repeats": {}}
    write_sweep_report(str(tmp_path), ledger, SPACE, BASE, figures)
    ledger.save(trial(0, [], state="failed"))
    write_sweep_report(str(tmp_path), ledger, SPACE, BASE, figures)
    assert "No trial is chosen" in (tmp_path / "report.html").read_text()
    with pytest.raises(UserError, match="none of 1 trials was trained to the end"):
        choose_trial(ledger, "best")


def test_only_a_trial_that_was_trained_to_its_end_is_chosen(ledger):
    assert choose_trial(ledger, "best").number == 0
    assert choose_trial(ledger, "budget=15").number == 1
    with pytest.raises(UserError, match="budget=6: the cheapest trial costs 10"):
        choose_trial(ledger, "budget=6")


def test_trials_are_compared_after_the_last_epoch_that_all_of_them_reached(ledger):
    epoch, known = comparable(ledger)
    assert epoch == 1
    assert [(trial.number, cer) for trial, cer in known] == [(0, 0.9), (1, 0.8), (2, 0.95)]


def test_the_setting_that_decides_the_error_is_the_most_important_and_its_means_are_right():
    rng = np.random.default_rng(0)
    known = [
        (trial(n, [0.5], values={"dropout": rng.uniform(0, 0.4), "shape": str(shape)}), 0.0)
        for n, shape in enumerate(rng.choice(["late", "early"], 40))
    ]
    known = [(t, 0.2 + 0.3 * (t.values["shape"] == "late") + 0.02 * t.values["dropout"]) for t, _ in known]
    first, second = effects(known, SPACE)
    assert (first["name"], second["name"]) == ("shape", "dropout")
    assert first["importance"] > 0.9
    early = [cer for t, cer in known if t.values["shape"] == "early"]
    assert [group["label"] for group in first["groups"]] == ["early", "late"]
    assert first["groups"][0]["mean"] == pytest.approx(statistics.mean(early))
    low, high = first["groups"][0]["interval"]
    assert low < statistics.mean(early) < high
    assert sum(group["number"] for group in second["groups"]) == 40


def test_few_values_are_groups_and_many_are_thirds_with_equal_ones_together():
    assert group_labels([8, 16, 8]) == ["8", "16", "8"]
    assert group_labels([True, False]) == ["True", "False"]
    assert group_labels(["late", "early"]) == ["late", "early"]
    assert group_labels([1, 2, 3, 4, 5, 6]) == ["1 to 2"] * 2 + ["3 to 4"] * 2 + ["5 to 6"] * 2
    labels = group_labels([1, 1, 1, 1, 2, 3, 4, 5])
    assert len(set(labels[:4])) == 1


def test_the_hand_set_recipe_is_compared_with_what_costs_no_more():
    hand_set = trial(0, [0.3], cost=20e6, values=default_values(DEFAULT_SPACE, BASE))
    cheaper, dearer = trial(1, [0.4], cost=10e6), trial(2, [0.1], cost=30e6)
    assert against_hand_set([cheaper, dearer], DEFAULT_SPACE, BASE) is None
    assert against_hand_set([hand_set, dearer], DEFAULT_SPACE, BASE) == {"hand_set": hand_set, "best": None}
    comparison = against_hand_set([hand_set, cheaper, dearer], DEFAULT_SPACE, BASE)
    assert (comparison["hand_set"].number, comparison["best"].number) == (0, 1)


def test_the_spread_of_repeats_is_that_of_the_statistics_module():
    assert spread([]) is None
    assert spread([0.2])["deviation"] == 0
    stats = spread([0.1, 0.2, 0.4])
    assert stats["mean"] == pytest.approx(0.7 / 3)
    assert stats["deviation"] == pytest.approx(np.std([0.1, 0.2, 0.4], ddof=1))


def test_the_table_on_a_terminal_shows_what_runs_and_then_the_best_of_what_is_over(ledger):
    view = TrialsView(ledger, epochs=3, limit=6)
    view.started(trial(4, [0.7, 0.6], state="unfinished"))
    console = Console(file=StringIO(), width=160)
    console.print(view.table())
    lines = [line.split() for line in console.file.getvalue().splitlines() if line.startswith("│")]
    assert [line[1] for line in lines] == ["4", "0", "1", "2", "3"]
    assert lines[0][3:10:2] == ["running", "2", "60.00", "60.00"]
    view.ended(view.running[4])
    assert not view.running


def test_asha_judges_a_new_trial_by_those_of_before_the_interruption_but_never_at_the_last_epoch(ledger):
    asha = asha_scheduler(4, 1, ledger)

    def decisions(name, *cers):
        new = SimpleNamespace(trial_id=name)
        asha.on_trial_add(None, new)
        return [asha.on_trial_result(None, new, row) for row in rows(*cers)]

    assert decisions("good", 0.7, 0.2, 0.99, 0.99) == ["CONTINUE"] * 4  # the rungs are at epochs 1 and 2
    assert decisions("bad", 0.97) == ["STOP"]
    resumed = SimpleNamespace(trial_id="replayed")
    asha.on_trial_add(None, resumed)
    replayed = [{**row, "is_replayed": True} for row in rows(0.97, 0.96)]
    assert [asha.on_trial_result(None, resumed, row) for row in replayed] == ["CONTINUE"] * 2


def test_trials_that_failed_are_gone_on_with_on_request_only(ledger):
    failure = f"{ledger.path(ledger.trials[3])}/failure.txt"
    storage.write_bytes(failure, b"no memory")
    ledger.trials[3].seconds = 40.0  # of the failed attempt, so not the duration of the trial
    ledger.reopen_failed()
    assert ledger.trials[3].seconds is None
    states = [trial.state for trial in Ledger(ledger.folder).trials.values()]
    assert states == ["finished", "finished", "stopped", "unfinished"]
    assert not storage.is_file(failure)


def test_a_trial_that_failed_before_it_began_is_marked_and_no_more(ledger):
    learned = []
    view = SimpleNamespace(ended=lambda trial: None)
    record = _Record(ledger, learned.append, view, resumed=set())
    ledger.save(replace(trial(4, [], state="unfinished"), seconds=None))
    record.on_trial_error(0, [], SimpleNamespace(config={"number": 4}))
    assert ledger.trials[4].state == "failed" and ledger.trials[4].seconds is None
    assert learned == [ledger.trials[4]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"choose": "worst"}, "--choose must be best, knee or budget=NUMBER"),
        ({"space": ("gru_siz=8",)}, "did you mean gru_size"),
        ({"trials": 0}, "--trials must be positive"),
        ({"time_budget": -1.0}, "--time-budget must be positive"),
        ({"repeat": -1}, "--repeat must not be negative"),
        ({"epochs": 0}, "--epochs must be positive"),
    ],
)
def test_settings_that_no_sweep_takes_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        TuneSettings(data=("prepared",), out="sweep", **settings)
