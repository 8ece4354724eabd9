"""The last step of a training run: the language model, its weight and the calibration, fitted to the best weights."""

import heapq
import json
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np
import torch

from hwr_ray.data.dataset import Prepared
from hwr_ray.decoding.calibration import errors_before_and_after
from hwr_ray.decoding.decoder import fit_decoding
from hwr_ray.decoding.ngram import fit_language_model
from hwr_ray.images.arrow import images_of
from hwr_ray.recognition.bundle import load_bundle, save_bundle
from hwr_ray.recognition.recognizer import read_log_probs
from hwr_ray.recognition.runtime import Network
from hwr_ray.text.metrics import count

MOST_LINES = 5_000
"""Validation lines that the decoder is fitted to."""


def fit_decoder(bundle_path: str, prepared: Prepared, texts: Counter[str], *, device: str) -> str:
    """Writes the decoding that reads the validation lines best into a bundle; returns what came of it in a sentence."""
    torch.set_num_threads(1)  # it may share its cores, and waiting threads cost more than they bring
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
    readings, said = greedy, f"greedy CER {before.cer:.2%}"
    if decoding.language_model:
        readings = replace(decoding, beam_calibration=None).search(frames, bundle.codec)
        figures["cer"] = count(truth, [reading.text for reading in readings]).cer
        said += f", {figures['cer']:.2%} by beam search"
        said += f" (language model {decoding.lm_weight}, bonus {decoding.length_bonus})"
    else:
        said += ", and the language model reads no better: it is left out"
    confidences = np.array([reading.confidence for reading in readings])
    is_right = np.array([reading.text == text for reading, text in zip(readings, truth, strict=True)])
    figures["calibration_error"], figures["uncalibrated_error"] = errors_before_and_after(confidences, is_right)[::-1]
    training = {**bundle.training, "decoder": figures}
    save_bundle(replace(bundle, decoding=decoding, training=training), bundle_path)
    return said


def sample(ids: list[str], most: int) -> list[str]:
    """At most so many ids, by the hash of each: the same ones in any order, and from all sources that ids tell of."""
    return heapq.nsmallest(most, ids, key=lambda line: sha256(line.encode()).digest())
