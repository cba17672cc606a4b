"""Allocation: scores + cost model + budget -> which channels stay.

Every group loses its least important channels, so a candidate is one kept count per group. The
global ranking removes the least important channels of the whole network, one by one, until the
budget is met (a binary search), then gives back, most important first, whatever still fits: no
single step more would stay within the budget.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.analysis import ChannelGroup, Coupling
from spa_graph.errors import BudgetError
from spa_graph.passes.cost import Quantity
from spa_graph.passes.sizes import Counts

Kept = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Budget:
    """What the pruned network may cost: at most `ratio` of the original's `quantity`."""

    quantity: Quantity
    ratio: float


class Costs(Protocol):
    """What candidates cost: counted (`CostModel`), or measured (`passes/latency`)."""

    def cost(self, quantity: Quantity, counts: Counts) -> float:
        """Of one candidate; `counts` is (groups,)."""

    def costs(self, quantity: Quantity, counts: Counts) -> NDArray[np.float64]:
        """Of m candidates; `counts` is (groups, m)."""

    def ratio(self, quantity: Quantity, counts: Counts) -> float:
        """The share of the whole network's cost."""


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
    finest: what `aligned` may shrink to where the budget would be missed.
    """

    round_to: int | None = None
    min_channels: int = 1
    aligned: int = ALIGNED
    finest: int = 1

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
        shifts = (self.aligned // self.finest).bit_length()
        return [replace(self, aligned=self.aligned >> shift) for shift in range(shifts)]


def allocate(
    coupling: Coupling,
    model: Costs,
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
    return _within(coupling, model, scores, budget, limits, whole, _by_rank)


def allocate_by_distortion(
    coupling: Coupling,
    model: Costs,
    scores: NDArray[np.float64],
    curves: Sequence[NDArray[np.float64]],
    budget: Budget,
    limits: Limits,
    whole: NDArray[np.bool_],
) -> Kept:
    """The network within the budget whose outputs are distorted least; shape (channels,).

    Which channels of a group go first follows from the scores, how many of each group from the
    curves: what is lost without 0, 1, ... channels. Losses are taken to add up over groups. Each
    step takes channels where least is lost for what is saved; a step may be long, so that a flat
    part behind a steep one is seen (the lower convex hull of the curve).

    Where costs are times, which rise in steps, groups then also get channels back at the expense of
    others, until no change of one group pays at the common price.

    Raises:
        BudgetError: even the smallest network costs more.
    """

    def choose(ladder: _Ladder, model: Costs, budget: Budget) -> Counts:
        descent = _Descent(ladder, model, budget, curves)
        counts, price = descent.from_whole()
        if budget.quantity == "latency":
            counts = descent.settled(counts, price)
        return _fill(ladder, model, budget, counts)

    return _within(coupling, model, scores, budget, limits, whole, choose)


def importance_curves(coupling: Coupling, scores: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The importance that each group loses without 0, 1, ... channels, the least important first;
    (size + 1,) each."""
    ordered = [np.sort(np.maximum(scores[g.start : g.stop], 0)) for g in coupling.groups]
    return [np.append(0.0, np.cumsum(own)) for own in ordered]


def _by_rank(ladder: _Ladder, model: Costs, budget: Budget) -> Counts:
    return _fill(ladder, model, budget, _first_within(ladder, model, budget))


