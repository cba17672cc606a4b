"""Relations -> coupled channels: spread frozenness, choose carrying factors, take components.

1. Products that factor the same Dim in the same way have the same factors, and the other way
   round. Frozenness spreads over whole Dims. Then a `Product` with several free factors gets a
   *carrying factor*, the only one along which it can be pruned (the tensor must stay rectangular);
   the others freeze, which may decide further products. Repeated until nothing changes.
2. The elements of all free Dims lie in one array. Every related pair of elements is an edge; the
   connected components are found in one call. A component with a frozen element is frozen; any
   other that reaches a parameter is one coupled channel.
3. Coupled channels that run through the same Dims equally often form a channel group.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from spa_graph.coupling.relations import (
    Axis,
    IndexMap,
    Product,
    Relation,
    Relations,
    Segment,
    Why,
)

Ints = NDArray[np.int64]
_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class Channels:
    """The coupled channels of a network, numbered so that every group is a contiguous range.

    `of_element[dim][i]` is the channel of element i of a Dim, -1 where it is frozen; Dims without
    channels are left out. `bounds[g] : bounds[g + 1]` are the channels of group g.
    """

    of_element: dict[Axis, Ints]
    bounds: Ints


def solve(relations: Relations, reaches_parameter: set[Axis]) -> Channels:
    """Find the coupled channels; `reaches_parameter` are the Dims that a stored weight has."""
    items = _unify_products(relations)
    carrying = _settle(relations, items)
    reached = set(map(relations.dim, reaches_parameter))
    related = {relations.dim(axis) for item in items for axis in _axes(item)}
    free = sorted(dim for dim in related if not relations.why(dim))
    alone = [d for d in reached - related if not relations.why(d) and relations.extent(d).nominal]
    numbered = _Elements(relations, free).components(items, carrying, reached)
    return _with_lone(relations, alone, *numbered)


def _with_lone(
    relations: Relations, alone: list[Axis], channels: Channels, firsts: list[Axis]
) -> Channels:
    """Dims without relations are groups as they stand: they only get their numbers, in between.

    Groups are numbered in the order of their first Dims, those of `channels` being `firsts`.
    """
    sizes = np.diff(channels.bounds).tolist()
    related = enumerate(zip(firsts, sizes, strict=True))
    groups = [(dim, size, number) for number, (dim, size) in related]
    groups += [(dim, relations.extent(dim).nominal, -1) for dim in alone]
    groups.sort(key=itemgetter(0))
    shifts = np.zeros(len(firsts), np.int64)
    of_element: dict[Axis, Ints] = {}
    bounds = [0]
    for dim, size, number in groups:
        if number < 0:
            of_element[dim] = np.arange(bounds[-1], bounds[-1] + size)
        else:
            shifts[number] = bounds[-1] - channels.bounds[number]
        bounds.append(bounds[-1] + size)
    moved = np.append(np.arange(int(channels.bounds[-1])) + np.repeat(shifts, sizes), -1)
    of_element |= {dim: moved[own] for dim, own in channels.of_element.items()}
    return Channels(dict(sorted(of_element.items())), np.array(bounds))


def without(channels: Channels, gone: NDArray[np.bool_]) -> Channels:
    """The channels that are not `gone`, which become frozen; shape (channels,)."""
    number = np.append(np.where(gone, -1, np.cumsum(~gone) - 1), -1)
    bounds = np.unique(np.append(0, np.cumsum(~gone))[channels.bounds])
    renumbered = {dim: number[own] for dim, own in channels.of_element.items()}
    return Channels({d: own for d, own in renumbered.items() if (own >= 0).any()}, bounds)


# --- step 1 ----------------------------------------------------------------------------------


def _unify_products(relations: Relations) -> list[Relation]:
    """Congruence: one index space, factored twice alike, gives the same factors; and back.

    `(batch x heads, d) -> (batch, heads, d)` and `(batch, heads x d) -> (batch x heads, d)` meet
    in heads only through their common whole. Returns the relations that are left as different.
    """
    dim, items = relations.dim, relations.items
    while True:
        items = _distinct(items, dim)
        by_whole: dict[tuple[object, ...], Product] = {}
        by_factors: dict[tuple[Axis, ...], Product] = {}
        pairs: list[tuple[Axis, Axis]] = []
        for item in items:
            if not isinstance(item, Product):
                continue
            sizes = tuple(map(relations.extents.__getitem__, item.factors))
            first = by_whole.setdefault((dim(item.whole), sizes), item)
            if first is not item:
                pairs += zip(first.factors, item.factors, strict=True)
            first = by_factors.setdefault(tuple(map(dim, item.factors)), item)
            if first is not item:
                pairs.append((first.whole, item.whole))
        if all(dim(a) == dim(b) for a, b in pairs):
            return items
        for a, b in pairs:
            relations.same((a,), (b,), "reshape")


def _distinct(items: list[Relation], dim: Callable[[Axis], Axis]) -> list[Relation]:
    """One of those that relate the same Dims in the same way: a network repeats itself."""
    found: dict[object, Relation] = {}
    for item in items:
        key: tuple[object, ...] = (id(item),)
        if isinstance(item, Segment):
            key = Segment, dim(item.whole), item.offset, dim(item.part)
        elif isinstance(item, Product):
            key = Product, dim(item.whole), *map(dim, item.factors)
        found.setdefault(key, item)
    return list(found.values())


def _settle(relations: Relations, items: list[Relation]) -> dict[int, Axis]:
    """Freeze what must freeze; the carrying factor of each product, by its position."""
    touching: dict[Axis, list[int]] = {}
    for position, item in enumerate(items):
        for axis in _axes(item):
            touching.setdefault(relations.dim(axis), []).append(position)
    covered = _parts_by_whole(relations, items)
    carrying: dict[int, Axis] = {}
    pending = deque(range(len(items)))

    def spread() -> None:
        while pending:
            for axis, why in _consequences(relations, items[pending.popleft()], covered):
                if relations.why(axis) is None:
                    relations.freeze((axis,), *why)
                    pending.extend(touching.get(relations.dim(axis), ()))

    spread()
    _count_blocks(relations, items)
    undecided = sorted(
        (i for i, item in enumerate(items) if isinstance(item, Product)),
        key=lambda i: not _has_blocks(relations, items[i]),
    )
    for position in undecided:
        carrier, losers = _choose(relations, items[position])
        if carrier is not None:
            carrying[position] = carrier
        for axis in losers:
            along = relations.label(axis if carrier is None else carrier)
            relations.freeze((axis,), f"merged axis is pruned along {along} instead")
            pending.extend(touching.get(relations.dim(axis), ()))
        spread()
    return {position: axis for position, axis in carrying.items() if not relations.why(axis)}


def _axes(item: Relation) -> tuple[Axis, ...]:
    if isinstance(item, Segment):
        return (item.whole, item.part)
    if isinstance(item, IndexMap):
        return (item.out, item.source)
    return (item.whole, *item.factors)


def _parts_by_whole(relations: Relations, items: list[Relation]) -> dict[Axis, list[Segment]]:
    parts: dict[Axis, list[Segment]] = {}
    for item in items:
        if isinstance(item, Segment):
            parts.setdefault(relations.dim(item.whole), []).append(item)
    return parts


def _consequences(
    relations: Relations, item: Relation, covered: dict[Axis, list[Segment]]
) -> list[tuple[Axis, Why]]:
    """Dims that a relation freezes as a whole because Dims beside them are frozen."""
    if isinstance(item, Segment):
        whole = relations.why(item.whole)
        if whole:
            return [(item.part, whole)]
        if relations.why(item.part) and _all_frozen(relations, item.whole, covered):
            return [(item.whole, relations.why(item.part) or ())]
        return []
    if isinstance(item, IndexMap):
        source, out = relations.why(item.source), relations.why(item.out)
        if source:
            return [(item.out, source)]
        if out and _takes_all(item.index, relations.extent(item.source).nominal):
            return [(item.source, out)]
        return []
    whole = relations.why(item.whole)
    if whole:
        return [(axis, whole) for axis in item.factors]
    if not all(relations.why(axis) for axis in item.factors):
        return []
    blocks = [axis for axis in item.factors if relations.dim(axis) in relations.blocks]
    wanted = max(blocks or item.factors[::-1], key=lambda axis: relations.extent(axis).nominal)
    return [(item.whole, relations.why(wanted) or ())]


def _takes_all(index: Ints, size: int) -> bool:
    """Whether every one of `size` elements is picked; a short index can't."""
    return len(index) >= size and len(np.unique(index[index >= 0])) == size


