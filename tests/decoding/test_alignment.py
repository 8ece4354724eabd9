"""Compares alignments with all paths of a short lattice."""

from itertools import product

import numpy as np
import pytest

from hwr_ray.decoding.alignment import align
from hwr_ray.decoding.decoder import Reading, with_characters
from hwr_ray.text.codec import Codec, collapse

FRAMES, CLASSES = 6, 3


def frames_of(path: tuple[int, ...]) -> list[list[int]]:
    """Returns the first frame of each label of a path, and the one after its last."""
    spans, previous = [], 0
    for t, label in enumerate(path):
        if label and label != previous:
            spans.append([t, t + 1])
        elif label:
            spans[-1][1] = t + 1
        previous = label
    return spans


@pytest.mark.parametrize("labels", [[], [1], [2, 1], [1, 1], [1, 2, 1], [2, 2, 2], [1, 2, 2, 1]])
@pytest.mark.parametrize("seed", range(5))
def test_the_alignment_is_that_of_the_likeliest_path(labels, seed):
    log_probs = np.log(np.random.default_rng(seed).dirichlet(np.ones(CLASSES), FRAMES)).astype(np.float32)
    paths = [path for path in product(range(CLASSES), repeat=FRAMES) if collapse(path) == labels]
    likeliest = max(paths, key=lambda path: sum(log_probs[t, label] for t, label in enumerate(path)))
    assert align(log_probs, np.array(labels, np.int32)).tolist() == frames_of(likeliest)


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="2 frames are too few for 2 labels"):
        align(np.log(np.full((2, 3), 1 / 3, np.float32)), np.array([1, 1]))


def test_a_character_is_as_sure_as_the_surest_of_its_frames_and_stands_where_the_shortcut_sees_it():
    probabilities = np.array([[0.1, 0.8, 0.1], [0.05, 0.9, 0.05], [0.7, 0.2, 0.1], [0.3, 0.1, 0.6]])
    places = np.array([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.3, 0.1, 0.6], [0.2, 0.1, 0.7]])
    lines = np.log(np.stack([probabilities, places]))
    (reading,) = with_characters([Reading("AB", 0.5)], lines[:1], lines[1:], Codec("AB"))
    assert [(c.character, c.frames) for c in reading.characters] == [("A", (1, 2)), ("B", (2, 4))]
    assert [c.confidence for c in reading.characters] == pytest.approx([0.9, 0.6])
    assert (reading.text, reading.confidence) == ("AB", 0.5)
