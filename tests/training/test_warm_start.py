"""Tests that a model started from a bundle keeps its known classes and initializes new ones."""

import numpy as np
import pytest
import torch
from conftest import TINY_CANVAS, TINY_MODEL

from hwr_ray.decoding.ctc import greedy_texts
from hwr_ray.errors import UserError
from hwr_ray.images.lines import Canvas
from hwr_ray.model.architecture import ModelSettings
from hwr_ray.model.crnn import to_ink
from hwr_ray.recognition.bundle import new_model
from hwr_ray.recognition.bundle_config import architecture_from
from hwr_ray.recognition.runtime import log_probs_of
from hwr_ray.text.codec import Codec
from hwr_ray.training.warm_start import freeze_convolutions, parameters_to_learn, start_from

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 16, 64), np.uint8))


def test_with_the_same_charset_the_model_reads_as_the_bundle_does(tiny_bundle):
    model = new_model(TINY_MODEL, tiny_bundle.codec, TINY_CANVAS)
    start_from(model, tiny_bundle.codec, tiny_bundle)
    expected = log_probs_of(tiny_bundle.model, IMAGES)
    assert len(set(greedy_texts(expected, tiny_bundle.codec))) > 1
    assert torch.equal(log_probs_of(model.eval(), IMAGES), expected)


@pytest.mark.parametrize("charset", ["ABCÄ", "xCyBA", "CA"])
def test_each_character_keeps_its_logits_wherever_it_stands_in_the_new_charset(tiny_bundle, charset):
    torch.manual_seed(3)
    codec = Codec(charset)
    model = new_model(TINY_MODEL, codec, TINY_CANVAS)
    fresh = {name: weight.clone() for name, weight in model.state_dict().items()}
    start_from(model, codec, tiny_bundle)
    with torch.no_grad():
        new, old = model.eval()(to_ink(IMAGES))[0], tiny_bundle.model(to_ink(IMAGES))[0]
        shortcuts = model.shortcut_of(to_ink(IMAGES)), tiny_bundle.model.shortcut_of(to_ink(IMAGES))
    torch.testing.assert_close(new[..., 0], old[..., 0])  # the blank
    for i, character in enumerate(charset, 1):
        if character in "ABC":
            j = "ABC".index(character) + 1
            torch.testing.assert_close(new[..., i], old[..., j])
            torch.testing.assert_close(shortcuts[0][..., i], shortcuts[1][..., j])
        else:
            for name in ("classifier.weight", "classifier.bias", "shortcut.weight", "shortcut.bias"):
                assert torch.equal(model.state_dict()[name][i], fresh[name][i])


def test_another_architecture_or_height_is_refused_by_its_flag(tiny_bundle):
    with pytest.raises(UserError, match="--gru-size 16 does not match the bundle of --init-from, which has 8"):
        architecture_from(tiny_bundle, ModelSettings(gru_size=16), TINY_CANVAS)
    with pytest.raises(UserError, match="prepare them with --canvas 16 256"):
        architecture_from(tiny_bundle, ModelSettings(), Canvas(32, 256))
    settings = architecture_from(tiny_bundle, ModelSettings(dropout=0.4), Canvas(16, 128))
    assert (settings.conv_widths, settings.gru_size, settings.dropout) == ((4, 4, 8, 8), 8, 0.4)


def test_frozen_convolutions_stay_as_they_are_with_their_statistics(tiny_bundle):
    model = new_model(TINY_MODEL, tiny_bundle.codec, TINY_CANVAS)
    model.train()
    freeze_convolutions(model)
    before = {name: weight.clone() for name, weight in model.convolutions.state_dict().items()}
    optimizer = torch.optim.AdamW(parameters_to_learn(model), lr=0.1)
    logits, shortcut = model(to_ink(IMAGES))
    (logits.sum() + shortcut.sum()).backward()
    weight = model.classifier.weight.clone()
    optimizer.step()
    assert all(torch.equal(before[name], now) for name, now in model.convolutions.state_dict().items())
    assert not torch.equal(weight, model.classifier.weight)