def _all_frozen(relations: Relations, whole: Axis, covered: dict[Axis, list[Segment]]) -> bool:
    """Whether frozen parts cover every element of the whole."""
    segments = covered[relations.dim(whole)]
    frozen = {
        (s.offset, relations.extent(s.part).nominal) for s in segments if relations.why(s.part)
    }
    reach = 0
    for offset, size in sorted(frozen):
        if offset > reach:
            return False
        reach = max(reach, offset + size)
    return reach >= relations.extent(whole).nominal


def _count_blocks(relations: Relations, items: list[Relation]) -> None:
    """Blocks that are merged with what stays (batch x heads) are counted by the other factor."""
    for item in items:
        if isinstance(item, Product) and relations.dim(item.whole) in relations.blocks:
            free = [axis for axis in item.factors if not relations.why(axis)]
            if len(free) == 1:
                relations.prefer(free[0])


def _has_blocks(relations: Relations, item: Relation) -> bool:
    return any(relations.dim(axis) in relations.blocks for axis in _axes(item)[1:])


def _choose(relations: Relations, item: Relation) -> tuple[Axis | None, list[Axis]]:
    """The factor to prune along, and the factors that freeze for it.

    Independent blocks (heads, groups) come first, the outermost of them if there are several;
    else the largest factor.
    """
    factors = _axes(item)[1:]
    free = [axis for axis in factors if not relations.why(axis)]
    if not free:
        return None, []
    whole_is_blocks = relations.dim(_axes(item)[0]) in relations.blocks  # then so is each factor
    blocks = [a for a in free if whole_is_blocks or relations.dim(a) in relations.blocks]
    best = blocks[0] if blocks else max(free, key=lambda axis: relations.extent(axis).nominal)
    losers = [a for a in free if a is not best and relations.dim(a) != relations.dim(best)]
    if len(losers) < len(free) - 1:  # the same Dim twice (x merged with x): no factor can go
        return None, free
    return best, losers


