"""Operators that rename, merge, split, repeat or join axes without touching their elements.

Reshape alignment: walk both shapes from the left and cut them wherever both have covered the same
number of elements. One axis against one is the same Dim, one against several a `Product`, several
against several their common refinement.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate, pairwise
from operator import mul

import numpy as np

from spa_graph.coupling.registry import rule
from spa_graph.coupling.relations import Axes, Axis, Relations
from spa_graph.coupling.rules.linear import broadcast
from spa_graph.coupling.scope import Scope
from spa_graph.graph import ONE, Extent, Shape


@rule("Reshape", "Flatten", "Unsqueeze")
def reshape(scope: Scope) -> None:
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    regroup(scope, x, out)
    scope.zero("move")


@rule("Squeeze")
def squeeze(scope: Scope) -> None:
    """Without a list of axes it removes whichever have one element: no other may come to that."""
    reshape(scope)
    if not scope.has_input(1) and scope.attribute("axes") is None:
        scope.keeps(scope.output() or (), 2)


def regroup(scope: Scope, source: Axes, out: Axes) -> None:
    """Relate the axes of a tensor before and after a reshape."""
    lined_up = _line_up(scope.extents(source), scope.extents(out))
    if lined_up is None:
        return scope.freeze((*source, *out), "reshapes a tensor that is empty or of unknown size")
    equal, blocks, left_over = lined_up
    scope.free(source + out)  # below, or of a single element
    scope.align([source[i] for i, _ in equal], [out[j] for _, j in equal])
    for left, right in blocks:
        _relate_block(scope, [source[i] for i in left], [out[j] for j in right])
    if left_over is not None:
        silent = [source[i] for i in left_over[0]] + [out[j] for j in left_over[1]]
        scope.freeze(silent, "reshapes to sizes that do not line up")


_Block = tuple[list[int], list[int]]
_LinedUp = tuple[list[tuple[int, int]], list[_Block], _Block | None]


@lru_cache(maxsize=1024)
def _line_up(before: Shape, after: Shape) -> _LinedUp | None:
    """Positions of equal axes, of blocks of axes of equal product, and of what does not line up.

    Every block is the shortest one; axes of a single element belong to none. None if a size is not
    known, or zero.
    """
    if min(map(min, before + after), default=1) < 1:
        return None
    left = [i for i, extent in enumerate(before) if extent != ONE]
    right = [j for j, extent in enumerate(after) if extent != ONE]
    equal: list[tuple[int, int]] = []
    blocks: list[_Block] = []
    while left and right:
        a, b = 1, 1
        first, second = before[left[0]], after[right[0]]
        while first != second:
            if first < second and a < len(left):
                first, a = first * before[left[a]], a + 1
            elif first > second and b < len(right):
                second, b = second * after[right[b]], b + 1
            else:
                return equal, blocks, (left, right)
        if a == b == 1:
            equal.append((left[0], right[0]))
        else:
            blocks.append((left[:a], right[:b]))
        left, right = left[a:], right[b:]
    return equal, blocks, (left, right) if left or right else None


def _relate_block(scope: Scope, left: list[Axis], right: list[Axis]) -> None:
    if len(left) == 1 or len(right) == 1:
        whole, factors = (left[0], right) if len(left) == 1 else (right[0], left)
        scope.product(whole, factors)
        return
    refined = _common_refinement(scope.extents(left), scope.extents(right))
    if refined is None:
        scope.freeze((*left, *right), "reshapes to sizes that do not line up")
        return
    cuts, runs = refined
    factors = [scope.new_axis(cut, f"factor {i}") for i, cut in enumerate(cuts)]
    for axis, run in zip(left + right, runs, strict=True):
        scope.product(axis, factors[run])


@lru_cache(maxsize=1024)
def _common_refinement(*sides: Shape) -> tuple[list[Extent], list[slice]] | None:
    """Sizes of the factors into which the axes of all sides can be cut, and which of them each axis
    is made of; or None."""
    totals = [list(accumulate(side, mul)) for side in sides]
    reached = sorted({total for side in totals for total in side})
    cuts = []
    for before, total in pairwise((ONE, *reached)):
        if not before.divides(total) or before == total:
            return None
        cuts.append(before.into(total))
    place = {total: position for position, total in enumerate((ONE, *reached))}
    ends = [pairwise((ONE, *side)) for side in totals]
    return cuts, [slice(place[start], place[stop]) for side in ends for start, stop in side]


@rule("Transpose")
def transpose(scope: Scope) -> None:
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    order = scope.attribute("perm") or range(len(x))[::-1]
    scope.align([x[source] for source in order], out)
    scope.zero("move")


@rule("Expand")
def expand(scope: Scope) -> None:
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    broadcast(scope, x, out)
    repeated = scope.known(0)
    if repeated is not None and repeated.uniform:
        scope.free(out)  # one value everywhere takes any size
        return scope.zero("never" if repeated.nominal.any() else "move")
    scope.free(out)  # also copies of one element: any number of them
    scope.zero("all", (0,))


def copied_axes(relations: Relations, x: Axes, out: Axes) -> list[Axis]:
    """The axes along which an Expand repeats elements: all of theirs are copies of one."""
    new = list(out[: len(out) - len(x)])
    beside = zip(x, out[len(out) - len(x) :], strict=True)
    extents = relations.extents
    return new + [axis for source, axis in beside if extents[source] != extents[axis]]


@rule("Tile")
def tile(scope: Scope) -> None:
    x, out, repeats = scope.input(0), scope.output(), scope.known(1)
    if x is None or out is None or repeats is None:
        return scope.freeze_all("its repeats are not constant")
    for source, target, count in zip(x, out, repeats.nominal.tolist(), strict=True):
        if scope.extent(source) == scope.extent(target):
            scope.same(source, target)
        elif scope.extent(source).static and scope.extent(target).static:
            size = scope.extent(source).nominal
            scope.index_map(target, source, np.tile(np.arange(size), int(count)))
        elif scope.extent(source).divides(scope.extent(target)):
            times = scope.extent(source).into(scope.extent(target))
            scope.product(target, (scope.new_axis(times, "repeats"), source))
        else:
            scope.freeze((source, target), "repeats an axis of dynamic size")
    scope.zero("move")


@rule("Concat")
def concat(scope: Scope) -> None:
    out = scope.output()
    inputs = [scope.input(slot) for slot in range(len(scope.operator.inputs))]
    parts = [axes for axes in inputs if axes is not None]
    if out is None or len(parts) != len(inputs):
        return scope.freeze_all("an operand has no known shape")
    along = scope.attribute("axis", 1) % len(out)
    for position, axis in enumerate(out):
        if position == along:
            scope.segments(axis, [axes[position] for axes in parts])
        else:
            scope.same(axis, *(axes[position] for axes in parts))
    scope.zero("move")


@rule("Split")
def split(scope: Scope) -> None:
    x, outs = scope.input(0), scope.outputs()
    if x is None or len(outs) != len(scope.operator.outputs):
        return scope.freeze_all("an output is unused or has no known shape")
    along = scope.attribute("axis", 0) % len(x)
    computed = scope.has_input(1) and scope.constant(1) is None
    for position, axis in enumerate(x):
        if position == along and computed:
            scope.freeze((axis, *(axes[position] for axes in outs)), "splits at computed positions")
        elif position == along:
            scope.segments(axis, [axes[position] for axes in outs])
        else:
            scope.same(axis, *(axes[position] for axes in outs))
    parts = [axes[along] for axes in outs]
    if scope.operator.version >= 13:
        scope.input_sizes(1, parts)
    else:
        scope.attribute_sizes("split", parts)
    scope.zero("move")


@rule("DepthToSpace")
def depth_to_space(scope: Scope) -> None:
    """DCR: c = block x block x c', CRD: c = c' x block x block."""
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    block = scope.fixed(scope.attribute("blocksize") ** 2, "is spread over space")
    first = scope.attribute("mode", b"DCR") in ("DCR", b"DCR")
    scope.product(x[1], (block, out[1]) if first else (out[1], block))
    _spatial(scope, x, out)


@rule("SpaceToDepth")
def space_to_depth(scope: Scope) -> None:
    """c' = block x block x c."""
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    block = scope.fixed(scope.attribute("blocksize") ** 2, "is gathered from space")
    scope.product(out[1], (block, x[1]))
    _spatial(scope, x, out)


