"""Operators that can be run in tiles: along an axis on which outputs don't need other inputs.

This follows from what ONNX says of an operator alone, not from the analysis of a network, so that
the proof of an analysis may run what it compares in tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from spa_graph.coupling.rules.elementwise import ELEMENTWISE
from spa_graph.frontends.onnx.pieces import is_stored, reads
from spa_graph.frontends.onnx.weights import stored_tensor

Shape = tuple[int, ...]
Slots = tuple[int | None, ...]
"""For every input its axis that is cut as the output's is; None: it is read whole."""
Rule = Callable[[ir.Node, Sequence[Shape]], Iterator[tuple[int, Slots]]]
BATCHED = ("AveragePool", "Conv", "ConvTranspose", "GlobalAveragePool", "LpPool", "MaxPool")
"""Operators whose first input's first axis is a batch, and that have nothing else of it."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """An axis of the only output, and of each input, along which an operator may be cut.

    extent: the number of elements of the axis.
    """

    axis: int
    slots: Slots
    extent: int


def tilings(node: ir.Node, shapes: Sequence[Shape]) -> list[Tiling]:
    """The axes along which an operator with a single output can be run in tiles, outermost first.

    Weights aren't cut, and what is read twice is cut in one way.

    Args:
        shapes: of its inputs, all of which are there.
    """
    rule = _RULES.get(node.op_type)
    if rule is None or node.domain or len(node.outputs) != 1 or None in node.inputs:
        return []
    found = []
    for axis, slots in rule(node, shapes):
        extents = {shapes[i][at] for i, at in enumerate(slots) if at is not None}
        if len(extents) == 1 and min(extents) > 1 and _cuts_features(reads(node), slots):
            found.append(Tiling(axis, slots, *extents))
    return sorted(found, key=lambda each: each.axis)


def _cuts_features(values: Sequence[ir.Value], slots: Slots) -> bool:
    cut = list(zip(values, slots, strict=True))
    ways = dict(cut)
    return all(ways[value] == at and (at is None or not is_stored(value)) for value, at in cut)


def _broadcast(_node: ir.Node, shapes: Sequence[Shape]) -> Iterator[tuple[int, Slots]]:
    yield from _along(shapes, range(max(map(len, shapes))))


def _along(shapes: Sequence[Shape], axes: Sequence[int]) -> Iterator[tuple[int, Slots]]:
    """Axes that are aligned from the right; inputs that have one element there are repeated."""
    rank = max(map(len, shapes))
    for axis in axes:
        own = [axis - rank + len(shape) for shape in shapes]
        yield (
            axis,
            tuple(
                at if at >= 0 and shape[at] != 1 else None
                for at, shape in zip(own, shapes, strict=True)
            ),
        )


def _matmul(_node: ir.Node, shapes: Sequence[Shape]) -> Iterator[tuple[int, Slots]]:
    """Every matrix by itself, and every row of the first input."""
    rank = max(map(len, shapes))
    if min(map(len, shapes)) > 1:
        yield from _along(shapes, range(rank - 2))
        yield rank - 2, (len(shapes[0]) - 2, None)


def _transpose(node: ir.Node, shapes: Sequence[Shape]) -> Iterator[tuple[int, Slots]]:
    order = node.attributes.get_ints("perm", [*range(len(shapes[0]))[::-1]])
    yield from ((axis, (at,)) for axis, at in enumerate(order))


def _reshape(node: ir.Node, shapes: Sequence[Shape]) -> Iterator[tuple[int, Slots]]:
    """The first axis, where the file states the others and they are rearranged among themselves."""
    target = node.inputs[1]
    if target is None or not is_stored(target):
        return
    sizes = [int(size) for size in stored_tensor(target).numpy()]
    first, others = sizes[:1], sizes[1:]
    if (
        first in ([0], [-1])
        and min(others, default=0) > 0
        and math.prod(shapes[0][1:]) == math.prod(others)
    ):
        yield 0, (0, None)


def _softmax(node: ir.Node, shapes: Sequence[Shape]) -> Iterator[tuple[int, Slots]]:
    """Axes before the one that is stated: up to opset 12 it means all axes from there on."""
    stated = node.attributes.get_int("axis", 1)  # the first axis stays in front of any default
    yield from ((axis, (axis,)) for axis in range(stated % len(shapes[0])))


def _slice(node: ir.Node, shapes: Sequence[Shape]) -> Iterator[tuple[int, Slots]]:
    """Axes that it leaves whole, where the file says which."""
    rank, given = len(shapes[0]), node.inputs[3:4]
    if given and given[0] is not None and is_stored(given[0]):
        cut = {int(axis) % rank for axis in stored_tensor(given[0]).numpy()}
        others = (None,) * (len(shapes) - 1)
        yield from ((axis, (axis, *others)) for axis in range(rank) if axis not in cut)


def _concat(node: ir.Node, shapes: Sequence[Shape]) -> Iterator[tuple[int, Slots]]:
    rank = len(shapes[0])
    joined = node.attributes.get_int("axis", 0) % rank
    yield from ((axis, (axis,) * len(shapes)) for axis in range(rank) if axis != joined)


def _scatter_nd(_node: ir.Node, shapes: Sequence[Shape]) -> Iterator[tuple[int, Slots]]:
    """What a position holds is written as a whole."""
    data, indices, _ = shapes
    for axis in range(indices[-1], len(data)):
        yield axis, (axis, None, axis - indices[-1] + len(indices) - 1)


def _batched(_node: ir.Node, shapes: Sequence[Shape]) -> Iterator[tuple[int, Slots]]:
    yield 0, (0, *(None,) * (len(shapes) - 1))


_RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _broadcast),
    **dict.fromkeys(BATCHED, _batched),
    "Concat": _concat,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "Reshape": _reshape,
    "ScatterND": _scatter_nd,
    "Slice": _slice,
    "Softmax": _softmax,
    "Transpose": _transpose,
}
