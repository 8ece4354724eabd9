"""Tests that a distortion depends on the seed, the epoch and the line's id alone."""

import numpy as np
import pytest
import torch

from hwr_ray.images.augmentation import augment, line_uniforms
from hwr_ray.model.crnn import to_ink

IDS = ["a.jpg", "b.jpg", "c.jpg", "é.jpg"]


@pytest.fixture
def ink(draw_text) -> torch.Tensor:
    return to_ink(torch.from_numpy(np.stack([draw_text(text) for text in ("ANNA", "BOB", "CLOE", "EVE")])))


def test_a_line_is_distorted_alone_as_in_any_batch(ink):
    together = augment(ink, IDS, seed=1, epoch=2)
    for n in range(4):
        assert torch.allclose(augment(ink[n : n + 1], IDS[n : n + 1], seed=1, epoch=2)[0], together[n], atol=1e-6)
    order = [2, 0, 3, 1]
    permuted = augment(ink[order], [IDS[n] for n in order], seed=1, epoch=2)
    assert torch.allclose(permuted, together[order], atol=1e-6)


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 3}, {"ids": ["z.jpg"]}])
def test_another_seed_epoch_or_id_distorts_otherwise(ink, change):
    first = {"ids": ["a.jpg"], "seed": 1, "epoch": 2}
    one, again, other = (augment(ink[:1], **case) for case in (first, first, first | change))
    assert torch.equal(one, again)
    assert (one - other).abs().max() > 0.2


def test_the_picture_keeps_its_shape_its_range_and_some_ink(ink):
    before = ink.clone()
    for epoch in range(20):
        distorted = augment(ink, IDS, seed=0, epoch=epoch)
        assert distorted.shape == ink.shape
        assert distorted.min() >= 0 and distorted.max() <= 1
        assert (distorted.amax(dim=(1, 2, 3)) > 0.2).all()
    assert torch.equal(ink, before)  # not modified in place


def dots(x: int, y: int, *, number: int = 400) -> np.ndarray:
    """Returns the (x, y) of the ink of a dot at x, y on a 48x320 canvas after `number` distortions, as (n, 2)."""
    ink = torch.zeros(1, 1, 48, 320)
    ink[:, :, y - 1 : y + 2, x - 1 : x + 2] = 1
    ids = [f"{n}.jpg" for n in range(number)]
    distorted = augment(ink.expand(number, -1, -1, -1), ids, seed=0, epoch=1)[:, 0]
    weight = distorted.sum((1, 2))
    places = [
        (distorted * torch.arange(320)).sum((1, 2)) / weight,
        (distorted * torch.arange(48)[:, None]).sum((1, 2)) / weight,
    ]
    return torch.stack(places, 1)[weight > 0.5].numpy()  # the others were erased


@pytest.mark.parametrize(("x", "y"), [(30, 24), (30, 10), (200, 24), (200, 38)])
def test_a_dot_lands_where_the_limits_of_the_distortions_let_it(x, y):
    """The limits are worked out by hand from the module's constants.

    Widths scale about the left edge, heights about the middle, and everything else shifts.
    """
    places = dots(x, y)
    assert len(places) > 380
    sheared = (0.35 + 0.03) * 1.15 * abs(y - 24)
    assert places[:, 0].min() > (x - 4 - 3 - sheared) / 1.15 - 1
    assert places[:, 0].max() < (x + 14 + 3 + sheared) / 0.85 + 1
    tilted = 0.03 * 1.2 * abs(x - 160) * 1.15
    assert np.abs(places[:, 1] - 24).max() < (abs(y - 24) + 4 + 2 + tilted) / 0.85 + 1
    assert places[:, 0].mean() == pytest.approx((x + 5) * 1.0075, abs=2)  # more often to the right
    assert places[:, 1].mean() == pytest.approx(24 + (y - 24) * 1.0075, abs=1)
    assert places[:, 0].std() > 4 and places[:, 1].std() > 1.5


def test_a_first_letter_at_the_left_edge_stays_on_the_canvas():
    ink = torch.zeros(400, 1, 48, 320)
    ink[:, :, 14:34, 4:16] = 1
    ids = [f"{n}.jpg" for n in range(400)]
    kept = augment(ink, ids, seed=0, epoch=1).clamp(max=1).sum((1, 2, 3)) / ink[0].sum()
    assert kept.min() > 0.25  # part of it may be erased or have the weakest ink


def test_blank_paper_stays_blank():
    assert not augment(torch.zeros(4, 1, 16, 64), IDS, seed=0, epoch=1).any()


def test_uniforms_are_uniform_and_independent_of_one_another():
    numbers = line_uniforms([f"{n}.jpg" for n in range(4000)], 8, seed=0, epoch=1)
    assert numbers.min() >= 0 and numbers.max() < 1
    histogram, _ = np.histogram(numbers, bins=16, range=(0, 1))
    assert ((histogram - 2000) ** 2 / 2000).sum() < 37.7  # chi-squared, 15 degrees of freedom, p = 0.001
    correlations = np.corrcoef(numbers.T) - np.eye(8)
    assert np.abs(correlations).max() < 4 / 4000**0.5


def test_uniforms_do_not_depend_on_how_many_are_asked_for():
    assert np.array_equal(line_uniforms(IDS, 3, seed=0, epoch=1), line_uniforms(IDS, 9, seed=0, epoch=1)[:, :3])
