"""Confidences that mean what they say: of the lines at 0.9, nine in ten are read right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EPSILON = 1e-6
"""Confidences are kept this far from 0 and 1, where the logit is infinite."""
NUM_QUANTILES = 201


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Maps a decoder's confidence to the share of right readings: sigmoid(slope * logit(p) + intercept).

    Platt 1999, "Probabilistic outputs for support vector machines", on the logit; 1 / slope is the temperature of Guo
    et al. 2017, arXiv 1706.04599. The slope is positive: the order of readings by confidence never changes.
    """

    slope: float
    intercept: float
    quantiles: tuple[float, ...] = ()
    """Of the calibrated confidences of the lines it was fitted on, from the least to the most, evenly spaced."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "quantiles", tuple(self.quantiles))  # a list, as JSON has it
        if not (np.isfinite([self.slope, self.intercept]).all() and self.slope > 0):
            raise ValueError(f"a calibration needs a positive slope and a finite intercept: {self}")

    def apply(self, confidences: np.ndarray) -> np.ndarray:
        """Calibrated confidences (N), 0 to 1, of the decoder's (N)."""
        return _sigmoid(self.slope * _logit(confidences) + self.intercept)

    def review_threshold(self, precision: float) -> tuple[float, float]:
        """The least confidence from which on readings are right with the precision (0 to 1) on average, and the share
        of lines that reach it, both by the lines of the fit. (inf, 0) where even the surest lines fall short."""
        quantiles = np.sort(self.quantiles)[::-1]
        passes = np.cumsum(quantiles) / np.arange(1, len(quantiles) + 1) >= precision
        num_passing = int(passes.sum())  # the averages only fall: they pass up to some line
        return (float(quantiles[num_passing - 1]), num_passing / len(quantiles)) if num_passing else (np.inf, 0.0)


def fit_calibration(confidences: np.ndarray, is_right: np.ndarray) -> Calibration | None:
    """The calibration of the largest likelihood on readings (N) of which is known whether they are right (N).

    The targets are Platt's (n + 1) / (n + 2), so that readings that are all right do not promise certainty. None
    where readings show no use of the confidence: none is right or none wrong, or the wrong ones are the surer.
    """
    from scipy.optimize import minimize  # not in the processes that only read

    num_right = int(is_right.sum())
    num_wrong = len(is_right) - num_right
    if not (num_right and num_wrong):
        return None
    targets = np.where(is_right, (num_right + 1) / (num_right + 2), 1 / (num_wrong + 2))
    inputs = np.stack([_logit(confidences), np.ones(len(confidences))], 1)

    def cross_entropy(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """The mean loss and its gradient."""
        logits = inputs @ parameters
        loss = np.logaddexp(0, logits) - targets * logits
        return loss.mean(), inputs.T @ (_sigmoid(logits) - targets) / len(targets)

    slope, intercept = minimize(cross_entropy, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-8}).x.tolist()
    if slope <= 0:
        return None
    calibrated = Calibration(slope=slope, intercept=intercept).apply(confidences)
    quantiles = np.quantile(calibrated, np.linspace(0, 1, NUM_QUANTILES)).round(6).tolist()
    return Calibration(slope=slope, intercept=intercept, quantiles=tuple(quantiles))


def calibration_error(confidences: np.ndarray, is_right: np.ndarray, *, num_bins: int = 10) -> float:
    """Expected calibration error, 0 to 1: the mean gap between confidence and share of right readings, over bins of
    equally many readings (Nguyen and O'Connor 2015, arXiv 1508.05154). Raises ValueError without readings."""
    if not len(confidences):
        raise ValueError("no reading to measure the calibration on")
    parts = bins(confidences, num_bins=num_bins)
    gaps = [len(part) * abs(confidences[part].mean() - is_right[part].mean()) for part in parts]
    return float(sum(gaps) / len(confidences))


def bins(confidences: np.ndarray, *, num_bins: int = 10) -> list[np.ndarray]:
    """Positions of the readings in bins of equally many, from the least to the most confident."""
    return [part for part in np.array_split(np.argsort(confidences, kind="stable"), num_bins) if len(part)]


def review_trade_off(confidences: np.ndarray, is_right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each threshold, from the highest confidence down (M): the share of the readings that pass, and that of those
    which are right, 0 to 1."""
    order = np.argsort(-np.asarray(confidences), kind="stable")
    last_of_a_value = np.flatnonzero(np.append(np.diff(np.asarray(confidences)[order]) != 0, True))
    passed = last_of_a_value + 1
    return passed / len(order), np.cumsum(np.asarray(is_right)[order])[last_of_a_value] / passed


def errors_before_and_after(confidences: np.ndarray, is_right: np.ndarray) -> tuple[float, float]:
    """Calibration errors of readings (N), told and calibrated, each half of them by what the other half says."""
    is_odd = np.arange(len(confidences)) % 2 == 1
    calibrated = np.array(confidences, np.float64)
    for half in (is_odd, ~is_odd):
        if calibration := fit_calibration(confidences[~half], is_right[~half]):
            calibrated[half] = calibration.apply(confidences[half])
    return calibration_error(confidences, is_right), calibration_error(calibrated, is_right)


def _logit(probabilities: np.ndarray) -> np.ndarray:
    kept = np.clip(np.asarray(probabilities, np.float64), EPSILON, 1 - EPSILON)
    return np.log(kept) - np.log1p(-kept)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))
