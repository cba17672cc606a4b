"""Allocation: scores + cost model + budget -> which channels stay.

Every group loses its least important channels, so a candidate is one kept count per group. The
global ranking removes the least important channels of the whole network, one by one, until the
budget is met (a binary search), then gives back, most important first, whatever still fits: no
single step more would stay within the budget.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.analysis import Coupling
from spa_graph.errors import BudgetError
from spa_graph.passes.cost import CostModel, Counts, Quantity

Kept = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Budget:
    """What the pruned network may cost: at most `ratio` of the original's `quantity`."""

    quantity: Quantity
    ratio: float


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on the kept count of every group.

    round_to: kept counts are multiples of this (a group that starts smaller stays whole).
    min_channels: no group keeps fewer channels.
    """

    round_to: int = 1
    min_channels: int = 1

    def floor(self, size: int) -> int:
        """The smallest count that a group of `size` channels may keep."""
        return self.round_up(min(max(self.min_channels, 1), size), size)

    def round_up(self, count: int, size: int) -> int:
        return min(-(-count // self.round_to) * self.round_to, size)


def allocate(
    coupling: Coupling,
    model: CostModel,
    scores: NDArray[np.float64],
    budget: Budget,
    limits: Limits,
) -> Kept:
    """The largest network within the budget, by global ranking; shape (channels,).

    Raises:
        BudgetError: even the smallest network costs more.
    """
    ladder = _Ladder(coupling, scores, limits)
    smallest = model.ratio(budget.quantity, ladder.floors)
    if smallest > budget.ratio:
        raise BudgetError(
            f"{budget.quantity} {budget.ratio:g} can't be reached: the smallest possible is "
            f"{_above(smallest)} (the rest is frozen, or needed so that no layer vanishes)"
        )
    counts = _first_within(ladder, model, budget)
    counts = _fill(ladder, model, budget, counts)
    return ladder.kept(counts)


def allocate_uniform(
    coupling: Coupling, scores: NDArray[np.float64], removed: float, limits: Limits
) -> Kept:
    """Remove the same share of channels in every group."""
    ladder = _Ladder(coupling, scores, limits)
    wanted = [
        limits.round_up(size - int(removed * size + 1e-9), size) for size in ladder.full.tolist()
    ]
    return ladder.kept(np.maximum(np.array(wanted, np.int64), ladder.floors))


def _above(ratio: float) -> str:
    """A ratio rounded up, so that asking for what is printed works."""
    return f"{np.ceil(ratio * 1e4) / 1e4:.4f}"


class _Ladder:
    """Per group: its channels from most to least important, and the counts it may keep."""

    def __init__(self, coupling: Coupling, scores: NDArray[np.float64], limits: Limits) -> None:
        self.limits = limits
        self.groups = coupling.groups
        self.full = np.array([g.size for g in self.groups], np.int64)
        self.floors = np.array([limits.floor(g.size) for g in self.groups], np.int64)
        self.total = coupling.count
        self.ranked = [
            g.start + np.argsort(-scores[g.start : g.stop], kind="stable") for g in self.groups
        ]
        self.scores = scores
        self.order = np.argsort(scores, kind="stable")
        bounds = coupling.channels.bounds
        self.group_in_order = np.searchsorted(bounds, self.order, side="right") - 1

    def counts(self, removed: int) -> Counts:
        """Kept counts after removing the `removed` least important channels of the network."""
        gone = np.bincount(self.group_in_order[:removed], minlength=len(self.groups))
        left = np.maximum(self.full - gone, self.floors)
        up = -(-left // self.limits.round_to) * self.limits.round_to
        return np.minimum(up, self.full).astype(np.int64)

    def next_count(self, group: int, count: int) -> int:
        """The next larger count that a group may keep."""
        return self.limits.round_up(count + 1, int(self.full[group]))

    def gain(self, group: int, count: int) -> float:
        """The importance of the channel that would come back next."""
        return float(self.scores[self.ranked[group][count]])

    def kept(self, counts: Counts) -> Kept:
        stays = np.zeros(self.total, bool)
        for ranked, count in zip(self.ranked, counts.tolist(), strict=True):
            stays[ranked[:count]] = True
        return stays


def _first_within(ladder: _Ladder, model: CostModel, budget: Budget) -> Counts:
    low, high = 0, ladder.total  # `high` is within the budget, `low` is not or is 0
    while low < high:
        middle = (low + high) // 2
        if model.ratio(budget.quantity, ladder.counts(middle)) <= budget.ratio:
            high = middle
        else:
            low = middle + 1
    return ladder.counts(high)


def _fill(ladder: _Ladder, model: CostModel, budget: Budget, counts: Counts) -> Counts:
    counts = counts.copy()
    waiting = [
        (-ladder.gain(group, count), group)
        for group, count in enumerate(counts.tolist())
        if count < ladder.full[group]
    ]
    heapq.heapify(waiting)
    while waiting:
        _, group = heapq.heappop(waiting)
        before = int(counts[group])
        counts[group] = ladder.next_count(group, before)
        if model.ratio(budget.quantity, counts) > budget.ratio:
            counts[group] = before  # costs only grow from here: it will never fit
        elif counts[group] < ladder.full[group]:
            heapq.heappush(waiting, (-ladder.gain(group, int(counts[group])), group))
    return counts
