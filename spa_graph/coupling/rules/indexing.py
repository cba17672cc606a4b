"""Slice and Gather: operators that pick elements of an axis by position.

A contiguous slice is a `Segment`, any other constant selection an `IndexMap`. Positions that come
from data (embedding look-up) freeze the axis that they index, unless a ranking made them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.registry import rule
from spa_graph.coupling.relations import Axes, Axis
from spa_graph.coupling.scope import Scope
from spa_graph.graph import ONE

BY_POSITION = "picks elements by position"


def _index(scope: Scope, axes: Axes, why: str) -> None:
    """Input 1 holds positions in these axes: those that a ranking made, or the axes freeze.

    Where they pick one of several stored matrices, what was ranked counts experts.
    """
    if not scope.look_up(1, *axes):
        scope.freeze(axes, why)
    elif scope.is_stored(0) and sum(n != ONE for n in scope.extents(scope.input(0) or ())) > 2:
        scope.prefer(axes[0], "experts")


@rule("Slice")
def slice_(scope: Scope) -> None:
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    entries = _slice_entries(scope, len(x))
    reversed_ = [p for p, (_, pair) in (entries or {}).items() if pair is not None and pair[1] < 0]
    cut = {p for p in range(len(x)) if scope.extent(x[p]) != scope.extent(out[p])} | {*reversed_}
    for position, (source, target) in enumerate(zip(x, out, strict=True)):
        entry = entries.get(position) if entries is not None else None
        if position not in cut and entries is not None:
            scope.same(source, target)
        elif entry is None or entry[1] is None or not scope.extent(source).static:
            scope.freeze((source, target), "cuts this axis at positions that are not constant")
        else:
            _cut(scope, source, target, entry[0], *entry[1], alone=len(cut) <= 1)
    scope.zero("move")


def _cut(
    scope: Scope, source: Axis, target: Axis, entry: int, start: int, step: int, *, alone: bool
) -> None:
    size, count = scope.extent(source).nominal, scope.extent(target).nominal
    start = max(start + size, 0) if start < 0 else min(start, size - 1 if step < 0 else size)
    if step == 1:
        scope.segment(source, start, target)
        scope.slice_bounds(entry, source, target, start)
    elif alone:
        index = start + step * np.arange(count)
        scope.index_map(target, source, index)
        scope.becomes_gather(target, source, index)
    else:
        scope.freeze((source, target), "cuts several axes at once, with a stride")


def _slice_entries(scope: Scope, rank: int) -> dict[int, tuple[int, tuple[int, int] | None]] | None:
    """Per axis: its place in the Slice's lists, and (start, step) if they are constant."""
    if scope.operator.version < 10:
        starts: NDArray[Any] | None = np.array(scope.attribute("starts"))
        listed = scope.attribute("axes")
        axes = np.array(listed if listed is not None else range(len(scope.attribute("starts"))))
        steps: NDArray[Any] | None = np.ones(len(axes), np.int64)
    else:
        if scope.has_input(3) and scope.constant(3) is None:
            return None
        known = scope.known(1)
        if known is None and not scope.has_input(3):
            return None
        starts = scope.constant(1) if scope.constant(2) is not None else None
        given = scope.constant(3)
        count = len(given) if given is not None else known.nominal.size if known else 0
        axes = given if given is not None else np.arange(count)
        steps = scope.constant(4) if scope.has_input(4) else np.ones(count, np.int64)
    found: dict[int, tuple[int, tuple[int, int] | None]] = {}
    for place, axis in enumerate(np.asarray(axes).reshape(-1).tolist()):
        both = starts is not None and steps is not None
        pair = (int(starts[place]), int(steps[place])) if both else None  # type: ignore[index]
        found[int(axis) % rank] = (place, pair)
    return found