# --- steps 2 and 3 ---------------------------------------------------------------------------


class _Elements:
    """The elements of all free Dims in one array."""

    def __init__(self, relations: Relations, free: list[Axis]) -> None:
        self.relations = relations
        self.dims = [dim for dim in free if self._size(dim) > 0]
        self.sizes = np.array([self._size(dim) for dim in self.dims], np.int64)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.start_of = dict(zip(self.dims, self.starts.tolist(), strict=True))
        self.frozen = np.zeros(int(self.sizes.sum()), bool)
        self.edges: list[tuple[Ints, Ints]] = []
        self.runs: list[tuple[int, int, int]] = []  # edges between ranges: two starts and a length

    def components(
        self, items: list[Relation], carrying: dict[int, Axis], reaches_parameter: set[Axis]
    ) -> tuple[Channels, list[Axis]]:
        """The coupled channels, and the first Dim of each group."""
        for position, item in enumerate(items):
            self._connect(item, carrying.get(position))
        if self.runs:
            self.edges.append(_expanded(np.array(self.runs)))
        labels = _components(len(self.frozen), self.edges)
        alive = np.zeros(len(labels), bool)
        reached = [dim in reaches_parameter for dim in self.dims]
        alive[labels[np.repeat(np.array(reached, bool), self.sizes)]] = True
        alive[labels[self.frozen]] = False
        return self._number(labels, alive)

    def _at(self, axis: Axis) -> int | None:
        """Where the axis's Dim starts in the array, or None if it is frozen."""
        return self.start_of.get(self.relations.dim(axis))

    def _size(self, axis: Axis) -> int:
        return self.relations.extent(axis).nominal

    def _connect(self, item: Relation, carrier: Axis | None) -> None:
        if isinstance(item, Segment):
            self._tie_run(item)
        elif isinstance(item, IndexMap):
            if self._at(item.out) is not None or self._at(item.source) is not None:
                taken = item.index >= 0
                self._freeze(item.out, np.flatnonzero(~taken))
                self._tie(item.out, np.flatnonzero(taken), item.index[taken], item.source)
        elif carrier is not None:
            sizes = [self._size(axis) for axis in item.factors]
            at = item.factors.index(carrier)
            outer, inner = math.prod(sizes[:at]), math.prod(sizes[at + 1 :])
            self._tie(item.whole, *_digits(outer, sizes[at], inner), carrier)
        elif self._at(item.whole) is not None:
            self._freeze(item.whole, np.arange(self._size(item.whole)))

    def _tie_run(self, item: Segment) -> None:
        whole, part, size = self._at(item.whole), self._at(item.part), self._size(item.part)
        if whole is not None and part is not None:
            self.runs.append((whole + item.offset, part, size))
        elif whole is not None:
            self.frozen[whole + item.offset : whole + item.offset + size] = True
        elif part is not None:
            self.frozen[part : part + size] = True

    def _tie(self, first: Axis, first_index: Ints, second_index: Ints, second: Axis) -> None:
        a, b = self._at(first), self._at(second)
        if a is not None and b is not None:
            self.edges.append((a + first_index, b + second_index))
        elif a is not None:
            self._freeze(first, first_index)
        elif b is not None:
            self._freeze(second, second_index)

    def _freeze(self, axis: Axis, index: Ints) -> None:
        start = self._at(axis)
        if start is not None:
            self.frozen[start + index] = True

    def _number(self, labels: Ints, alive: NDArray[np.bool_]) -> tuple[Channels, list[Axis]]:
        """Number the living components, those of the same signature next to each other.

        Sums of the same random weights in the same order are equal, others are not.
        """
        generator = random.Random(0)
        weights = [generator.random() for _ in self.dims]
        sums = np.bincount(labels, np.repeat(weights, self.sizes), len(labels))
        living = np.flatnonzero(alive)
        sums = sums[living]
        runs = np.flatnonzero(np.diff(sums, prepend=-1.0))
        numbers: dict[float, int] = {}
        of_run = [numbers.setdefault(total, len(numbers)) for total in sums[runs].tolist()]
        group = np.repeat(np.array(of_run, np.int64), np.diff(runs, append=len(living)))
        ordered = living[np.argsort(group, kind="stable")]
        channel = np.full(len(labels), -1, np.int64)
        channel[ordered] = np.arange(len(living))
        bounds = np.append(0, np.cumsum(np.bincount(group, minlength=len(numbers))))
        firsts = np.searchsorted(self.starts, ordered[bounds[:-1]], side="right") - 1
        channel = channel[labels]
        last = np.maximum.reduceat(channel, self.starts) if self.dims else self.starts
        ranges = zip(self.dims, self.starts.tolist(), self.sizes.tolist(), last >= 0, strict=True)
        of_element = {dim: channel[at : at + size] for dim, at, size, free in ranges if free}
        return Channels(of_element, bounds), [self.dims[first] for first in firsts.tolist()]


