"""Tests the network's shapes and the independence of lines in a batch."""

import pytest
import torch

from hwr_ray.errors import UserError
from hwr_ray.images.lines import Canvas
from hwr_ray.model.architecture import ModelSettings
from hwr_ray.model.crnn import CRNN, to_ink
from hwr_ray.recognition.bundle import new_model
from hwr_ray.text.codec import Codec

SETTINGS = ModelSettings(conv_widths=(4, 4, 8, 8), gru_size=8)


@pytest.mark.parametrize(("canvas", "frames"), [((16, 64), 16), ((48, 320), 80), ((32, 4), 1)])
def test_there_is_one_frame_for_4_pixels_of_width(canvas, frames):
    model = CRNN(SETTINGS, canvas=canvas, num_classes=5)
    logits, shortcut = model(torch.rand(3, 1, *canvas))
    assert logits.shape == shortcut.shape == (3, frames, 5)
    assert model.frames == frames


def test_only_training_has_the_shortcut():
    model = CRNN(SETTINGS, canvas=(16, 64), num_classes=5).eval()
    assert model(torch.rand(1, 1, 16, 64))[1] is None


@pytest.mark.parametrize("canvas", [(40, 320), (48, 322)])
def test_a_canvas_that_does_not_suit_the_model_is_refused_with_its_remedy(canvas):
    with pytest.raises(UserError, match=f"{canvas[0]}x{canvas[1]}.*multiple of 16 and its width a multiple of 4"):
        new_model(SETTINGS, Codec("AB"), Canvas(*canvas))


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ({"conv_widths": (4, 4, 8)}, "--conv-widths"),
        ({"conv_widths": (4, 4, 8, 0)}, "--conv-widths"),
        ({"gru_size": 0}, "--gru-size"),
        ({"dropout": 1.0}, "--dropout"),
    ],
)
def test_settings_that_make_no_model_are_refused_by_their_flag(wrong, flag):
    with pytest.raises(UserError, match=flag):
        ModelSettings(**wrong)


def test_pooling_first_changes_nothing_where_the_scale_of_the_normalization_is_positive():
    features, norm, pool = torch.randn(4, 3, 8, 8), torch.nn.BatchNorm2d(3), torch.nn.MaxPool2d(2)
    norm(features)  # sets the running statistics
    norm.eval()
    torch.testing.assert_close(norm(pool(features)), pool(norm(features)))
    with torch.no_grad():
        norm.weight.neg_()
    assert not torch.allclose(norm(pool(features)), pool(norm(features)))


def test_no_line_sees_another_line_of_its_batch(tiny_bundle):
    ink = torch.rand(3, 1, 16, 64)
    with torch.inference_mode():
        logits, _ = tiny_bundle.model(ink)
        changed, _ = tiny_bundle.model(torch.cat([ink[:1], torch.rand(2, 1, 16, 64)]))
    assert torch.allclose(logits[0], changed[0], atol=1e-5)
    assert not torch.allclose(logits[1], changed[1], atol=1e-2)


def test_the_recurrence_carries_ink_at_one_end_to_the_frames_at_the_other(tiny_bundle):
    ink = torch.zeros(2, 1, 16, 64)
    ink[1, :, :, :8] = 1
    with torch.inference_mode():
        blank, inked = tiny_bundle.model(ink)[0]
    assert not torch.equal(blank[-1], inked[-1])


def test_paper_is_no_ink_and_black_is_full_ink():
    images = torch.tensor([[[255, 0, 51]]], dtype=torch.uint8)
    assert torch.allclose(to_ink(images), torch.tensor([[[[0.0, 1.0, 0.8]]]]))
