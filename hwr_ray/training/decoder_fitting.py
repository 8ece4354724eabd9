"""The last step of a training run: fits the language model, its weight and the calibration to the best weights."""

import heapq
import json
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from hwr_ray.data.dataset import PreparedSets
from hwr_ray.decoding.calibration import errors_before_and_after
from hwr_ray.decoding.decoder import fit_decoding
from hwr_ray.decoding.ngram import fit_language_model
from hwr_ray.images.arrow import images_of
from hwr_ray.recognition.bundle import load_bundle, save_bundle
from hwr_ray.recognition.recognizer import read_log_probs
from hwr_ray.recognition.runtime import Network
from hwr_ray.text.metrics import count

MOST_LINES = 5_000
"""Maximum number of validation lines to fit the decoder to."""


def fit_decoder(bundle_path: str, prepared: PreparedSets, texts: Counter[str], *, device: str) -> str:
    """Fits a decoder to validation lines, writes it into the bundle and returns a one-sentence summary."""
    torch.set_num_threads(1)  # its cores may be shared, and then waiting threads cost more than they gain
    bundle = load_bundle(bundle_path)
    ids = sample(prepared.table("validation", ["id"])["id"].to_pylist(), MOST_LINES)
    lines = prepared.table("validation", ["id", "text", "image"], ids=ids).sort_by("id")
    log_probs = Network(bundle, device=device)(images_of(lines, prepared.canvas))
    greedy = read_log_probs(log_probs, bundle.codec)
    truth = lines["text"].to_pylist()
    language_model = fit_language_model(texts, bundle.codec)
    frames = log_probs.cpu().numpy()
    decoding = fit_decoding(frames, greedy, truth, bundle.codec, language_model)
    before = count(truth, [reading.text for reading in greedy])
    figures: dict[str, Any] = {
        "num_lines": len(lines),
        "num_language_model_texts": texts.total(),
        "language_model_texts": sha256(json.dumps(sorted(texts.items())).encode()).hexdigest(),
        "greedy_cer": before.cer,
    }
    readings, summary = greedy, f"greedy CER {before.cer:.2%}"
    if decoding.language_model:
        readings = replace(decoding, beam_calibration=None).search(frames, bundle.codec)
        figures["cer"] = count(truth, [reading.text for reading in readings]).cer
        summary += f", {figures['cer']:.2%} with beam search"
        summary += f" (language model weight {decoding.lm_weight}, length bonus {decoding.length_bonus})"
    else:
        summary += ", language model omitted because it does not reduce the number of edits"
    confidences = np.array([reading.confidence for reading in readings])
    is_exact = np.array([reading.text == text for reading, text in zip(readings, truth, strict=True)])
    figures["calibration_error"], figures["uncalibrated_error"] = errors_before_and_after(confidences, is_exact)[::-1]
    figures["label_noise"] = decoding.label_noise()
    training = {**bundle.training, "decoder": figures}
    save_bundle(replace(bundle, decoding=decoding, training=training), bundle_path)
    return summary


def sample(ids: list[str], most: int) -> list[str]:
    """Returns at most `most` ids, selected by their hashes: a sample that is independent of the order of `ids` and in
    which each source has about its share."""
    return heapq.nsmallest(most, ids, key=lambda line: sha256(line.encode()).digest())
