"""The Pareto frontier: the points that no other one beats in both cost and quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spa_graph.passes.cost import Quantity


def quality(point: dict[str, Any]) -> float | None:
    """How good a point is, more is better: its metric, else the outputs' error."""
    if "failure" in point:
        return None
    if point.get("metric") is not None:
        return float(point["metric"])
    return -float(point["error"]) if point.get("error") is not None else None


COLUMNS: dict[Quantity, str] = {
    "flops": "flops", "params": "params", "memory": "memory", "latency": "time",
}  # fmt: skip
"""Where a point has its share of a quantity."""


def cost_of(points: Sequence[dict[str, Any]]) -> Quantity:
    """What points are compared by: what they were pruned to; latency if some were, for all networks
    are timed; FLOPs where budgets are of other kinds that not every point tells."""
    asked = {point["quantity"] for point in points}
    if "latency" in asked:
        return "latency"
    return asked.pop() if len(asked) == 1 else "flops"


def frontier(points: Sequence[dict[str, Any]], cost: Quantity = "flops") -> list[bool]:
    """Whether each point is on the frontier of cost (less is better) and quality.

    >>> point = lambda flops, metric: {"flops": flops, "metric": metric}
    >>> frontier([point(0.9, 0.8), point(0.5, 0.7), point(0.6, 0.7), point(0.4, 0.1)])
    [True, True, False, True]

    Of points that are equal in both, all are.
    """
    places = [(point.get(COLUMNS[cost]), quality(point)) for point in points]
    return [
        own is not None
        and good is not None
        and not any(
            other is not None
            and better is not None
            and other <= own
            and better >= good
            and (other, better) != (own, good)
            for other, better in places
        )
        for own, good in places
    ]
