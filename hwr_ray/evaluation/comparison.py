"""Comparison of two evaluations of the same lines by a paired bootstrap."""

from typing import Any

import numpy as np
import pyarrow as pa

from hwr_ray.errors import UserError
from hwr_ray.text.metrics import LEAST_WRONG_LINES

NUM_SAMPLES = 10_000


def compare(predictions: pa.Table, baseline: pa.Table, *, seed: int) -> dict[str, Any]:
    """Returns the differences from the baseline in CER and exact match, with 95 % intervals and two-sided p-values.

    Both tables have the columns `id`, `text` and `num_edits`. The bootstrap draws lines with replacement, in pairs
    (Efron and Tibshirani 1993; for error rates Bisani and Ney 2004). Intervals and p-values are None if fewer than
    LEAST_WRONG_LINES lines differ. Raises UserError if the two tables are not of the same lines.
    """
    predictions, baseline = predictions.sort_by("id"), baseline.sort_by("id")
    if predictions["id"] != baseline["id"] or predictions["text"] != baseline["text"]:
        raise UserError("the two evaluations are not of the same lines")
    lengths = np.array([len(text) for text in predictions["text"].to_pylist()])
    edits, baseline_edits = (table["num_edits"].to_numpy() for table in (predictions, baseline))
    # Lines equal in all three are drawn as one count, so the cost does not grow with the number of lines.
    kinds, numbers = np.unique(np.stack([lengths, edits, baseline_edits], axis=1), axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(lengths), numbers / len(lengths), size=NUM_SAMPLES)
    more, right = kinds[:, 1] - kinds[:, 2], (kinds[:, 1] == 0).astype(int) - (kinds[:, 2] == 0)
    characters = np.maximum(drawn @ kinds[:, 0], 1)
    result: dict[str, Any] = {
        "num_lines": len(lengths),
        "num_better": int((edits < baseline_edits).sum()),
        "num_worse": int((edits > baseline_edits).sum()),
    }
    is_exact, is_exact_in_baseline = edits == 0, baseline_edits == 0
    for name, difference, samples, differing in (
        ("cer", numbers @ more / max(1, lengths.sum()), drawn @ more / characters, edits != baseline_edits),
        ("exact_match", numbers @ right / len(lengths), drawn @ right / len(lengths), is_exact != is_exact_in_baseline),
    ):
        is_enough = differing.sum() >= LEAST_WRONG_LINES
        p_value = min(1.0, 2 * float(min((samples <= 0).mean(), (samples >= 0).mean())))
        result[name] = float(difference)
        result[f"{name}_ci"] = [float(end) for end in np.quantile(samples, [0.025, 0.975])] if is_enough else None
        result[f"{name}_p_value"] = max(p_value, 1 / NUM_SAMPLES) if is_enough else None
    return result


def verdict(comparison: dict[str, Any]) -> str:
    """Returns the result of `compare` in one sentence."""
    if comparison["cer_ci"] is None:
        return f"too few lines differ to test for significance: {_counts(comparison)}"
    better = "better" if comparison["cer"] < 0 else "worse"
    is_chance = comparison["cer_p_value"] >= 0.05
    conclusion = f"not significant (p = {comparison['cer_p_value']:.2g})" if is_chance else f"significantly {better}"
    low, high = (100 * end for end in comparison["cer_ci"])
    points = f"the CER differs by {100 * comparison['cer']:+.2f} points ({low:+.2f} to {high:+.2f})"
    return f"{points}: {conclusion}; {_counts(comparison)}"


def _counts(comparison: dict[str, Any]) -> str:
    return f"{comparison['num_better']} lines with fewer edits, {comparison['num_worse']} with more"
