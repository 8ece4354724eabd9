"""Calibration of confidences: nine in ten texts with a confidence of 0.9 are correct."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

EPSILON = 1e-6
"""Minimum distance of confidences from 0 and 1, where the logit is infinite."""
NUM_QUANTILES = 201
MAX_LABEL_NOISE, LEAST_GAIN = 0.2, 1.35
"""Maximum share of wrong labels that the fit considers, and the gain in log-likelihood from which it assumes any: a
likelihood ratio test at 5 %, with the share at the bound of its range (Self and Liang 1987)."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Maps a decoder's confidence p to the probability that the text is correct: sigmoid(slope * logit(p) + intercept).

    Platt 1999, "Probabilistic outputs for support vector machines", on the logit; 1 / slope is the temperature of Guo
    et al. 2017, arXiv 1706.04599. The slope is positive, so the order of texts by confidence never changes.
    """

    slope: float
    intercept: float
    label_noise: float = 0.0
    """Estimated share of wrong labels, 0 to 1, among the lines of the fit. A correct text equals its label with the
    probability 1 - label_noise: the upper asymptote of the four-parameter logistic model (Barton and Lord 1981)."""
    quantiles: tuple[float, ...] = ()
    """Evenly spaced quantiles, in ascending order, of the calibrated confidences of the lines of the fit."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "quantiles", tuple(self.quantiles))  # JSON yields a list
        if not (np.isfinite([self.slope, self.intercept]).all() and self.slope > 0):
            raise ValueError(f"a calibration needs a positive slope and a finite intercept: {self}")

    def apply(self, confidences: np.ndarray) -> np.ndarray:
        """Returns the calibrated confidences (N), 0 to 1, for a decoder's confidences (N)."""
        return _sigmoid(self.slope * _logit(confidences) + self.intercept)

    def agreement(self, calibrated: np.ndarray) -> np.ndarray:
        """Returns the probability (N) that a text equals its label, for calibrated confidences (N)."""
        return (1 - self.label_noise) * calibrated

    def after(self, first: Calibration) -> Calibration:
        """Returns the calibration that applies `first`, then this one."""
        return replace(self, slope=self.slope * first.slope, intercept=self.slope * first.intercept + self.intercept)

    def review_threshold(self, precision: float) -> tuple[float, float]:
        """Returns the minimum confidence of texts that need no review, and the share of lines that reach it.

        Texts with at least this confidence are correct with the given precision (0 to 1) on average. Both values are
        estimated on the lines of the fit; they are (inf, 0) if even the most confident lines miss the precision.
        """
        quantiles = np.sort(self.quantiles)[::-1]
        passes = np.cumsum(quantiles) / np.arange(1, len(quantiles) + 1) >= precision
        num_passing = int(passes.sum())  # the averages never rise, so the passing lines come first
        return (float(quantiles[num_passing - 1]), num_passing / len(quantiles)) if num_passing else (np.inf, 0.0)


