"""Tests decoding with a language model: the fit, the readings, and saving it in a bundle."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hwr_ray.decoding.calibration import Calibration, calibration_error
from hwr_ray.decoding.decoder import Decoding, Reading, calibrated, fit_decoding
from hwr_ray.decoding.lexicon import Lexicon
from hwr_ray.decoding.ngram import fit_language_model
from hwr_ray.errors import UserError
from hwr_ray.images.lines import Canvas
from hwr_ray.recognition.bundle import load_bundle, save_bundle
from hwr_ray.recognition.bundle_config import LANGUAGE_MODEL, SHIPPED
from hwr_ray.recognition.recognizer import Recognizer, read_log_probs
from hwr_ray.text.codec import Codec

CODEC = Codec("ABC")
FRAMES = 8
TEXTS = ["ABC", "CAB", "BCA"]
MODEL = fit_language_model(dict.fromkeys(TEXTS, 100), CODEC, order=3, min_count=1)
DECODING = Decoding(language_model=MODEL, lm_weight=0.5)


def lines_of(texts: list[str], *, doubt: float, seed: int = 0) -> np.ndarray:
    """Returns log-probabilities (N, T, C) that favor the texts, except in doubtful frames.

    A frame is doubtful with probability `doubt`: it favors the next letter of the charset over the correct one.
    """
    rng = np.random.default_rng(seed)
    probabilities = np.full((len(texts), FRAMES, CODEC.num_classes), 0.01)
    for line, text in zip(probabilities, texts, strict=True):
        for position, label in enumerate(CODEC.encode(text)):
            is_doubtful = rng.random() < doubt
            line[2 * position, label] = 0.44 if is_doubtful else 0.95
            if is_doubtful:
                line[2 * position, label % 3 + 1] = 0.53
        line[[t for t in range(FRAMES) if t % 2 or t >= 2 * len(text)], 0] = 0.95
    return np.log(probabilities / probabilities.sum(-1, keepdims=True)).astype(np.float32)


def greedy(log_probs: np.ndarray) -> list[Reading]:
    return read_log_probs(torch.from_numpy(log_probs), CODEC)


def test_the_language_model_mends_doubtful_letters():
    lines = lines_of(TEXTS * 20, doubt=0.2)
    wrong = sum(reading.text != text for reading, text in zip(greedy(lines), TEXTS * 20, strict=True))
    decoded = DECODING.search(lines, CODEC)
    assert wrong > 10
    assert sum(reading.text != text for reading, text in zip(decoded, TEXTS * 20, strict=True)) < wrong / 2


def test_the_fit_takes_the_language_model_where_it_reads_better_and_leaves_it_where_not():
    lines = lines_of(TEXTS * 20, doubt=0.2)
    decoding = fit_decoding(lines, greedy(lines), TEXTS * 20, CODEC, MODEL)
    assert decoding.language_model is MODEL and decoding.lm_weight > 0
    others = ["CBA", "BAC", "ACB"] * 20  # unknown to the language model, and no frame is doubtful
    certain = lines_of(others, doubt=0)
    decoding = fit_decoding(certain, greedy(certain), others, CODEC, MODEL)
    assert decoding.language_model is None


def test_alternatives_are_the_next_candidates_with_shares_of_1():
    (reading,) = DECODING.search(lines_of(["ABC"], doubt=1, seed=1), CODEC, num_best=4)
    assert len(reading.alternatives) == 3
    shares = [reading.confidence, *(share for _, share in reading.alternatives)]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1 + 1e-6
    assert reading.text not in [text for text, _ in reading.alternatives]


def test_a_known_name_is_raised_above_a_likelier_reading():
    line = lines_of(["BBC"], doubt=0.9, seed=4)
    (before,) = DECODING.search(line, CODEC, num_best=8)
    known = before.alternatives[0][0]
    (after,) = replace(DECODING, lm_weight=1.0).search(line, CODEC, lexicon=Lexicon({known: 1}))
    assert before.text != known == after.text


def test_a_search_without_a_language_model_is_refused():
    with pytest.raises(ValueError, match="needs a language model"):
        Decoding().search(lines_of(["ABC"], doubt=0), CODEC)


def test_calibration_brings_confidence_and_truth_together_on_other_lines():
    fitted, fresh = (TEXTS * 200, TEXTS * 200)
    decoding = fit_decoding(lines := lines_of(fitted, doubt=0.25, seed=1), greedy(lines), fitted, CODEC, MODEL)
    lines = lines_of(fresh, doubt=0.25, seed=2)
    errors = []
    for calibration in (None, decoding.beam_calibration):
        readings = replace(decoding, beam_calibration=calibration).search(lines, CODEC)
        is_right = np.array([reading.text == text for reading, text in zip(readings, fresh, strict=True)])
        errors.append(calibration_error(np.array([reading.confidence for reading in readings]), is_right))
    before, after = errors
    assert after < before and after < 0.05


def test_calibrating_nothing_or_without_a_calibration_changes_nothing():
    readings = [Reading("A", 0.4)]
    assert calibrated(readings, None) is readings
    assert calibrated([], Calibration(slope=1, intercept=0)) == []


def test_a_bundle_keeps_its_decoding(tiny_bundle, tmp_path):
    decoding = replace(DECODING, length_bonus=0.5, beam_calibration=Calibration(slope=0.7, intercept=-0.2))
    save_bundle(replace(tiny_bundle, decoding=decoding), str(tmp_path / "with"))
    save_bundle(tiny_bundle, str(tmp_path / "without"))
    loaded, bare = load_bundle(str(tmp_path / "with")), load_bundle(str(tmp_path / "without"))
    assert loaded.decoding == decoding and (loaded.decoding.language_model.log_probs == MODEL.log_probs).all()
    assert bare.decoding == Decoding() and bare.decoding.language_model is None
    assert loaded.model_id != bare.model_id


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b""])
def test_a_damaged_language_model_is_named(tiny_bundle, tmp_path, damage):
    path = str(tmp_path / "bundle")
    save_bundle(replace(tiny_bundle, decoding=DECODING), path)
    file = Path(path) / LANGUAGE_MODEL
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=f"{LANGUAGE_MODEL} is damaged"):
        load_bundle(path)
    file.unlink()
    with pytest.raises(UserError, match=f"has no {LANGUAGE_MODEL}"):
        load_bundle(path)


def test_known_names_need_a_language_model(bundle_path, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("ABC\n")
    with pytest.raises(UserError, match="--lexicon needs a language model"):
        Recognizer(bundle_path, lexicon=str(names))


def test_the_shipped_model_reads_the_canvas_that_prepare_makes_and_stays_small():
    bundle = load_bundle(SHIPPED)
    assert bundle.canvas == Canvas()
    assert bundle.decoding.language_model is not None
    assert sum(file.stat().st_size for file in Path(SHIPPED).iterdir()) < 10_000_000
