"""The search space of a sweep and the proposals from it; convolution widths are a shape times a scale."""

import math
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any, get_type_hints

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hwr_ray.errors import UserError
from hwr_ray.model.architecture import ModelSettings
from hwr_ray.training.settings import TrainSettings
from hwr_ray.tuning.trials import Ledger, Trial

Space = dict[str, BaseDistribution]
"""Distributions by name: a field of TrainSettings or ModelSettings, `shape` or `scale`."""

SHAPES = {
    "growing": (24, 32, 64, 128),
    "doubling": (16, 32, 64, 128),
    "early": (32, 48, 64, 96),
    "late": (16, 24, 64, 160),
}
"""Convolution widths at scale 1: how a network distributes its channels over the layers."""
WIDTH_STEP = 8
"""Divisor of all widths, because hardware computes channels in groups of this size."""

DEFAULT_SPACE: Space = {
    "shape": CategoricalDistribution(tuple(SHAPES)),
    "scale": FloatDistribution(0.5, 1.5, log=True),
    "gru_size": IntDistribution(64, 224, step=32),
    "learning_rate": FloatDistribution(1e-3, 1e-2, log=True),
    "dropout": FloatDistribution(0.0, 0.4),
}

MODEL_FIELDS = {field.name for field in fields(ModelSettings)} - {"conv_widths"}
# Settings that are flags of the sweep itself or equal in all trials.
_NOT_VARIED = {"data", "out", "model", "epochs", "num_workers", "workers", "wandb_project"}
_NOT_VARIED |= {
    "num_folds",
    "fold",
    "label_errors",
    "teacher",
    "teacher_weight",
    "label_list",
    "label_column",
    "checkpoint_minutes",
    "keep",
}
_NOT_VARIED |= {"init_from", "freeze_convolutions", "stream", "max_failures"}
TYPES: dict[str, Any] = {
    "shape": str,
    "scale": float,
    **{name: kind for name, kind in get_type_hints(ModelSettings).items() if name in MODEL_FIELDS},
    **{name: kind for name, kind in get_type_hints(TrainSettings).items() if name not in _NOT_VARIED},
}
"""Types of all settings that may vary, by name."""


def space_of(entries: tuple[str, ...]) -> Space:
    """Returns the default space with the entries (see `parse_entry`) added to it or replacing its own."""
    parsed = [parse_entry(entry) for entry in entries]
    names = [name for name, _ in parsed]
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise UserError(f"--space names {min(duplicates)} twice")
    return DEFAULT_SPACE | dict(parsed)


def parse_entry(entry: str) -> tuple[str, BaseDistribution]:
    """Parses `name=VALUE,VALUE,…`, `name=LOW..HIGH`, `name=LOW..HIGH:log` or, for integers, `name=LOW..HIGH:STEP`.

    Raises UserError that names the mistake, and for an unknown name suggests the nearest one.
    """
    name, equals, text = entry.partition("=")
    if name not in TYPES:
        if name == "conv_widths":
            raise UserError("--space conv_widths: vary shape and scale instead")
        near = get_close_matches(name, TYPES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(sorted(TYPES))}"
        raise UserError(f"--space {name}: not a setting that a sweep can vary; {hint}")
    if not equals or not text:
        raise UserError(f"--space {entry}: write {name}=VALUE,VALUE or {name}=LOW..HIGH")
    if ".." not in text:
        values = tuple(_parse_value(name, value) for value in text.split(","))
        return name, CategoricalDistribution(values)
    bounds, _, suffix = text.partition(":")
    low, high = (_parse_value(name, value) for value in bounds.split("..", 1))
    if TYPES[name] not in (int, float):
        raise UserError(f"--space {entry}: {name} has no range, so list its values")
    if not low < high:
        raise UserError(f"--space {entry}: {low} is not below {high}")
    if suffix == "log" and low <= 0:
        raise UserError(f"--space {entry}: a logarithmic range must start above 0")
    if suffix not in ("", "log") and not (TYPES[name] is int and suffix.isdigit() and int(suffix)):
        raise UserError(f"--space {entry}: after the colon, write log{' or a step' if TYPES[name] is int else ''}")
    if TYPES[name] is int:
        step = int(suffix) if suffix.isdigit() else 1
        return name, IntDistribution(low, high - (high - low) % step, log=suffix == "log", step=step)
    return name, FloatDistribution(low, high, log=suffix == "log")


