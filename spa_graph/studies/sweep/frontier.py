"""The Pareto frontier: the points that no other one beats in both cost and quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def quality(point: dict[str, Any]) -> float | None:
    """How good a point is, more is better: its metric, else the outputs' error."""
    if point.get("metric") is not None:
        return float(point["metric"])
    return -float(point["error"]) if point.get("error") is not None else None


def frontier(points: Sequence[dict[str, Any]]) -> list[bool]:
    """Whether each point is on the frontier of FLOPs (fewer is better) and quality.

    >>> point = lambda flops, metric: {"flops": flops, "metric": metric}
    >>> frontier([point(0.9, 0.8), point(0.5, 0.7), point(0.6, 0.7), point(0.4, 0.1)])
    [True, True, False, True]

    Of points that are equal in both, all are.
    """
    places = [(point.get("flops"), quality(point)) for point in points]
    return [
        cost is not None
        and good is not None
        and not any(
            other is not None
            and better is not None
            and other <= cost
            and better >= good
            and (other, better) != (cost, good)
            for other, better in places
        )
        for cost, good in places
    ]
