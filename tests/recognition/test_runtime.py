"""Compares the compiled network with the model in PyTorch."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from hwr_ray.recognition.bundle import load_bundle
from hwr_ray.recognition.bundle_config import SHIPPED
from hwr_ray.recognition.runtime import Network, log_probs_of


@pytest.fixture
def images(tiny_bundle) -> np.ndarray:
    canvas = tiny_bundle.canvas
    return np.random.default_rng(0).integers(0, 256, (9, canvas.height, canvas.width), np.uint8)


def test_it_gives_the_models_probabilities(tiny_bundle, images):
    probs = Network(tiny_bundle)(images).exp()
    with torch.inference_mode():
        expected = log_probs_of(tiny_bundle.model, torch.tensor(images)).exp()
    assert probs.shape == expected.shape
    assert (probs.sum(-1) - 1).abs().max() < 1e-3
    assert (probs - expected).abs().max() < 0.05  # bfloat16 has 8 bits
    assert (probs.argmax(-1) == expected.argmax(-1)).float().mean() > 0.95


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_neither_batch_size_nor_neighbours_change_a_line(batch_size):
    bundle = load_bundle(SHIPPED)
    lines = np.random.default_rng(1).integers(0, 256, (7, bundle.canvas.height, bundle.canvas.width), np.uint8)
    expected = Network(bundle, batch_size=7)(lines)
    assert torch.equal(Network(bundle, batch_size=batch_size)(lines), expected)
    assert torch.equal(Network(bundle, batch_size=batch_size)(lines[::-1].copy()), expected.flip(0))


@pytest.mark.slow
def test_openvino_reports_its_use_to_nobody():
    code = "import sys, hwr_ray.recognition.runtime\n"
    code += "print([m for m in sys.modules if m.startswith('openvino_telemetry.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
