"""Tests the search space of a sweep, its error messages and its proposals."""

from dataclasses import replace

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from hwr_ray.errors import UserError
from hwr_ray.model.architecture import ModelSettings
from hwr_ray.training.settings import TrainSettings
from hwr_ray.tuning.search_space import (
    DEFAULT_SPACE,
    SHAPES,
    TYPES,
    Search,
    corners,
    parse_entry,
    settings_of,
    space_of,
    widths,
)
from hwr_ray.tuning.trials import Ledger, Trial

BASE = TrainSettings(data=("prepared",), out="sweep")


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("batch_size=32,64", ("batch_size", CategoricalDistribution((32, 64)))),
        ("augmentation=false", ("augmentation", CategoricalDistribution((False,)))),
        ("learning_rate=1e-3..1e-2:log", ("learning_rate", FloatDistribution(1e-3, 1e-2, log=True))),
        ("dropout=0..0.5", ("dropout", FloatDistribution(0, 0.5))),
        ("gru_size=64..200:32", ("gru_size", IntDistribution(64, 192, step=32))),
        ("patience=3..30:log", ("patience", IntDistribution(3, 30, log=True))),
        ("shape=late,early", ("shape", CategoricalDistribution(("late", "early")))),
    ],
)
def test_an_entry_is_read_in_the_type_of_its_setting(entry, expected):
    assert parse_entry(entry) == expected


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("gru_siz=64", "gru_siz: .* did you mean gru_size"),
        ("learningrate=1e-3", "did you mean learning_rate"),
        ("zzz=1", "choose from augmentation, batch_size, dropout"),
        ("epochs=3", "epochs: not a setting that a sweep can vary"),
        ("conv_widths=8", "vary shape and scale instead"),
        ("gru_size", "write gru_size=VALUE,VALUE or gru_size=LOW..HIGH"),
        ("gru_size=64.5", "'64.5' is not a whole number"),
        ("dropout=much", "'much' is not a number"),
        ("dropout=nan", "'nan' is not a number"),
        ("augmentation=1", "'1' is not true or false"),
        ("augmentation=false..true", "has no range"),
        ("shape=round", "'round' is not one of growing, doubling, early, late"),
        ("dropout=0.4..0.1", "0.4 is not below 0.1"),
        ("weight_decay=0..1:log", "must start above 0"),
        ("dropout=0..1:2", "after the colon, write log$"),
    ],
)
def test_a_mistyped_entry_is_refused_with_what_is_wrong(entry, message):
    with pytest.raises(UserError, match=message):
        parse_entry(entry)


def test_an_entry_takes_the_place_of_the_default_of_its_name_and_no_name_comes_twice():
    space = space_of(("dropout=0.1", "weight_decay=0..0.1"))
    assert list(space) == [*DEFAULT_SPACE, "weight_decay"]
    assert space["dropout"] == CategoricalDistribution((0.1,))
    with pytest.raises(UserError, match="names dropout twice"):
        space_of(("dropout=0.1", "dropout=0.2"))


def test_every_setting_that_can_vary_has_a_type_that_an_entry_can_be_read_in():
    assert set(TYPES.values()) <= {int, float, bool, str}


def test_the_growing_shape_at_scale_1_is_the_hand_set_model_and_all_widths_are_multiples_of_8():
    assert widths("growing", 1.0) == ModelSettings().conv_widths
    assert widths("growing", 0.5) == (16, 16, 32, 64)  # 12 is halfway, and Python rounds halves to even
    assert all(width % 8 == 0 and width for shape in SHAPES for width in widths(shape, 0.01) + widths(shape, 1.37))


def test_values_reach_the_model_and_the_training_settings():
    values = {"shape": "late", "scale": 2.0, "gru_size": 64, "batch_size": 32, "seed": 5}
    settings = settings_of(BASE, values)
    assert settings.model == ModelSettings(conv_widths=(32, 48, 128, 320), gru_size=64)
    assert (settings.batch_size, settings.seed, settings.data) == (32, 5, ("prepared",))


def test_a_value_that_no_training_takes_is_refused_before_a_sweep_starts():
    with pytest.raises(UserError, match="--patience must be positive"):
        for corner in corners(space_of(("patience=0..10",))):
            settings_of(BASE, corner)


def test_each_value_and_each_end_is_tried_once_beside_the_first_of_the_others():
    points = corners(space_of(("batch_size=8,16,32",)))
    assert [point["batch_size"] for point in points][-3:] == [8, 16, 32]
    assert {point["batch_size"] for point in points[:-3]} == {8}
    assert {point["dropout"] for point in points} == {0.0, 0.4}
    assert len(points) == len(SHAPES) + 4 * 2 + 1 + 3  # gru_size has a third value, because it has a step


def test_a_range_that_holds_an_impossible_number_is_refused_before_a_sweep_starts():
    base = replace(BASE, num_workers=2)
    with pytest.raises(UserError, match="--batch-size 1 is too small for 2 workers"):
        for corner in corners(space_of(("batch_size=1..64",))):
            settings_of(base, corner)
    for corner in corners(space_of(("batch_size=2..64",))):
        settings_of(base, corner)


def ledger_with(tmp_path, *trials):
    ledger = Ledger(str(tmp_path))
    for trial in trials:
        ledger.save(trial)
    return ledger


def test_the_hand_set_recipe_is_proposed_first_where_the_space_holds_it(tmp_path):
    ledger = ledger_with(tmp_path)
    search = Search(DEFAULT_SPACE, "tpe", ledger, num_trials=4, seed=0, base=BASE)
    first = search.propose(0)
    assert settings_of(BASE, first) == BASE
    other = Search(space_of(("gru_size=64",)), "random", ledger, num_trials=4, seed=0, base=BASE)
    assert other.propose(0)["gru_size"] == 64


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_a_sweep_that_goes_on_knows_its_trials_and_proposes_others(tmp_path, kind):
    fresh = Search(DEFAULT_SPACE, kind, ledger_with(tmp_path / "none"), num_trials=9, seed=0, base=BASE)
    states = ["finished", "stopped", "failed", "unfinished"]
    trials = [
        Trial(
            number=n,
            values=fresh.propose(n),
            conv_widths=[8] * 4,
            multiply_adds=n,
            num_parameters=1,
            state=state,
            epochs=[{"epoch": 1, "cer": 0.5 + n / 100}],
        )
        for n, state in enumerate(states)
    ]
    resumed = Search(DEFAULT_SPACE, kind, ledger_with(tmp_path / "some", *trials), num_trials=9, seed=0, base=BASE)
    assert [t.params for t in resumed.study.trials] == [t.values for t in trials]
    assert [t.state.name for t in resumed.study.trials] == ["COMPLETE", "COMPLETE", "FAIL", "RUNNING"]
    new = resumed.propose(4)
    assert new not in [t.values for t in trials]
    assert new.keys() == DEFAULT_SPACE.keys()
