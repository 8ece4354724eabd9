"""Tests the parts of a training worker that need no Ray: batches, learning rate, average, step, state."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from hwr_ray.cluster.resources import WorkerSettings
from hwr_ray.decoding.ctc import ctc_losses
from hwr_ray.errors import UserError
from hwr_ray.training import dataloader as ingest
from hwr_ray.training import train as training
from hwr_ray.training.dataloader import shuffled_batches
from hwr_ray.training.settings import TrainSettings
from hwr_ray.training.step import TrainState, dropout_seed, new_ema, one_cycle, train_step

LABELS = [[1], [2, 2], [3, 1, 2], [1, 1, 1]]


@pytest.fixture
def ink() -> torch.Tensor:
    return torch.rand(4, 1, 16, 64, generator=torch.Generator().manual_seed(0))


def state_of(bundle, *, learning_rate: float = 1e-2) -> TrainState:
    model = copy.deepcopy(bundle.model).requires_grad_(True).train()
    return TrainState(model, new_ema(model, 0.9), torch.optim.AdamW(model.parameters(), lr=learning_rate))


def take_step(state: TrainState, ink: torch.Tensor, *, seed: int) -> float:
    torch.manual_seed(seed)  # for dropout
    loss, _ = train_step(state, state.model, ink, LABELS, shortcut_weight=0.1)
    state.ema.update_parameters(state.model)
    return loss.item()


def batches_of(rows: int, batch_size: int, *, seed: int = 0, table_size: int = 7) -> list[list[int]]:
    table = pa.table({"id": range(rows)})
    tables = (table.slice(start, table_size) for start in range(0, rows, table_size))
    return [batch["id"].to_pylist() for batch in shuffled_batches(tables, batch_size, np.random.default_rng(seed))]


@pytest.mark.parametrize("window", [1, 20, 1000])
@pytest.mark.parametrize(("rows", "batch_size"), [(100, 8), (96, 8), (7, 8), (0, 8), (100, 1), (100, 30)])
def test_all_rows_but_those_of_the_last_part_batch_come_once_in_full_batches(monkeypatch, window, rows, batch_size):
    monkeypatch.setattr(ingest, "SHUFFLE_WINDOW", window)
    batches = batches_of(rows, batch_size)
    assert [len(batch) for batch in batches] == [batch_size] * (rows // batch_size)
    drawn = [row for batch in batches for row in batch]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(range(rows))


def test_the_order_is_that_of_the_seed_and_not_that_of_the_rows():
    first, again, other = batches_of(64, 8), batches_of(64, 8), batches_of(64, 8, seed=1)
    assert first == again != other
    assert first != [list(range(start, start + 8)) for start in range(0, 64, 8)]


def test_every_row_is_left_out_about_as_often_as_any_other():
    left_out = np.zeros(10)
    for seed in range(500):
        left_out[list(set(range(10)) - {row for batch in batches_of(10, 4, seed=seed) for row in batch})] += 1
    assert left_out.sum() == 1000
    assert left_out.min() > 65 and left_out.max() < 135  # 100 each; 4 standard deviations


def test_the_learning_rate_rises_to_1_and_falls_to_0():
    # 500 steps of warm-up in a long run, 15 % in a short one
    for total, top in ((10_000, 500), (1_000, 150)):
        assert one_cycle(top, total) == pytest.approx(1)
        assert one_cycle(top // 2, total) == pytest.approx(0.5)
        assert one_cycle((total + top) // 2, total) == pytest.approx(0.5)
        assert one_cycle(total, total) == pytest.approx(0) == one_cycle(total + 10, total)
    assert one_cycle(0, 1_000) > 0
    rates = [one_cycle(n, 1_000) for n in range(1001)]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_the_average_keeps_little_of_the_first_weights_and_then_its_decay():
    model = torch.nn.BatchNorm1d(1)
    ema = new_ema(model, 0.5)
    weight, variance = [], []
    for value in (10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0):
        with torch.no_grad():
            model.weight.fill_(value), model.running_var.fill_(value / 10)
        model.num_batches_tracked.fill_(int(value))
        ema.update_parameters(model)
        weight.append(ema.module.weight.item())
        variance.append(ema.module.running_var.item())
    assert weight[0] == 10  # nothing is left of the initial 1
    # The second update keeps 3/12 of the average, the third 4/13, and the eighth and later ones half.
    assert weight[1] == pytest.approx(10 * 3 / 12 + 20 * 9 / 12)
    assert weight[2] == pytest.approx(weight[1] * 4 / 13 + 30 * 9 / 13)
    assert weight[8] == pytest.approx((weight[7] + 90) / 2)
    np.testing.assert_allclose(variance, np.array(weight) / 10, rtol=1e-6)
    assert ema.module.num_batches_tracked.item() == 90
    assert model.weight.item() == 90
    assert not ema.training and not any(parameter.requires_grad for parameter in ema.parameters())


def test_the_loss_of_a_step_is_the_mean_over_lines_of_the_ctc_loss_a_character(tiny_bundle, ink, monkeypatch):
    monkeypatch.setattr("hwr_ray.training.step.has_bfloat16", lambda device: False)
    state = state_of(tiny_bundle)
    for module in state.model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    logits, _ = copy.deepcopy(state.model)(ink)
    losses = ctc_losses(logits.log_softmax(-1), LABELS).tolist()
    expected = np.mean([loss / length for loss, length in zip(losses, (1, 2, 3, 3), strict=True)])
    assert take_step(state, ink, seed=0) == pytest.approx(expected, rel=1e-4)
    assert state.step == 1


def test_the_shortcut_is_taught_by_its_weight_and_teaches_the_convolutions(tiny_bundle, ink, monkeypatch):
    monkeypatch.setattr("hwr_ray.training.step.has_bfloat16", lambda device: False)
    monkeypatch.setattr("hwr_ray.training.step.CLIP_NORM", math.inf)
    gradients = []
    for weight in (0.0, 0.1, 0.2):
        state = state_of(tiny_bundle)
        torch.manual_seed(0)
        train_step(state, state.model, ink, LABELS, shortcut_weight=weight)
        gradients.append([state.model.shortcut.weight.grad, state.model.convolutions[0].weight.grad])
    (head_0, convolution_0), (head_1, convolution_1), (head_2, convolution_2) = gradients
    assert not head_0.any() and head_1.abs().max() > 0
    torch.testing.assert_close(head_2, 2 * head_1)
    effect = convolution_1 - convolution_0
    largest = effect.abs().max().item()
    assert largest > 1e-3
    torch.testing.assert_close(convolution_2 - convolution_0, 2 * effect, rtol=0, atol=0.02 * largest)


def test_steps_on_one_batch_learn_it(tiny_bundle, ink):
    state = state_of(tiny_bundle)
    losses = [take_step(state, ink, seed=seed) for seed in range(60)]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_a_batch_in_parts_is_learned_as_a_whole(tiny_bundle, ink, monkeypatch):
    monkeypatch.setattr("hwr_ray.training.step.has_bfloat16", lambda device: False)
    gradients, losses = [], []
    for num_parts in (1, 2, 3):
        state = state_of(tiny_bundle)
        for module in state.model.modules():  # these depend on the micro-batch or draw random numbers
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.Dropout):
                module.eval()
        state.model.gru.dropout = 0.0
        loss, norm = train_step(
            state, state.model, ink, LABELS, shortcut_weight=0.1, line_weight=0.5, gradient_accumulation_steps=num_parts
        )
        losses.append([loss.item(), norm.item()])
        gradients.append(torch.cat([p.grad.flatten() for p in state.model.parameters()]))
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-4)
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-3, atol=1e-5)


def test_a_line_that_needs_more_frames_than_there_are_shows_as_an_infinite_loss(tiny_bundle, ink):
    loss, _ = train_step(
        state := state_of(tiny_bundle), state.model, ink[:1], [[1] * 9], shortcut_weight=0.1
    )  # needs 17 frames, but there are 16
    assert loss.item() == math.inf


def test_a_saved_state_goes_on_bit_for_bit_as_if_it_had_not_stopped(tiny_bundle, ink):
    state = state_of(tiny_bundle)
    for seed in range(3):
        take_step(state, ink, seed=seed)
    state.history, state.epoch_step, state.sums = [{"epoch": 1, "cer": 0.5}], 2, {"loss": 1.5}
    resumed = state_of(tiny_bundle, learning_rate=1.0)
    resumed.load(state.to_bytes())
    assert (resumed.step, resumed.epoch_step, resumed.sums, resumed.history) == (3, 2, {"loss": 1.5}, state.history)
    assert take_step(state, ink, seed=9) == take_step(resumed, ink, seed=9)
    for name in ("model", "ema"):
        expected, actual = getattr(state, name).state_dict(), getattr(resumed, name).state_dict()
        assert all(torch.equal(expected[key], actual[key]) for key in expected)


@pytest.mark.parametrize(
    ("cers", "since"), [([], 0), ([0.5], 0), ([0.5, 0.3, 0.4, 0.3], 2), ([0.1, 0.2, 0.3], 2), ([0.3, 0.2], 0)]
)
def test_patience_counts_from_the_first_best_epoch(tiny_bundle, cers, since):
    state = state_of(tiny_bundle)
    state.history = [{"cer": cer} for cer in cers]
    assert state.epochs_since_best() == since


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"batch_size": 0}, "--batch-size"),
        ({"learning_rate": -1.0}, "--learning-rate"),
        ({"ema_decay": 1.0}, "--ema-decay"),
        ({"batch_size": 4, "num_workers": 5}, "--batch-size 4 is too small for 5 workers"),
        (
            {"batch_size": 4, "num_workers": (1, 3), "gradient_accumulation_steps": 2},
            "--batch-size 4 is too small for 3 workers",
        ),
        ({"num_workers": 0}, "--num-workers"),
        ({"num_workers": (3, 2)}, "--num-workers"),
        ({"keep": 0}, "--keep"),
        ({"freeze_convolutions": True}, "--freeze-convolutions needs --init-from"),
        ({"num_folds": 0}, "--num-folds must be positive, not 0"),
        ({"fold": 0}, "--fold 0 needs --num-folds of 2 or more"),
        ({"num_folds": 3}, "--num-folds 3 has the folds 0 to 2: --fold is missing"),
        ({"num_folds": 3, "fold": 3}, "--num-folds 3 has the folds 0 to 2: --fold 3 is not one of them"),
        ({"num_folds": 3, "fold": -1}, "--num-folds 3 has the folds 0 to 2: --fold -1 is not one of them"),
    ],
)
def test_settings_that_cannot_train_are_refused_by_their_flag(wrong, flag):
    with pytest.raises(UserError, match=flag):
        TrainSettings(data=("data",), out="out", **wrong)


def test_where_a_run_trains_is_no_part_of_its_recipe():
    one = TrainSettings(data=("a",), out="b", num_workers=1)
    other = TrainSettings(
        data=("c",), out="d", num_workers=(2, 8), workers=WorkerSettings(use_gpu=True), wandb_project="p"
    )
    assert one.recipe() == other.recipe() != TrainSettings(data=("a",), out="b", seed=1).recipe()


def test_the_fold_is_part_of_the_recipe():
    recipes = [TrainSettings(data=("a",), out="b", num_folds=n, fold=f).recipe() for n, f in ((2, 0), (2, 1), (3, 0))]
    assert [(r["num_folds"], r["fold"]) for r in recipes] == [(2, 0), (2, 1), (3, 0)]


@pytest.mark.parametrize(
    ("settings", "runs_at_once", "expected"),
    [
        ({}, 1, False),
        ({"stream": True}, 1, True),
        ({"num_workers": (1, 8)}, 1, False),  # all workers of a node share one copy
        ({}, 2, False),  # exactly half of the smallest node's memory
        ({}, 3, True),
    ],
)
def test_lines_may_be_streamed_if_the_smallest_node_might_not_hold_those_of_all_runs(
    settings, runs_at_once, expected, monkeypatch
):
    nodes = [{"Resources": {"memory": memory}} for memory in (10**9, 4_000)]
    monkeypatch.setattr(training, "working_nodes", lambda: nodes)
    prepared = SimpleNamespace(bytes_per_line=100)
    given = TrainSettings(data=(), out="", batch_size=8, **settings)
    assert training.may_stream(prepared, given, 10, runs_at_once) is expected


def test_each_step_and_each_worker_draws_its_own_dropout_the_same_in_every_version_of_python():
    places = [(seed, step, rank) for seed in range(3) for step in range(20) for rank in range(4)]
    assert len({dropout_seed(*place) for place in places}) == len(places)
    assert dropout_seed(1, 2, 3) == 12997252459554536576
    torch.manual_seed(dropout_seed(1, 2, 3))  # accepts any seed of this size
