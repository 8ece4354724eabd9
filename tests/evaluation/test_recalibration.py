"""Tests of the calibration of a bundle on other lines, with predictions whose true probability is known."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from hwr_ray.decoding.calibration import Calibration
from hwr_ray.errors import UserError
from hwr_ray.evaluation.evaluate import save_recalibrated
from hwr_ray.recognition.bundle import load_bundle, save_bundle

LINES = {"data": "0" * 64, "split": "test", "num_lines": 20_000}
FIRST = Calibration(slope=0.5, intercept=1.0, quantiles=(0.1, 0.9))


def predictions(*, label_noise: float, number: int = 20_000) -> tuple[np.ndarray, np.ndarray, pa.Table]:
    """Returns a decoder's confidences, the true ones, and predictions whose confidences FIRST calibrated."""
    rng = np.random.default_rng(0)
    logits = rng.normal(2, 2, number)
    true = 1 / (1 + np.exp(-logits))
    raw = 1 / (1 + np.exp(-1.5 * logits))
    equals_label = (rng.random(number) < true) & (rng.random(number) >= label_noise)
    return raw, true, pa.table({"confidence": FIRST.apply(raw), "num_edits": 1 - equals_label.astype(int)})


@pytest.mark.parametrize("label_noise", [0, 0.05])
def test_a_bundle_gets_the_true_confidences_of_the_lines(tiny_bundle, tmp_path, label_noise):
    raw, true, table = predictions(label_noise=label_noise)
    path, out = str(tmp_path / "before"), str(tmp_path / "after")
    save_bundle(replace(tiny_bundle, decoding=replace(tiny_bundle.decoding, greedy_calibration=FIRST)), path)
    save_recalibrated(path, out, table, lines=LINES, greedy=False)  # without a language model it is greedy all the same
    before, after = load_bundle(path), load_bundle(out)
    calibration = after.decoding.greedy_calibration
    assert np.abs(calibration.apply(raw) - true).max() < 0.05
    assert calibration.label_noise == pytest.approx(label_noise, abs=0.01)
    assert after.decoding.label_noise() == calibration.label_noise
    origin = {"model_id": before.model_id, **LINES, "label_noise": calibration.label_noise}
    assert after.training["recalibration"] == origin
    assert after.model_id != before.model_id and after.decoding.beam_calibration is None
    threshold, _ = after.decoding.review_threshold(0.95)
    assert true[calibration.apply(raw) >= threshold].mean() == pytest.approx(0.95, abs=0.01)


def test_lines_that_are_all_right_or_all_wrong_are_refused(tiny_bundle, tmp_path):
    save_bundle(tiny_bundle, str(tmp_path / "before"))
    for edits in (0, 2):
        table = pa.table({"confidence": np.linspace(0.1, 0.9, 30), "num_edits": [edits] * 30})
        with pytest.raises(UserError, match=f"30 lines, {30 if edits == 0 else 0} of them right, do not show how far"):
            save_recalibrated(str(tmp_path / "before"), str(tmp_path / "after"), table, lines=LINES, greedy=True)
        assert not (tmp_path / "after").exists()
