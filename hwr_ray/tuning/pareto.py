"""Two objectives, cost and error, both the lower the better: which points are worth their cost, which to take."""

import re
from collections.abc import Sequence

from hwr_ray.errors import UserError

Point = tuple[float, float]
"""Cost, error."""


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Indices of the points that no other equals or beats in both, the cheapest first; of equal points the first."""
    members: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (*points[i], i)):
        if not members or points[i][1] < points[members[-1]][1]:
            members.append(i)
    return members


def knee_point(points: Sequence[Point]) -> int:
    """Index of the point of the front that lies farthest below the line between the front's ends.

    Of a front of one or two points it is the one with the least error.
    """
    members = pareto_front(points)
    (low, high), (dear, least) = points[members[0]], points[members[-1]]

    def depth(i: int) -> float:
        cost, error = points[i]
        # Both run from 0 to 1 along the front, so that the line is cost + error = 1.
        return 1 - (cost - low) / (dear - low) - (error - least) / (high - least)

    return max(members, key=depth) if len(members) > 2 else members[-1]


def parse_choice(text: str) -> float | str:
    """`best`, `knee`, or the number of `budget=NUMBER`. Raises UserError for anything else."""
    if text in ("best", "knee"):
        return text
    found = re.fullmatch(r"budget=(\d+(\.\d*)?)", text)
    if not found:
        raise UserError(f"--choose is best, knee or budget=NUMBER, not {text}")
    return float(found[1])


def choose(points: Sequence[Point], choice: float | str) -> int:
    """Index of the chosen one of the points, of which there is one at least; a number is the most that it may cost.

    Raises UserError where all cost more.
    """
    if choice == "knee":
        return knee_point(points)
    most = float("inf") if isinstance(choice, str) else choice
    affordable = [i for i in pareto_front(points) if points[i][0] <= most]
    if not affordable:
        raise UserError(f"--choose budget={most:g}: the cheapest trial costs {min(cost for cost, _ in points):g}")
    return affordable[-1]
