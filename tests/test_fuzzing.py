"""A small run of `python -m benchmarks.fuzz`: random label files and images."""

import numpy as np
from fuzzing import check_image, check_labels

NUMBER = 1000


def test_no_row_of_a_random_label_file_vanishes(tmp_path):
    rng = np.random.default_rng(1)
    for _ in range(NUMBER):
        check_labels(rng, tmp_path)


def test_no_random_image_is_read_otherwise_than_pillow_shows_it():
    rng = np.random.default_rng(1)
    assert sum(check_image(rng) for _ in range(NUMBER)) > NUMBER // 4