def _spatial(scope: Scope, x: Axes, out: Axes) -> None:
    scope.same(x[0], out[0])
    scope.freeze((*x[2:], *out[2:]), "moves elements between channels and space")
    scope.zero("move")


@rule("Pad")
def pad(scope: Scope) -> None:
    x, out = scope.input(0), scope.output()
    pads = scope.attribute("pads") if scope.operator.version < 11 else scope.constant(1)
    if x is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    axes = scope.constant(3)
    listed = [int(a) % len(x) for a in axes] if axes is not None else list(range(len(x)))
    plain = scope.attribute("mode", "constant") in ("constant", b"constant")
    for position, (source, target) in enumerate(zip(x, out, strict=True)):
        if position not in listed or (scope.extent(source) == scope.extent(target)):
            scope.same(source, target)
        elif pads is None or not plain or not scope.extent(source).static:
            scope.freeze((source, target), "pads this axis")
        else:
            before = int(pads[listed.index(position)])
            after = int(pads[listed.index(position) + len(listed)])
            if before < 0 or after < 0:
                scope.freeze((source, target), "pads this axis")
                continue
            own = np.arange(scope.extent(source).nominal)
            scope.index_map(target, source, np.pad(own, (before, after), constant_values=-1))
    scope.zero("move" if not plain or _pads_with_zero(scope) else "never")


def _pads_with_zero(scope: Scope) -> bool:
    if not scope.has_input(2):
        return not scope.attribute("value", 0.0)
    value = scope.constant(2)
    return value is not None and not np.any(value)


@rule("Resize", "Upsample")
def resize(scope: Scope) -> None:
    """Batch and channels pass, whatever comes behind is resampled."""
    x, out = scope.input(0), scope.output()
    for slot in range(1, len(scope.operator.inputs)):
        scope.freeze(scope.input(slot) or (), "holds settings")
    if x is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    for position, (source, target) in enumerate(zip(x, out, strict=True)):
        if position < 2 and scope.extent(source) == scope.extent(target):
            scope.same(source, target)
        else:
            scope.freeze((source, target), "resamples this axis")
    scope.zero("all", (0,))


@rule("ConstantOfShape")
def constant_of_shape(scope: Scope) -> None:
    """A tensor of one repeated value: it follows whatever its consumers need."""
    value = scope.attribute("value")
    scope.free(scope.output() or ())
    scope.zero("move" if value is None or not np.any(value.numpy()) else "never")


@rule("Shape", "Size")
def shape(scope: Scope) -> None:
    """Only names sizes; what it feeds is followed as data about axes."""
    scope.free(scope.input(0) or ())