def _within(
    coupling: Coupling,
    model: Costs,
    scores: NDArray[np.float64],
    budget: Budget,
    limits: Limits,
    whole: NDArray[np.bool_],
    choose: Callable[[_Ladder, Costs, Budget], Counts],
) -> Kept:
    """What a way to choose counts keeps, as coarsely aligned as the budget allows."""
    found, smallest = None, 1.0
    for attempt in limits.finer():
        ladder = _Ladder(coupling, scores, attempt, whole)
        smallest = model.ratio(budget.quantity, ladder.floors)
        if smallest > budget.ratio:
            continue
        counts = choose(ladder, model, budget)
        found = ladder.kept(counts)
        if model.ratio(budget.quantity, counts) >= CLOSE * budget.ratio:
            break
    if found is None:
        out_of_scope = ", out of --scope" if whole.any() else ""
        raise BudgetError(
            f"{budget.quantity} {budget.ratio:g} can't be reached: the smallest possible is "
            f"{_above(smallest)} (the rest is frozen{out_of_scope}, or needed so that "
            f"{_kept_for(coupling, limits)})"
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


def _kept_for(coupling: Coupling, limits: Limits) -> str:
    few = f"every group keeps {limits.min_channels} channels"
    needs = few if limits.min_channels > 1 else "no layer vanishes"
    if limits.round_to is not None and limits.round_to > 1:
        needs += f" and counts are multiples of {limits.round_to}"
    picks = any(group.least > 1 for group in coupling.groups)
    return f"{needs} and a router finds as many experts as it picks" if picks else needs


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
        least = np.array([g.least for g in self.groups], np.int64)
        floors = self.round_up(np.minimum(np.maximum(limits.min_channels, least), self.full))
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

    def lower(self, group: int, count: int) -> list[int]:
        """Some of the lower counts that a group may keep: all near by, fewer far away."""
        step, floor = int(self.steps[group]), int(self.floors[group])
        allowed = [c for c in range(floor, count) if c == floor or c % step == 0]
        if len(allowed) <= CANDIDATES:
            return allowed
        places = np.unique(np.geomspace(1, len(allowed), CANDIDATES).round().astype(int))
        return [allowed[-place] for place in places.tolist()]

    def allowed(self, group: int) -> NDArray[np.int64]:
        """The counts that a group may keep; evenly spread ones if there are many."""
        step, floor, full = (int(own[group]) for own in (self.steps, self.floors, self.full))
        counts = np.unique([*range(-(-floor // step) * step, full, step), floor, full])
        places = np.linspace(0, len(counts) - 1, min(len(counts), SETTLED)).round().astype(int)
        chosen: NDArray[np.int64] = counts[places].astype(np.int64)
        return chosen

    def gain(self, group: int, count: int) -> float:
        """The importance of the channel that would come back next."""
        return float(self.scores[self.ranked[group][count]])

    def kept(self, counts: Counts) -> Kept:
        stays = np.zeros(self.total, bool)
        for ranked, count in zip(self.ranked, counts.tolist(), strict=True):
            stays[ranked[:count]] = True
        return stays


def _first_within(ladder: _Ladder, model: Costs, budget: Budget) -> Counts:
    low, high = 0, ladder.total  # `high` is within the budget, `low` is not or is 0
    while low < high:
        middle = (low + high) // 2
        if model.ratio(budget.quantity, ladder.counts(middle)) <= budget.ratio:
            high = middle
        else:
            low = middle + 1
    return ladder.counts(high)


def _fill(ladder: _Ladder, model: Costs, budget: Budget, counts: Counts) -> Counts:
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


CANDIDATES = 24
"""How many counts of a group are compared in one step of the descent."""
SETTLED = 64
"""How many are compared afterwards."""
PRICES = 8
SWEEPS = 4


@dataclass(frozen=True, slots=True, eq=False)
class _Descent:
    """Counts that lose little within a budget, where each group has a curve of what it loses."""

    ladder: _Ladder
    model: Costs
    budget: Budget
    curves: Sequence[NDArray[np.float64]]

    def from_whole(self) -> tuple[Counts, float]:
        """From the whole network down to the budget, along the cheapest losses; with the last
        price.

        What a step saves shrinks as other groups shrink, so its price only rises: a price that is
        out of date is a lower bound, and is computed anew when its turn comes.
        """
        counts = self.ladder.full.copy()
        cost = self.model.cost(self.budget.quantity, counts)
        limit = self.budget.ratio * cost

        def offer(group: int) -> tuple[float, int, int, int] | None:
            """(price, group, count, when it was computed) of the group's best step."""
            now = int(counts[group])
            lower = np.array(self.ladder.lower(group, now), np.int64)
            if not len(lower):
                return None
            saved = cost - self._costs(counts, group, lower)
            with np.errstate(invalid="ignore"):  # between two losses without bound
                lost = self._lost(group, lower) - self._lost(group, now)
            prices = np.where(saved > 0, lost / np.where(saved > 0, saved, 1), np.inf)
            prices[np.isnan(prices)] = np.inf
            best = int(np.argmin(prices))
            step = float(prices[best]), group, int(lower[best]), steps
            return step if saved[best] > 0 else None

        steps = 0
        last = 0.0
        waiting = [found for group in range(len(counts)) if (found := offer(group))]
        heapq.heapify(waiting)
        while cost > limit and waiting:
            price, group, count, computed = heapq.heappop(waiting)
            if computed == steps:
                counts[group] = count
                cost = self.model.cost(self.budget.quantity, counts)
                steps += 1
                last = price
            renewed = offer(group)
            if renewed is not None:
                heapq.heappush(waiting, renewed)
        return counts, last

    def settled(self, counts: Counts, price: float) -> Counts:
        """Counts that lose least within the budget, by Lagrangian relaxation (Everett 1963).

        At a price of the cost, coordinate descent finds counts where no change of one group pays:
        operators depend on two groups at once, so groups are visited in turn. The price is found by
        bisection, from that of the descent. Never worse than `counts`.
        """
        best = counts
        if price <= 0:
            return best
        low, high = price / 8, price * 8
        for _ in range(PRICES):
            middle = math.sqrt(low * high)
            found = self._at_price(counts, middle)
            if self.model.ratio(self.budget.quantity, found) > self.budget.ratio:
                low = middle
                continue
            high = middle
            if self._lost_in_all(found) < self._lost_in_all(best):
                best = found
        return best

    def _at_price(self, counts: Counts, price: float) -> Counts:
        counts = counts.copy()
        for _ in range(SWEEPS):
            before = counts.copy()
            for group in range(len(counts)):
                allowed = self.ladder.allowed(group)
                costs = self._costs(counts, group, allowed)
                counts[group] = allowed[np.argmin(self._lost(group, allowed) + price * costs)]
            if (counts == before).all():
                break
        return counts

    def _lost(self, group: int, counts: Counts | int) -> NDArray[np.float64]:
        """What a group loses where it keeps so many channels."""
        curve = self.curves[group]
        return np.asarray(curve[len(curve) - 1 - counts])

    def _lost_in_all(self, counts: Counts) -> float:
        return sum(float(self._lost(group, own)) for group, own in enumerate(counts.tolist()))

    def _costs(self, counts: Counts, group: int, values: Counts) -> NDArray[np.float64]:
        """Of candidates that differ in one group; (values,)."""
        trials = np.repeat(counts[:, None], len(values), axis=1)
        trials[group] = values
        return self.model.costs(self.budget.quantity, trials)
