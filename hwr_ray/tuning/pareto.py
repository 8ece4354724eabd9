"""The Pareto front of cost and error, both minimized, and the choice of a point on it."""

import re
from collections.abc import Sequence

from hwr_ray.errors import UserError

Point = tuple[float, float]
"""Cost and error."""


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Returns the indices of the points that no other equals or beats in both, cheapest first; of equal points, the
    first."""
    members: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (*points[i], i)):
        if not members or points[i][1] < points[members[-1]][1]:
            members.append(i)
    return members


def knee_point(points: Sequence[Point]) -> int:
    """Returns the index of the point of the front that is farthest below the line between the front's ends.

    For a front of one or two points it is the one with the lowest error.
    """
    members = pareto_front(points)
    (min_cost, max_error), (max_cost, min_error) = points[members[0]], points[members[-1]]

    def depth(i: int) -> float:
        cost, error = points[i]
        # Both are scaled to 0..1 over the front, so that the line is cost + error = 1.
        return 1 - (cost - min_cost) / (max_cost - min_cost) - (error - min_error) / (max_error - min_error)

    return max(members, key=depth) if len(members) > 2 else members[-1]


def parse_choice(text: str) -> float | str:
    """Returns `best`, `knee`, or the number of `budget=NUMBER`. Raises UserError for any other text."""
    if text in ("best", "knee"):
        return text
    match = re.fullmatch(r"budget=(\d+(\.\d*)?)", text)
    if not match:
        raise UserError(f"--choose must be best, knee or budget=NUMBER, not {text}")
    return float(match[1])


def choose(points: Sequence[Point], choice: float | str) -> int:
    """Returns the index of the point chosen by `best`, `knee` or a maximum cost. `points` must not be empty.

    Raises UserError if all points cost more.
    """
    if choice == "knee":
        return knee_point(points)
    most = float("inf") if isinstance(choice, str) else choice
    affordable = [i for i in pareto_front(points) if points[i][0] <= most]
    if not affordable:
        raise UserError(f"--choose budget={most:g}: the cheapest trial costs {min(cost for cost, _ in points):g}")
    return affordable[-1]