@lru_cache(maxsize=64)  # layers repeat
def _digits(outer: int, size: int, inner: int) -> tuple[Ints, Ints]:
    """Every element of a merged axis, and which of the `size` elements of one factor is in it."""
    digit = np.tile(np.repeat(np.arange(size), inner), outer)
    return np.arange(len(digit)), digit


def _expanded(runs: Ints) -> tuple[Ints, Ints]:
    """The edges between ranges, one by one."""
    first, second, sizes = runs.T
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(first, sizes) + within, np.repeat(second, sizes) + within


def _components(count: int, edges: list[tuple[Ints, Ints]]) -> Ints:
    """For each element, the first element of its component.

    Of each edge the later end follows the earlier one, then all follow what those follow. An
    element can follow only one other; edges that this leaves apart join what their ends followed
    in the next round. Relations make shallow trees, where few rounds, all of them array operations,
    take a fraction of a search; what is left after these is searched.
    """
    labels = np.arange(count)
    if not edges:
        return labels
    a, b = (np.concatenate(ends) for ends in zip(*edges, strict=True))
    for _ in range(_ROUNDS):
        later = np.maximum(a, b)
        a, b = np.minimum(a, b, out=a), later
        np.minimum.at(labels, b, a)
        while not np.array_equal(further := labels[labels], labels):
            labels = further
        a, b = labels[a], labels[b]
        apart = a != b
        if not apart.any():
            return labels
        a, b = a[apart], b[apart]
    matrix = csr_array((np.ones(len(a), bool), (a, b)), shape=(count, count))
    labels = connected_components(matrix, directed=False)[1].astype(np.int64)[labels]
    first = np.zeros(count, np.int64)
    first[labels[::-1]] = np.arange(count)[::-1]
    return first[labels]
