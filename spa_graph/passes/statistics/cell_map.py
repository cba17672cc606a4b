"""A recurrent cell as matrix products; see `linear_map`.

What the gates add up of the input (W x) and of the state (R h) are linear, although the cell is
not: a matrix for every direction, so directions are groups, which may read the same features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spa_graph.coupling.scope import Linear
from spa_graph.graph import Operator
from spa_graph.passes.statistics.linear_map import Array, Ints, LinearMap, Rows


def linear_map(linear: Linear, operator: Operator, shape: Sequence[int]) -> LinearMap:
    """How an operator whose weight has this shape is laid out as matrices."""
    if linear.form == "cell":
        return CellMap(linear, tuple(shape), groups=shape[0])
    return LinearMap.of(linear, operator, shape)


@dataclass(frozen=True, slots=True)
class CellMap(LinearMap):
    """A weight (directions, outputs, inputs), and features that all or each direction reads."""

    @property
    def elements(self) -> Ints:
        return np.tile(np.arange(self.inputs), (self.groups, 1))

    @property
    def results(self) -> Ints:
        return np.tile(np.arange(self.outputs), self.groups)

    def matrix(self, weight: Array) -> Rows:
        return weight.astype(np.float32, copy=False).transpose(0, 2, 1)

    def weight(self, matrix: Array) -> Array:
        return matrix.transpose(0, 2, 1)

    def bias(self, results: Array) -> Array:
        """The cell takes two biases, one behind the other: with the input, and with the state."""
        other = np.zeros_like(results)
        parts = [other, results] if self.linear.recurs else [results, other]
        return np.concatenate(parts, axis=1)

    def features_by_group(self, channels: Array) -> Array:
        return channels[self.elements]

    def positions(self, features: Array) -> tuple[int, ...]:
        return (self.places(features),)

    def rows(self, features: Array, positions: Ints) -> Rows:
        return self._by_direction(features)[:, positions].astype(np.float32, copy=False)

    def places(self, features: Array) -> int:
        return self._by_direction(features).shape[1]

    def at(self, features: Array, places: Ints) -> Rows:
        return self.rows(features, places)

    def _by_direction(self, features: Array) -> Array:
        """What each direction reads; (directions, positions, inputs)."""
        if self.linear.directions is not None:
            features = np.moveaxis(features, self.linear.directions, 0)
            return features.reshape(self.groups, -1, self.inputs)
        flat = features.reshape(1, -1, self.inputs)
        return np.broadcast_to(flat, (self.groups, *flat.shape[1:]))