def _parse_value(name: str, text: str) -> Any:
    """Converts a text to the type of the setting."""
    kind = TYPES[name]
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is str and text not in SHAPES:
            raise ValueError
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError
        return value
    except (KeyError, ValueError):
        expected = {bool: "true or false", int: "a whole number", float: "a number", str: f"one of {', '.join(SHAPES)}"}
        raise UserError(f"--space {name}: {text!r} is not {expected[kind]}") from None


def settings_of(base: TrainSettings, values: dict[str, Any]) -> TrainSettings:
    """Returns the settings with the values of a point of the space. Raises UserError if they are incompatible."""
    rest = dict(values)
    shape, scale = rest.pop("shape", "growing"), rest.pop("scale", 1.0)
    model = {name: rest.pop(name) for name in MODEL_FIELDS & rest.keys()}
    return replace(base, model=replace(base.model, conv_widths=widths(shape, scale), **model), **rest)


def widths(shape: str, scale: float) -> tuple[int, int, int, int]:
    """Returns the channels of the four convolution layers, as multiples of 8."""
    first, second, third, fourth = (max(1, round(scale * width / WIDTH_STEP)) * WIDTH_STEP for width in SHAPES[shape])
    return first, second, third, fourth


def default_values(space: Space, base: TrainSettings) -> dict[str, Any] | None:
    """Returns the point of the space that is the hand-set recipe, or None if the space does not contain it."""
    known = {"shape": "growing", "scale": 1.0}
    recipe = {**vars(base), **vars(base.model), **known}
    values = {name: recipe[name] for name in space}
    return values if all(_contains(space[name], value) for name, value in values.items()) else None


def _contains(distribution: Any, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    low, step = distribution.low, distribution.step
    return low <= value <= distribution.high and not (step and (value - low) % step)


def corners(space: Space) -> list[dict[str, Any]]:
    """Returns points of the space to check before a sweep starts.

    They contain each value of a choice, both ends of a range and the second value of an integer range once. All other
    settings have their first value or lower end.
    """
    ends: dict[str, tuple] = {}
    for name, distribution in space.items():
        known: Any = distribution
        is_choice = isinstance(distribution, CategoricalDistribution)
        ends[name] = known.choices if is_choice else (known.low, known.high)
        if isinstance(distribution, IntDistribution):  # a number that divides the first two values divides all
            ends[name] += (min(distribution.low + distribution.step, distribution.high),)
    first = {name: values[0] for name, values in ends.items()}
    return [{**first, name: value} for name, values in ends.items() for value in dict.fromkeys(values)]


class Search:
    """Optuna's proposals for the objectives CER and multiply-adds, based on the known trials."""

    def __init__(
        self, space: Space, kind: str, ledger: Ledger, *, num_trials: int, seed: int, base: TrainSettings
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed += len(ledger.trials)  # otherwise a resumed sweep would propose the same values again
        sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
        if kind == "tpe":
            num_random = min(10, max(4, num_trials // 3))
            sampler = optuna.samplers.TPESampler(n_startup_trials=num_random, constant_liar=True, seed=seed)
        self.study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])
        self.space, self.asked = space, dict[int, optuna.Trial]()
        for trial in ledger.trials.values():
            self._ask(trial.values, trial.number)
            if trial.state != "unfinished":
                self.learn(trial)
        if not ledger.trials and (hand_set := default_values(space, base)):
            self.study.enqueue_trial(hand_set)

    def _ask(self, values: dict[str, Any], number: int) -> None:
        self.study.enqueue_trial(values)
        self.asked[number] = self.study.ask(self.space)

    def propose(self, number: int) -> dict[str, Any]:
        """Returns the values of the next trial, which gets this number."""
        self.asked[number] = trial = self.study.ask(self.space)
        return trial.params

    def learn(self, trial: Trial) -> None:
        """Passes the result of a trial to Optuna."""
        if trial.state == "failed" or not trial.epochs:
            self.study.tell(self.asked[trial.number], state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(self.asked[trial.number], [trial.best["cer"], trial.multiply_adds / 1e6])
