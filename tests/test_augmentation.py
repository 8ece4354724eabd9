"""Distorted lines depend on their own seed, epoch and id, and on nothing else."""

import numpy as np
import pytest
import torch

from hwr_ray.augmentation import augment, line_uniforms
from hwr_ray.model import to_ink

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
    assert torch.equal(ink, before)  # never written into


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