def fit_calibration(confidences: np.ndarray, is_right: np.ndarray) -> Calibration | None:
    """Returns the maximum-likelihood calibration for the confidences (N) of texts and whether each equals its label
    (N).

    Even the most confident texts differ from wrong labels. The fit assumes a share of wrong labels if that explains
    the texts significantly better. The targets are Platt's (n + 1) / (n + 2), so that the fit never reaches certainty.
    Returns None if the confidences are uninformative: no text equals its label, all do, or those that don't have the
    higher confidence.
    """
    from scipy.optimize import minimize  # inference alone does not need scipy

    num_right = int(is_right.sum())
    num_wrong = len(is_right) - num_right
    if not (num_right and num_wrong):
        return None
    targets = np.where(is_right, (num_right + 1) / (num_right + 2), 1 / (num_wrong + 2))
    inputs = np.stack([_logit(confidences), np.ones(len(confidences))], 1)

    def cross_entropy(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Returns the mean loss and its gradient."""
        logits = inputs @ parameters
        loss = np.logaddexp(0, logits) - targets * logits
        return loss.mean(), inputs.T @ (_sigmoid(logits) - targets) / len(targets)

    def noisy_cross_entropy(parameters: np.ndarray) -> float:
        """Returns the mean loss for a slope, an intercept and a share of wrong labels."""
        logits, noise = inputs @ parameters[:2], parameters[2]
        log_agreement = np.log1p(-noise) - np.logaddexp(0, -logits)
        log_difference = np.logaddexp(np.log(max(noise, EPSILON)), np.log1p(-noise) - np.logaddexp(0, logits))
        return float(-(targets * log_agreement + (1 - targets) * log_difference).mean())

    plain = minimize(cross_entropy, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-8})
    slope, intercept = plain.x.tolist()
    label_noise = 0.0
    if slope <= 0:
        return None
    bounds = [(None, None), (None, None), (0, MAX_LABEL_NOISE)]
    noisy = minimize(noisy_cross_entropy, [slope, intercept, 0.01], method="L-BFGS-B", bounds=bounds)
    if noisy.x[0] > 0 and len(targets) * (plain.fun - noisy.fun) > LEAST_GAIN:
        slope, intercept, label_noise = noisy.x.tolist()
    calibration = Calibration(slope=slope, intercept=intercept, label_noise=label_noise)
    quantiles = np.quantile(calibration.apply(confidences), np.linspace(0, 1, NUM_QUANTILES)).round(6).tolist()
    return replace(calibration, quantiles=tuple(quantiles))


def calibration_error(confidences: np.ndarray, is_right: np.ndarray, *, num_bins: int = 10) -> float:
    """Returns the expected calibration error, 0 to 1 (Nguyen and O'Connor 2015, arXiv 1508.05154).

    It is the mean gap between confidence and accuracy over bins of equally many texts. Raises ValueError if there are
    no texts.
    """
    if not len(confidences):
        raise ValueError("the calibration error needs at least one text")
    parts = bins(confidences, num_bins=num_bins)
    gaps = [len(part) * abs(confidences[part].mean() - is_right[part].mean()) for part in parts]
    return float(sum(gaps) / len(confidences))


def bins(confidences: np.ndarray, *, num_bins: int = 10) -> list[np.ndarray]:
    """Returns the indices of the texts in bins of equal size, from the least to the most confident."""
    return [part for part in np.array_split(np.argsort(confidences, kind="stable"), num_bins) if len(part)]


def review_trade_off(confidences: np.ndarray, is_right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the share of texts that pass each threshold (M), and the share of correct ones among them, 0 to 1.

    The thresholds are the distinct confidences in descending order.
    """
    order = np.argsort(-np.asarray(confidences), kind="stable")
    last_of_each_value = np.flatnonzero(np.append(np.diff(np.asarray(confidences)[order]) != 0, True))
    passed = last_of_each_value + 1
    return passed / len(order), np.cumsum(np.asarray(is_right)[order])[last_of_each_value] / passed


def errors_before_and_after(confidences: np.ndarray, is_right: np.ndarray) -> tuple[float, float]:
    """Returns the calibration errors of confidences (N) before and after calibration, by two-fold cross-validation."""
    is_odd = np.arange(len(confidences)) % 2 == 1
    calibrated = np.array(confidences, np.float64)
    for half in (is_odd, ~is_odd):
        if calibration := fit_calibration(confidences[~half], is_right[~half]):
            calibrated[half] = calibration.agreement(calibration.apply(confidences[half]))
    return calibration_error(confidences, is_right), calibration_error(calibrated, is_right)


def _logit(probabilities: np.ndarray) -> np.ndarray:
    clipped = np.clip(np.asarray(probabilities, np.float64), EPSILON, 1 - EPSILON)
    return np.log(clipped) - np.log1p(-clipped)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))