@rule("Gather")
def gather(scope: Scope) -> None:
    x, index, out = scope.input(0), scope.input(1), scope.output()
    if x is None or index is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    along = scope.attribute("axis", 0) % len(x)
    scope.align(x[:along], out[:along])
    scope.align(x[along + 1 :], out[along + len(index) :])
    positions = scope.constant(1)
    picked = out[along : along + len(index)]
    if positions is not None and positions.ndim < 2 and scope.extent(x[along]).static:
        scope.freeze(index, "holds positions")
        positions = positions.reshape(-1) % scope.extent(x[along]).nominal
        target = picked[0] if picked else scope.fixed(1, "is a single element")
        scope.index_map(target, x[along], positions)
        scope.input_index(1, target, x[along], positions)
    else:
        _index(scope, (x[along],), "is looked up by position")
        scope.align(index, picked)
        if scope.known(1) is not None:
            scope.freeze(picked, "holds elements chosen by position")
        elif scope.is_parameter(0):
            scope.role(0, "table")
    scope.zero("move")


@rule("GatherElements", "ScatterElements", "Scatter")
def by_data(scope: Scope) -> None:
    """Positions along one axis are data. Beside it, an element meets only those at its own place.

    That holds where positions cover all of an axis; of one that they cover in part nothing moves.
    """
    every = [*scope.inputs(), *scope.outputs()]
    if len({len(axes) for axes in every}) != 1 or len(every) < 3:
        return scope.freeze_all("an operand has no known shape")
    along, gathers = scope.attribute("axis", 0) % len(every[0]), len(every) == 3
    for position, axes in enumerate(zip(*every, strict=True)):
        if position == along:
            indexed = axes[:1] if gathers else (axes[0], axes[-1])
            _index(scope, indexed, BY_POSITION)
            scope.freeze({*axes}.difference(indexed), BY_POSITION)
        elif len({*map(scope.extent, axes)}) == 1:
            scope.same(*axes)
        else:
            scope.freeze(axes, BY_POSITION)
    scope.zero("all", (0,) if gathers else (0, 2))


def _index_nd(scope: Scope, *picked: Axes) -> None:
    """Positions may name one axis; of several, it isn't known which number is in which."""
    axes = tuple(axis for own in picked for axis in own)
    if len(picked[0]) == 1:
        _index(scope, axes, BY_POSITION)
    else:
        scope.freeze(axes, BY_POSITION)


@rule("GatherND")
def gather_nd(scope: Scope) -> None:
    """data (*b, *picked, *rest), positions (*b, *chosen, picked) -> (*b, *chosen, *rest)."""
    data, positions, out = scope.input(0), scope.input(1), scope.output()
    if data is None or positions is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    batch = scope.attribute("batch_dims", 0)
    rest = batch + scope.extent(positions[-1]).nominal
    _index_nd(scope, data[batch:rest], ())
    scope.freeze((*data[:batch], *positions, *out[: len(positions) - 1]), BY_POSITION)
    scope.align(data[rest:], out[len(positions) - 1 :])
    scope.zero("all", (0,))


@rule("ScatterND")
def scatter_nd(scope: Scope) -> None:
    """data (*picked, *rest), positions (*chosen, picked), updates (*chosen, *rest) -> like data."""
    data, positions, updates = scope.input(0), scope.input(1), scope.input(2)
    out = scope.output()
    if data is None or positions is None or updates is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    rest = scope.extent(positions[-1]).nominal
    _index_nd(scope, data[:rest], out[:rest])
    scope.freeze(positions, BY_POSITION)
    scope.freeze(updates[: len(positions) - 1], BY_POSITION)
    behind = zip(data[rest:], updates[len(positions) - 1 :], out[rest:], strict=True)
    for source, update, target in behind:
        scope.same(source, update, target)
    scope.zero("all", (0, 2))


@rule("Compress")
def compress(scope: Scope) -> None:
    """Keeps the elements along `axis` (of the flat tensor without it) that a condition tells."""
    x, out = scope.input(0), scope.output()
    if x is None or out is None or "axis" not in scope.operator.attributes:
        return scope.freeze_all(BY_POSITION)
    along = scope.attribute("axis") % len(x)
    scope.freeze((x[along], out[along]), BY_POSITION)
    for position, (source, target) in enumerate(zip(x, out, strict=True)):
        if position != along:
            scope.same(source, target)
    scope.zero("all", (0,))
