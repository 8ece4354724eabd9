"""Compares the multiply-adds and parameters of networks with sums by hand."""

import pytest
import torch
from torch import nn

from benchmarks.ancestor import FRAMES, HEIGHT, WIDTH, Ancestor
from hwr_ray.model.architecture import ModelSettings
from hwr_ray.model.crnn import CRNN
from hwr_ray.text.codec import frames_needed
from hwr_ray.tuning.cost import multiply_adds, num_parameters

CLASSES = 30  # 26 letters, space, apostrophe, hyphen, blank


def gru(frames, width, size):
    """Returns the multiply-adds of a bidirectional GRU layer: three gates, each of the input and previous state."""
    return 2 * frames * 3 * size * (width + size)


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Linear(10, 20), (1, 10), 10 * 20),
        (nn.Linear(10, 20, bias=False), (3, 7, 10), 3 * 7 * 10 * 20),
        (nn.Conv2d(2, 8, 3, stride=(1, 2)), (1, 2, 10, 11), 8 * 5 * 8 * 2 * 9),
        (nn.Conv2d(4, 8, 3, padding=1, groups=2), (1, 4, 5, 6), 5 * 6 * 8 * 2 * 9),
        (nn.Conv1d(8, 8, 3, groups=8), (1, 8, 20), 18 * 8 * 3),
    ],
)
def test_a_layer_costs_its_sum_by_hand(module, shape, expected):
    assert multiply_adds(module, torch.rand(shape)) == expected


@pytest.mark.parametrize("batch", [1, 3])
def test_a_gru_costs_both_directions_of_all_layers(batch):
    module = nn.GRU(10, 20, num_layers=2, bidirectional=True, batch_first=True)
    assert multiply_adds(module, torch.rand(batch, 7, 10)) == batch * (gru(7, 10, 20) + gru(7, 40, 20))


def test_another_device_than_the_cpu_is_refused():
    with pytest.raises(ValueError, match="not on cpu, meta"):
        multiply_adds(nn.Linear(2, 2), torch.rand(1, 2, device="meta"))


def test_the_ancestor_costs_100_million_multiply_adds_a_line():
    model = Ancestor(CLASSES).eval()
    convolutions = [34 * 161 * 32 * 9, 16 * 80 * 64 * 32 * 9, 7 * 39 * 128 * 64 * 9, 5 * 19 * 256 * 128 * 9]
    linears = [19 * 1280 * 512, 19 * 512 * 256, 19 * 256 * CLASSES]
    expected = sum(convolutions) + sum(linears) + gru(19, 256, 128) + gru(19, 256, 128)
    assert 99e6 < expected < 101e6
    assert multiply_adds(model, torch.rand(1, 1, HEIGHT, WIDTH)) == expected


def test_the_ancestors_parameters_are_those_of_its_layers():
    convolutions = 9 * (32 + 32 * 64 + 64 * 128 + 128 * 256)
    norms = 2 * (32 + 64 + 128 + 256)
    linears = 1281 * 512 + 513 * 256 + 257 * CLASSES
    grus = 2 * 2 * 3 * 128 * (256 + 128 + 2)  # two biases per unit and gate
    assert num_parameters(Ancestor(CLASSES)) == convolutions + norms + linears + grus


def test_the_ancestor_has_19_frames_and_so_cannot_learn_20_letters():
    logits = Ancestor(CLASSES).eval()(torch.rand(2, 1, HEIGHT, WIDTH))
    assert logits.shape == (2, FRAMES, CLASSES)
    assert frames_needed("ABCDEFGHIJKLMNOPQRST") > FRAMES


def test_the_default_model_costs_the_shortcut_in_training_only():
    model = CRNN(ModelSettings(), canvas=(48, 320), num_classes=CLASSES)
    convolutions = [24 * 160 * 24 * 5 * 5, 24 * 160 * 32 * 24 * 9, 12 * 80 * 64 * 32 * 9, 6 * 80 * 128 * 64 * 9]
    convolutions += [12 * 80 * 32 * (9 + 32), 6 * 80 * 64 * (9 + 64), 3 * 80 * 128 * (9 + 128)]  # the residual blocks
    expected = sum(convolutions) + gru(80, 3 * 128, 128) + gru(80, 256, 128) + 80 * 256 * CLASSES
    ink = torch.rand(1, 1, 48, 320)
    assert multiply_adds(model.eval(), ink) == expected
    assert multiply_adds(model.train(), ink) == expected + 80 * 384 * 3 * CLASSES
