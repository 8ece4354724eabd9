"""Report of a sweep: a CSV table and a self-contained HTML page with the effect of each setting."""

import statistics
from typing import Any

import matplotlib
import numpy as np
import optuna
from matplotlib.figure import Figure
from scipy import stats

from hwr_ray.files import storage
from hwr_ray.reporting.html import BAD, GOOD, PALE, data_uri, new_figure, render
from hwr_ray.training.settings import TrainSettings
from hwr_ray.tuning.pareto import choose, pareto_front
from hwr_ray.tuning.search_space import Space, default_values
from hwr_ray.tuning.trials import Ledger, Trial, table

FEW_TRIALS = 4
"""Minimum number of trials for showing the effects of settings."""
MOST_GROUPS = 4
"""Maximum number of values to show one by one; the values of a setting with more are grouped into thirds."""


def write_sweep_report(out: str, ledger: Ledger, space: Space, base: TrainSettings, figures: dict[str, Any]) -> None:
    """Writes `trials.csv` and `report.html` of a sweep to the folder `out`.

    `figures` contains `choose`, `chosen` (the number of the chosen trial, or None), `decoder` (the figures of its
    decoder fit) and `repeats` (the CERs of the repeats, by trial number).
    """
    trials, finished = [trial for _, trial in sorted(ledger.trials.items())], ledger.in_state("finished")
    points = [(trial.multiply_adds / 1e6, trial.best["cer"]) for trial in finished]
    members = [finished[i] for i in pareto_front(points)]
    rows = table(trials, on_pareto_front={trial.number for trial in members}, chosen=figures["chosen"])
    storage.write_bytes(storage.join(out, "trials.csv"), rows.to_csv(index=False).encode())
    overheads = [trial.overhead for trial in finished if trial.overhead is not None]
    epoch, known = comparable(ledger)
    page = render(
        "sweep.html",
        figures=figures,
        names=list(space),
        trials=sorted(trials, key=lambda t: (t.state != "finished", t.best.get("cer", 2.0), t.number)),
        counts={state: len(ledger.in_state(state)) for state in ("finished", "stopped", "failed", "unfinished")},
        chosen=ledger.trials.get(figures["chosen"]),
        members={trial.number for trial in members},
        against=against_hand_set(finished, space, base),
        repeats={number: stats for number, cers in figures["repeats"].items() if (stats := spread(cers))},
        overhead=statistics.median(overheads) if overheads else None,
        curves=_plot_curves(trials, figures["chosen"]) if any(trial.epochs for trial in trials) else None,
        front=_plot_front(ledger, members, figures["chosen"]) if finished else None,
        parallel=_plot_parallel(known, space) if known else None,
        effects=effects(known, space) if len(known) >= FEW_TRIALS else [],
        epoch=epoch,
        few_trials=FEW_TRIALS,
    )
    storage.write_bytes(storage.join(out, "report.html"), page.encode())


def spread(cers: list[float]) -> dict[str, float] | None:
    """Returns number, mean, standard deviation (0 for a single value) and extremes of the CERs; None for no CERs."""
    if not cers:
        return None
    deviation = statistics.stdev(cers) if len(cers) > 1 else 0.0
    return {
        "number": len(cers),
        "mean": statistics.mean(cers),
        "deviation": deviation,
        "least": min(cers),
        "most": max(cers),
    }


def hand_set_trial(trials: list[Trial], space: Space, base: TrainSettings) -> Trial | None:
    """Returns the trial of the hand-set recipe, or None."""
    values = default_values(space, base)
    return next((trial for trial in trials if trial.values == values), None)


def against_hand_set(finished: list[Trial], space: Space, base: TrainSettings) -> dict[str, Trial | None] | None:
    """Returns the trial of the hand-set recipe and the best other trial that costs no more, if there is one; None if
    the hand-set recipe is not among the finished trials."""
    hand_set = hand_set_trial(finished, space, base)
    if not hand_set:
        return None
    most = hand_set.multiply_adds
    others = [trial for trial in finished if trial is not hand_set and trial.multiply_adds <= most]
    points = [(trial.multiply_adds, trial.best["cer"]) for trial in others]
    return {"hand_set": hand_set, "best": others[choose(points, most)] if others else None}


def comparable(ledger: Ledger) -> tuple[int, list[tuple[Trial, float]]]:
    """Returns the last epoch that all trials except failed ones reached, and these trials with their CER after it."""
    trials = [trial for trial in ledger.in_state("finished", "stopped") if trial.epochs]
    epoch = min((len(trial.epochs) for trial in trials), default=0)
    return epoch, [(trial, trial.epochs[epoch - 1]["cer"]) for trial in trials]


def effects(known: list[tuple[Trial, float]], space: Space) -> list[dict[str, Any]]:
    """Returns the effect on the CER of each setting that varies, the most important setting first.

    `importance` is the setting's share of the variance of the CER without interactions (fANOVA, Hutter et al. 2014), or
    None if all CERs are equal. `groups` are the groups of trials with their mean CER and its 95 % t interval.
    """
    varied = [name for name in space if len({trial.values[name] for trial, _ in known}) > 1]
    shares = importances(known, space, varied)
    rows = []
    for name in varied:
        groups: dict[str, list[float]] = {}
        for label, (_, cer) in zip(group_labels([t.values[name] for t, _ in known]), known, strict=True):
            groups.setdefault(label, []).append(cer)
        rows.append(
            {
                "name": name,
                "importance": shares.get(name),
                "groups": [
                    {"label": label, "number": len(cers), "mean": statistics.mean(cers), "interval": _interval(cers)}
                    for label, cers in sorted(groups.items(), key=lambda group: statistics.mean(group[1]))
                ],
            }
        )
    return sorted(rows, key=lambda row: -(row["importance"] or 0))


