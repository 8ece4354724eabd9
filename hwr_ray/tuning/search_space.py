"""What a sweep varies, and the next point to try: training settings, with the widths as a shape times a scale."""

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
"""Convolution widths at the scale 1: where a network has its channels."""
WIDTH_STEP = 8
"""Widths are multiples of it: what hardware computes in one go."""

DEFAULT_SPACE: Space = {
    "shape": CategoricalDistribution(tuple(SHAPES)),
    "scale": FloatDistribution(0.5, 1.5, log=True),
    "gru_size": IntDistribution(64, 224, step=32),
    "learning_rate": FloatDistribution(1e-3, 1e-2, log=True),
    "dropout": FloatDistribution(0.0, 0.4),
}

MODEL_FIELDS = {field.name for field in fields(ModelSettings)} - {"conv_widths"}
# Flags of the sweep itself, or the same for all of its trials.
_NOT_VARIED = {"data", "out", "model", "epochs", "num_workers", "workers", "wandb_project"}
_NOT_VARIED |= {"num_folds", "fold", "label_list", "label_column", "checkpoint_minutes", "keep"}
_NOT_VARIED |= {"init_from", "freeze_convolutions", "stream", "max_failures"}
TYPES: dict[str, Any] = {
    "shape": str,
    "scale": float,
    **{name: kind for name, kind in get_type_hints(ModelSettings).items() if name in MODEL_FIELDS},
    **{name: kind for name, kind in get_type_hints(TrainSettings).items() if name not in _NOT_VARIED},
}
"""All that may be varied, with its type."""


def space_of(entries: tuple[str, ...]) -> Space:
    """The default space with some entries in place of its own or added: see `parse_entry`."""
    given = [parse_entry(entry) for entry in entries]
    names = [name for name, _ in given]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"--space names {min(twice)} twice")
    return DEFAULT_SPACE | dict(given)


def parse_entry(entry: str) -> tuple[str, BaseDistribution]:
    """`name=VALUE,VALUE,…`, `name=LOW..HIGH`, `name=LOW..HIGH:log` or, of whole numbers, `name=LOW..HIGH:STEP`.

    Raises UserError that names what is wrong, with the nearest name for one that is none.
    """
    name, equals, text = entry.partition("=")
    if name not in TYPES:
        if name == "conv_widths":
            raise UserError("--space conv_widths: vary shape and scale instead")
        near = get_close_matches(name, TYPES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(TYPES))}"
        raise UserError(f"--space {name}: it is no setting that a sweep can vary; {hint}")
    if not equals or not text:
        raise UserError(f"--space {entry}: write {name}=VALUE,VALUE or {name}=LOW..HIGH")
    if ".." not in text:
        values = tuple(_read(name, value) for value in text.split(","))
        return name, CategoricalDistribution(values)
    bounds, _, how = text.partition(":")
    low, high = (_read(name, value) for value in bounds.split("..", 1))
    if TYPES[name] not in (int, float):
        raise UserError(f"--space {entry}: {name} has no order, so list its values")
    if not low < high:
        raise UserError(f"--space {entry}: {low} is not below {high}")
    if how == "log" and low <= 0:
        raise UserError(f"--space {entry}: a range on a logarithmic scale begins above 0")
    if how not in ("", "log") and not (TYPES[name] is int and how.isdigit() and int(how)):
        raise UserError(f"--space {entry}: after the colon stands log{', or a step' if TYPES[name] is int else ''}")
    if TYPES[name] is int:
        step = int(how) if how.isdigit() else 1
        return name, IntDistribution(low, high - (high - low) % step, log=how == "log", step=step)
    return name, FloatDistribution(low, high, log=how == "log")


def _read(name: str, text: str) -> Any:
    """A value in the type of the setting."""
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
        wanted = {bool: "true or false", int: "a whole number", float: "a number", str: f"one of {', '.join(SHAPES)}"}
        raise UserError(f"--space {name}: {text!r} is not {wanted[kind]}") from None


def settings_of(base: TrainSettings, values: dict[str, Any]) -> TrainSettings:
    """The settings with some values of a space in place of their own. Raises UserError where they don't go together."""
    rest = dict(values)
    shape, scale = rest.pop("shape", "growing"), rest.pop("scale", 1.0)
    model = {name: rest.pop(name) for name in MODEL_FIELDS & rest.keys()}
    return replace(base, model=replace(base.model, conv_widths=widths(shape, scale), **model), **rest)


def widths(shape: str, scale: float) -> tuple[int, int, int, int]:
    """Channels of the four convolution layers, as multiples of 8."""
    first, second, third, fourth = (max(1, round(scale * width / WIDTH_STEP)) * WIDTH_STEP for width in SHAPES[shape])
    return first, second, third, fourth


def default_values(space: Space, base: TrainSettings) -> dict[str, Any] | None:
    """The point of the space that is the hand-set recipe, or None where the space has no such point."""
    known = {"shape": "growing", "scale": 1.0}
    recipe = {**vars(base), **vars(base.model), **known}
    values = {name: recipe[name] for name in space}
    return values if all(_holds(space[name], value) for name, value in values.items()) else None


def _holds(distribution: Any, value: Any) -> bool:
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    low, step = distribution.low, distribution.step
    return low <= value <= distribution.high and not (step and (value - low) % step)


def corners(space: Space) -> list[dict[str, Any]]:
    """Points of the space to try before a sweep starts: once each value of each choice, both ends of each range and the
    whole number after its lower end, the other settings at their first value or lower end."""
    ends: dict[str, tuple] = {}
    for name, distribution in space.items():
        known: Any = distribution
        is_choice = isinstance(distribution, CategoricalDistribution)
        ends[name] = known.choices if is_choice else (known.low, known.high)
        if isinstance(distribution, IntDistribution):  # what divides both divides all
            ends[name] += (min(distribution.low + distribution.step, distribution.high),)
    first = {name: values[0] for name, values in ends.items()}
    return [{**first, name: value} for name, values in ends.items() for value in dict.fromkeys(values)]


class Search:
    """Optuna's proposals, with what the known trials taught it; two objectives: CER and multiply-adds."""

    def __init__(
        self, space: Space, kind: str, ledger: Ledger, *, num_trials: int, seed: int, base: TrainSettings
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed += len(ledger.trials)  # else a sweep that goes on would propose the same again
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
        """The values of the next trial, which gets that number."""
        self.asked[number] = trial = self.study.ask(self.space)
        return trial.params

    def learn(self, trial: Trial) -> None:
        """Takes in what came of a trial."""
        if trial.state == "failed" or not trial.epochs:
            self.study.tell(self.asked[trial.number], state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(self.asked[trial.number], [trial.best["cer"], trial.multiply_adds / 1e6])
