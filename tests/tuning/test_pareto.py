"""Compares the Pareto front and the choices on it with brute force over all points."""

import numpy as np
import pytest

from hwr_ray.errors import UserError
from hwr_ray.tuning.pareto import choose, knee_point, pareto_front, parse_choice


def is_dominated(points, i):
    """Returns whether another point is as good in both and better in one, or equal and earlier."""
    cost, error = points[i]
    return any(
        (c <= cost and e <= error and (c < cost or e < error)) or ((c, e) == (cost, error) and j < i)
        for j, (c, e) in enumerate(points)
    )


@pytest.mark.parametrize("seed", range(30))
def test_the_front_is_what_no_other_point_beats(seed):
    rng = np.random.default_rng(seed)
    points = [(int(c), int(e)) for c, e in rng.integers(0, 8, (int(rng.integers(1, 20)), 2))]  # with many ties
    expected = [i for i in range(len(points)) if not is_dominated(points, i)]
    assert sorted(pareto_front(points)) == expected
    costs = [points[i][0] for i in pareto_front(points)]
    assert costs == sorted(costs)
    least = min(error for _, error in points)
    assert points[choose(points, "best")] == (min(c for c, e in points if e == least), least)
    for budget in range(9):
        affordable = [(error, cost) for cost, error in points if cost <= budget]
        if affordable:
            assert points[choose(points, float(budget))] == min(affordable)[::-1]
        else:
            with pytest.raises(UserError, match="the cheapest trial costs"):
                choose(points, float(budget))


def test_the_knee_is_farthest_from_the_line_between_the_ends_of_the_front():
    points = [(100.0, 5.0), (10.0, 20.0), (30.0, 6.0), (60.0, 5.5), (50.0, 30.0), (20.0, 16.0)]
    start, end = np.array([10.0, 20.0]), np.array([100.0, 5.0])
    direction, scale = [1.0, 1.0] / np.sqrt(2), end - start

    def distance(point):
        scaled = (np.array(point) - start) / scale  # the ends become (0, 0) and (1, 1)
        return np.linalg.norm(scaled - direction * (scaled @ direction))

    members = pareto_front(points)
    assert knee_point(points) == max(members, key=lambda i: distance(points[i])) == 2


def test_the_knee_of_one_or_two_points_is_the_one_with_the_least_error():
    assert knee_point([(3.0, 1.0)]) == 0
    assert knee_point([(3.0, 1.0), (1.0, 2.0)]) == 0


def test_a_choice_is_one_of_three():
    assert [parse_choice(text) for text in ("best", "knee", "budget=12.5")] == ["best", "knee", 12.5]
    for text in ("worst", "budget", "budget=", "budget=-3", "budget=1e9x"):
        with pytest.raises(UserError, match="best, knee or budget=NUMBER"):
            parse_choice(text)