def importances(known: list[tuple[Trial, float]], space: Space, varied: list[str]) -> dict[str, float]:
    """Returns shares of the variance of the CER by Optuna's fANOVA, with a sum of at most 1; empty if all are equal."""
    if not varied or len({cer for _, cer in known}) < 2:
        return {}
    study = optuna.create_study()
    for trial, cer in known:
        study.add_trial(optuna.trial.create_trial(params=trial.values, distributions=space, value=cer))
    return optuna.importance.FanovaImportanceEvaluator(seed=0).evaluate(study, params=varied)


def group_labels(values: list[Any]) -> list[str]:
    """Returns the group of each value: the value itself if it is a string or distinct values are few, else its third
    by size."""
    distinct = sorted(set(values), key=str)
    if len(distinct) <= MOST_GROUPS or isinstance(values[0], str):
        return [_short(value) for value in values]
    thirds = np.searchsorted(np.quantile(values, [1 / 3, 2 / 3]), values)
    groups = [[value for value, other in zip(values, thirds, strict=True) if other == third] for third in range(3)]
    labels = [f"{_short(min(group))} to {_short(max(group))}" if group else "" for group in groups]
    return [labels[third] for third in thirds]


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _interval(cers: list[float]) -> tuple[float, float] | None:
    """Returns the 95 % t interval of the mean; None for a single value."""
    if len(cers) < 2:
        return None
    half = stats.t.ppf(0.975, len(cers) - 1) * statistics.stdev(cers) / len(cers) ** 0.5
    return statistics.mean(cers) - half, statistics.mean(cers) + half


def _plot_curves(trials: list[Trial], chosen: int | None) -> str:
    figure, axes = new_figure()
    for trial in trials:
        is_chosen = trial.number == chosen
        color = BAD if is_chosen else GOOD if trial.state == "finished" else PALE
        epochs, cers = ([row[name] for row in trial.epochs] for name in ("epoch", "cer"))
        style: dict[str, Any] = {"lw": 2.2 if is_chosen else 1, "zorder": 3 if is_chosen else 2}
        axes.plot(epochs, [100 * cer for cer in cers], color=color, marker=".", ms=4, **style)
    for color, label in ((BAD, "chosen"), (GOOD, "finished"), (PALE, "stopped, failed or unfinished")):
        axes.plot([], [], color=color, label=label)
    axes.set(xlabel="epoch", ylabel="validation CER in %", yscale="log")
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.legend(frameon=False)
    return data_uri(figure)


def _plot_front(ledger: Ledger, members: list[Trial], chosen: int | None) -> str:
    figure, axes = new_figure()
    for state, color in (("stopped", PALE), ("finished", GOOD)):
        trials = [trial for trial in ledger.in_state(state) if trial.epochs]
        axes.scatter(*_coordinates(trials), color=color, s=22, label=state, zorder=2)
    axes.step(*_coordinates(members), where="post", color=GOOD, lw=1, label="Pareto front")
    if chosen is not None:
        trial = ledger.trials[chosen]
        axes.scatter(*_coordinates([trial]), color=BAD, s=60, marker="D", label="chosen", zorder=3)
    for trial in members:
        (x,), (y,) = _coordinates([trial])
        axes.annotate(str(trial.number), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="million multiply-adds per line", ylabel="lowest CER in %")
    axes.legend(frameon=False)
    return data_uri(figure)


def _coordinates(trials: list[Trial]) -> tuple[list[float], list[float]]:
    return [trial.multiply_adds / 1e6 for trial in trials], [100 * trial.best["cer"] for trial in trials]


def _plot_parallel(known: list[tuple[Trial, float]], space: Space) -> str:
    columns: dict[str, list[Any]] = {name: [trial.values[name] for trial, _ in known] for name in space}
    columns = {name: values for name, values in columns.items() if len(set(values)) > 1}
    columns["M multiply-adds"] = [trial.multiply_adds / 1e6 for trial, _ in known]
    columns["CER %"] = [100 * cer for _, cer in known]
    is_log = {name for name in columns if getattr(space.get(name), "log", False)}
    figure = Figure(figsize=(1.5 * len(columns) + 1, 3.6), layout="constrained")
    axes: Any = figure.subplots()
    heights = {name: _heights(values, is_log=name in is_log) for name, values in columns.items()}
    order = np.argsort(np.argsort(columns["CER %"])) / max(1, len(known) - 1)
    for i, (trial, _) in enumerate(known):
        line = [heights[name][i] for name in columns]
        width = 1.6 if trial.state == "finished" else 0.8
        axes.plot(line, color=matplotlib.colormaps["viridis"](0.25 + 0.6 * float(order[i])), lw=width, alpha=0.85)
    for x, (name, values) in enumerate(columns.items()):
        axes.axvline(x, color="black", lw=0.8)
        labels = {round(float(height), 3): _short(value) for height, value in zip(heights[name], values, strict=True)}
        if not isinstance(values[0], str | bool):
            labels = {height: labels[height] for height in (min(labels), max(labels))}
        for height, text in labels.items():
            axes.annotate(text, (x, height), xytext=(4, 2), textcoords="offset points", fontsize=8)
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) - 0.6)
    axes.spines[:].set_visible(False)
    return data_uri(figure)


def _heights(values: list[Any], *, is_log: bool) -> np.ndarray:
    """Returns the positions of the values on an axis from 0 to 1; strings are equally spaced."""
    if isinstance(values[0], str):
        distinct = sorted(set(values))
        numbers = np.array([distinct.index(value) for value in values], float)
    else:
        numbers = np.log(values) if is_log else np.array(values, float)
    reach = numbers.max() - numbers.min()
    return (numbers - numbers.min()) / reach if reach else np.full(len(numbers), 0.5)
