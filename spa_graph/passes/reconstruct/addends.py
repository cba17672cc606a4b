"""Addends: what a layer's result is added to, so that the result can make up for what that lost.

In a residual block the stream z and what the block's last layer computes, y, meet in an addition:

    z' = z + f y + c        f, c: constants per channel (a bias, a BatchNorm, a layer scale)

The next layers read z'. Fitting y to the dense network's y would leave the error of the pruned z in
the stream, block after block; fitting it to y + (z of the dense network - z) / f takes it out, as
far as y can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph.graph import Graph, Operator

Array = NDArray[Any]
Uses = Mapping[str, Sequence[tuple[Operator, int]]]
"""Where each value of a network is read: (operator, input)."""
FAINT = 1e-2
"""A channel that is scaled by less than this share of the others' (root mean square) on the way to
the addition would have to make up for the addend by large results, and is left out."""


@dataclass(frozen=True, slots=True, eq=False)
class Addend:
    """A value to which nothing but the layer's scaled result is added.

    value: its name; factor: what the result is multiplied by before; (results,).
    axis: that of the results in both, counted from the end.
    """

    value: str
    factor: Array
    axis: int

    def lost(self, dense: Array, pruned: Array, results: Array, positions: Array) -> Array:
        """What the results must have more to make up for it; (positions, results that stay).

        Args:
            dense, pruned: the value in both networks.
            results: which of the dense results stay; (channels,).
        """
        lost = self._rows(dense, positions)[:, results] - self._rows(pruned, positions)
        strong = np.abs(self.factor) > FAINT * np.sqrt(np.mean(np.square(self.factor)))
        return np.asarray(lost * strong / np.where(strong, self.factor, 1))

    def _rows(self, value: Array, positions: Array) -> Array:
        moved = np.moveaxis(value, self.axis, -1)
        return moved.reshape(-1, moved.shape[-1])[positions].astype(np.float32, copy=False)


def find_addend(result: str, axis: int, graph: Graph, uses: Uses) -> Addend | None:
    """What a result is added to in a network, if nothing but constants is applied to it before.

    Args:
        axis: the result's axis of channels, counted from the end.
    """
    if (shape := graph.shapes.get(result)) is None:
        return None
    factor = np.ones(shape[axis].nominal, np.float32)
    while result not in graph.outputs and len(uses.get(result, ())) == 1:
        operator, slot = uses[result][0]
        if graph.shapes.get(operator.outputs[0]) != shape:
            return None
        scale = _scale(operator, slot, axis, graph)
        if scale is None:
            other = _summand(operator, slot)
            alike = other is not None and graph.shapes.get(other) == shape
            return Addend(other, factor, axis) if other and alike else None
        factor, result = factor * scale, operator.outputs[0]
    return None


def _summand(operator: Operator, slot: int) -> str | None:
    """What an operator adds to its input."""
    return operator.inputs[1 - slot] if operator.kind == "Add" else None


def _scale(operator: Operator, slot: int, axis: int, graph: Graph) -> Array | float | None:
    """What constants multiply an operator's input by, per channel; None if it does something else.

    What they add is the same in both networks, and so of no matter.
    """
    if operator.kind == "BatchNormalization":
        return _batch_norm(operator, axis, graph) if slot == 0 else None
    if operator.kind not in ("Add", "Mul") or operator.inputs[1 - slot] not in graph.parameters:
        return None
    if operator.kind == "Add":
        return 1.0
    factor = graph.parameters[operator.inputs[1 - slot]].load()
    along = factor.shape[axis] if factor.ndim >= -axis else 1
    return factor.reshape(-1) if factor.size == along else None


def _batch_norm(operator: Operator, axis: int, graph: Graph) -> Array | None:
    rank = len(graph.shapes[operator.inputs[0]])
    stored = [graph.parameters.get(operator.inputs[slot]) for slot in (1, 4)]
    training = operator.attributes.get("training_mode", 0)
    if None in stored or training or rank + axis != 1:
        return None
    scale, variance = (each.load().astype(np.float32) for each in stored if each is not None)
    return np.asarray(scale / np.sqrt(variance + operator.attributes.get("epsilon", 1e-5)))
