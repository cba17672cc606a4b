"""Allocation: scores + cost model + budget -> which channels stay.

Every group loses its least important channels, so a candidate is one kept count per group. The
global ranking removes the least important channels of the whole network, one by one, until the
budget is met (a binary search), then gives back, most important first, whatever still fits: no
single step more would stay within the budget.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.analysis import ChannelGroup, Coupling
from spa_graph.errors import BudgetError
from spa_graph.passes.cost import CostModel, Counts, Quantity

Kept = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Budget:
    """What the pruned network may cost: at most `ratio` of the original's `quantity`."""

    quantity: Quantity
    ratio: float


ALIGNED = 8
"""Channel counts that are multiples of this fill the vector registers of common processors."""
CLOSE = 0.98
"""Alignment is given up step by step where it would leave more of the budget unused than this."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on the kept count of every group.

    round_to: kept sizes are multiples of this (a group that starts smaller stays whole). None
        chooses for each group: multiples of `aligned` where it has at least twice as many
        elements, of the next smaller power of two that fits so otherwise. Odd channel counts can
        cost more time than their removal saves.
    min_channels: no group keeps fewer channels.
    """

    round_to: int | None = None
    min_channels: int = 1
    aligned: int = ALIGNED

    def step(self, group: ChannelGroup) -> int:
        """Kept counts of the group are multiples of this.

        What must be aligned is the size of a weight's axis: heads of 64 always are.
        """
        per_channel = math.gcd(*(member.index.shape[1] for member in group.members))
        wanted = self.round_to
        if wanted is None:
            wanted = self.aligned
            while wanted > 1 and wanted * 2 > group.size * per_channel:
                wanted //= 2
        return wanted // math.gcd(wanted, per_channel)

    def finer(self) -> list[Limits]:
        """These limits, then less and less aligned ones if the choice is ours."""
        if self.round_to is not None:
            return [self]
        return [replace(self, aligned=self.aligned >> shift) for shift in range(4)]


def allocate(
    coupling: Coupling,
    model: CostModel,
    scores: NDArray[np.float64],
    budget: Budget,
    limits: Limits,
    whole: NDArray[np.bool_],
) -> Kept:
    """The largest network within the budget, by global ranking; shape (channels,).

    The groups marked in `whole`, shape (groups,), lose nothing.

    Raises:
        BudgetError: even the smallest network costs more.
    """
    found, smallest = None, 1.0
    for attempt in limits.finer():
        ladder = _Ladder(coupling, scores, attempt, whole)
        smallest = model.ratio(budget.quantity, ladder.floors)
        if smallest > budget.ratio:
            continue
        counts = _fill(ladder, model, budget, _first_within(ladder, model, budget))
        found = ladder.kept(counts)
        if model.ratio(budget.quantity, counts) >= CLOSE * budget.ratio:
            break
    if found is None:
        out_of_scope = ", out of --scope" if whole.any() else ""
        raise BudgetError(
            f"{budget.quantity} {budget.ratio:g} can't be reached: the smallest possible is "
            f"{_above(smallest)} (the rest is frozen{out_of_scope}, or needed so that "
            f"{_kept_for(limits)})"
        )
    return found


def allocate_uniform(
    coupling: Coupling,
    scores: NDArray[np.float64],
    removed: float,
    limits: Limits,
    whole: NDArray[np.bool_],
) -> Kept:
    """Remove the same share of channels in every group but those marked in `whole`.

    To the channel, unless told to round.
    """
    ladder = _Ladder(coupling, scores, replace(limits, aligned=1), whole)
    gone = (removed * ladder.full + 1e-9).astype(np.int64)
    return ladder.kept(np.maximum(ladder.round_up(ladder.full - gone), ladder.floors))


def _kept_for(limits: Limits) -> str:
    if limits.min_channels > 1:
        return f"every group keeps {limits.min_channels} channels"
    return "no layer vanishes"


def _above(ratio: float) -> str:
    """A ratio rounded up, so that asking for what is printed works."""
    return f"{np.ceil(ratio * 1e4) / 1e4:.4f}"


class _Ladder:
    """Per group: its channels from most to least important, and the counts it may keep."""

    def __init__(
        self,
        coupling: Coupling,
        scores: NDArray[np.float64],
        limits: Limits,
        whole: NDArray[np.bool_],
    ) -> None:
        self.groups = coupling.groups
        self.full = np.array([g.size for g in self.groups], np.int64)
        self.steps = np.array([limits.step(g) for g in self.groups], np.int64)
        floors = self.round_up(np.minimum(limits.min_channels, self.full))
        self.floors = np.where(whole, self.full, floors)
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
        return self.round_up(np.maximum(self.full - gone, self.floors))

    def round_up(self, counts: Counts) -> Counts:
        """The next counts that are allowed; a whole group always is."""
        return np.minimum(-(-counts // self.steps) * self.steps, self.full)

    def next_count(self, group: int, count: int) -> int:
        """The next larger count that a group may keep."""
        return min(count + int(self.steps[group]), int(self.full[group]))

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
