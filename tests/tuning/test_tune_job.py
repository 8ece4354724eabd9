"""Tests a sweep on a cluster of two CPUs that is killed halfway and resumed."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import ray
from conftest import check_report, documented, draw_easy_lines, wait_for
from job_runs import fit_decoders_here, mistake, run, run_here, start
from ray.util import placement_group_table

from hwr_ray.tuning.trials import FINISHED, KEPT, run_folder

EPOCHS, GRACE, SEED = 5, 3, 7
# With this seed only the second trial learns: the others have the lower learning rate, which is far too low. At the
# rung the second trial is therefore in the better half on any processor, and the third in the worse.
SWEEP = ["--choose", "best", "--trials", "4", "--epochs", EPOCHS, "--grace-epochs", GRACE, "--search", "random"]
SWEEP += ["--seed", SEED]
SWEEP += ["--space", "scale=0.25,0.5", "gru_size=16,32", "batch_size=16", "augmentation=false", "dropout=0"]
SWEEP += ["learning_rate=1e-2,1e-5", "ema_decay=0.9"]


@pytest.fixture(scope="module")
def prepared(ray_cluster, draw_text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    drawn = draw_easy_lines(folder / "drawn", draw_text, train=320, validation=60)
    run_here("prepare", "--data", drawn, "--out", folder / "prepared", "--canvas", "16", "64")
    return folder / "prepared"


def trials_in(sweep):
    return [json.loads(path.read_text()) for path in sorted(sweep.glob("trials/*/trial.json"))]


def lines_of(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(autouse=True)
def decoders_fitted_here(monkeypatch):
    fit_decoders_here(monkeypatch)


def groups_of_workers():
    """Returns the number of placement groups of training workers that have existed."""
    return [list(group["bundles"].values()) for group in placement_group_table().values()].count([{"CPU": 0.5}])


@pytest.fixture(scope="module")
def groups_before(prepared):
    return groups_of_workers()


@pytest.fixture(scope="module")
def sweep(prepared, groups_before):
    """A sweep that was killed during its second trial and resumed to the end; its fourth trial can't write its
    state."""
    out = prepared.parent / "sweep"
    command = documented("jobs/tune.py --data prepared --out sweep --trials 20 --epochs 12 --choose knee")
    command += ["--data", prepared, "--out", out, *SWEEP]
    process = start(*command)
    wait_for(lambda: len(lines_of(out / "trials/001/metrics.jsonl")) > 1, process)
    process.kill()
    process.communicate()
    finished = [trial["number"] for trial in trials_in(out) if trial["state"] == "finished"]
    assert finished == [0]
    before = (out / "trials/000/metrics.jsonl").stat().st_mtime_ns
    begun = lines_of(out / "trials/001/metrics.jsonl")[:-1]  # the last epoch's checkpoint may be unknown to Ray
    (out / "trials/003").mkdir()
    (out / "trials/003/state").write_text("not a folder")
    _, err = run(*command)
    assert (out / "trials/000/metrics.jsonl").stat().st_mtime_ns == before  # not trained again
    assert lines_of(out / "trials/001/metrics.jsonl")[: len(begun)] == begun  # resumed
    assert "1 trials at a time: a trial needs 0.75 CPUs" in err
    return out


def test_a_trial_that_raises_is_marked_and_the_sweep_goes_on(sweep):
    trials = trials_in(sweep)
    assert [trial["number"] for trial in trials] == [0, 1, 2, 3]
    assert [trial["state"] for trial in trials] == ["finished", "finished", "stopped", "failed"]
    assert f"ASHA: in the worse half after epoch {GRACE}" in trials[2]["reason"]
    assert "state" in trials[3]["reason"]
    for trial in trials[:3]:
        epochs = [row["epoch"] for row in trial["epochs"]]
        assert epochs == list(range(1, len(epochs) + 1))
        assert len(epochs) == EPOCHS or trial["state"] == "stopped"


def test_every_cpu_is_free_after_a_sweep(sweep):
    wait_for(lambda: ray.available_resources().get("CPU") == 2, timeout=60)


def test_workers_are_started_once_for_each_training_and_not_again_for_a_trial_that_is_stopped(sweep, groups_before):
    trainings = ["trial 0", "trial 1", "trial 1 resumed", "trial 2"]  # trial 3 fails before it has workers
    assert groups_of_workers() - groups_before == len(trainings)


def test_the_table_and_the_report_tell_of_all_trials(sweep, browser):
    trials, rows = trials_in(sweep), pd.read_csv(sweep / "trials.csv")
    assert rows.trial.tolist() == [0, 1, 2, 3]
    assert rows.state.tolist() == [trial["state"] for trial in trials]
    finished = rows[rows.state == "finished"]
    chosen = rows[rows.chosen]
    assert len(chosen) == 1 and chosen.cer.item() == finished.cer.min()
    assert (finished.throughput > 0).all()
    assert rows.loc[0, "overhead_seconds"] > 0
    assert rows.loc[1, ["seconds"]].isna().all()  # it was interrupted
    assert (sweep / "report.html").read_text().count("data:image/svg") == 3
    check_report(browser, sweep / "report.html", "tune")


def stand_in(running, at_once):
    """Replaces `Sweep.trainable`: its trials end at once, with a copy of the chosen bundle."""
    folder, best = running.ledger.folder, Path(running.ledger.folder).parent / "best"

    def run_trial(config):
        out = Path(run_folder(folder, config["number"]))
        shutil.copytree(best, out / "best")
        ray.tune.report({**dict.fromkeys(KEPT, 0), "epoch": EPOCHS, "cer": 0.25})
        (out / FINISHED).touch()

    return run_trial


def test_the_chosen_settings_are_trained_again_with_other_seeds(prepared, sweep, monkeypatch):
    out = sweep.parent / "repeated"
    shutil.copytree(sweep, out)
    monkeypatch.setattr("hwr_ray.tuning.sweep.Sweep.trainable", stand_in)
    _, err = run("tune", "--data", prepared, "--out", out, *SWEEP, "--repeat", "2")
    chosen = pd.read_csv(out / "trials.csv").query("chosen").trial.item()
    assert f"trial {chosen} with other seeds (2): mean CER 25.00 %, standard deviation 0.00 %" in err
    repeats = [json.loads(path.read_text()) for path in sorted(out.glob(f"repeats-{chosen:03d}/*/trial.json"))]
    values = trials_in(out)[chosen]["values"]
    assert [trial["values"] for trial in repeats] == [{**values, "seed": SEED + n} for n in (1, 2)]
    assert [trial["state"] for trial in repeats] == ["finished"] * 2
    sentence = f"The chosen settings (trial {chosen}) with 2 other\nseeds: CER 25.00% on average"
    assert sentence in (out / "report.html").read_text()


def test_evaluate_confirms_the_error_of_the_chosen_bundle(prepared, sweep):
    out = sweep.parent / "evaluation"
    run_here("evaluate", "--data", prepared, "--model", sweep / "best", "--out", out, "--greedy", "--num-workers", "1")
    metrics = json.loads((out / "metrics.json").read_text())
    chosen = pd.read_csv(sweep / "trials.csv").query("chosen")
    # The network is trained and run by different libraries, so a logit's last bit may differ.
    assert metrics["cer"] < 0.5  # it has learned, so that other weights would give another CER
    assert metrics["num_edits"] == pytest.approx(chosen.cer.item() * metrics["num_characters"], abs=2)
    training = json.loads((sweep / "best/config.json").read_text())["training"]
    assert metrics["cer"] == pytest.approx(training["decoder"]["greedy_cer"])
    assert f"{metrics['cer']:.2%}" in (sweep / "report.html").read_text()
    assert training["sweep"]["trial"] == chosen.trial.item()


def test_another_space_is_refused_in_the_same_folder_and_a_mistyped_setting_anywhere(prepared, sweep):
    message = mistake("tune", "--data", prepared, "--out", sweep, "--epochs", "3", "--search", "random")
    assert "is a run with" in message
    assert "did you mean gru_size?" in mistake("tune", "--data", prepared, "--out", "none", "--space", "gru_siz=8")
