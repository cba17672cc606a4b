"""The linear operators of a network, and what they see on calibration data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.analysis import Coupling
from spa_graph.coupling.relations import Axes
from spa_graph.coupling.scope import Linear
from spa_graph.errors import ModelError
from spa_graph.graph import Operator
from spa_graph.passes.statistics.cell_map import linear_map
from spa_graph.passes.statistics.linear_map import LinearMap, Rows
from spa_graph.passes.statistics.moments import Floats, Moments

Ints = NDArray[np.int64]
POSITIONS = 16
"""Positions per input of a layer that are looked at: what more of them change is small."""
LEAST = 4096
"""... and at least so many."""
LEVELS = (0.25, 0.5, 0.75)
"""Shares of a group's channels without which the network is run to measure its sensitivity."""
LARGEST = 1e15
"""Sums of squares of larger features don't fit single precision."""


@dataclass(slots=True, eq=False)
class Layer:
    """One linear operator of the dense network.

    source: the value that holds its features.
    moments: of the channels that it reads, position by position. A convolution looks at windows;
        how channels go together shows in one position, and takes far less time and memory.
    """

    linear: Linear
    operator: Operator
    map: LinearMap
    source: str
    weight: str
    load: Callable[[], NDArray[Any]]
    moments: Moments = field(default_factory=Moments)

    @property
    def key(self) -> tuple[int, int]:
        """What identifies it: the operator, and which of its inputs is the weight."""
        return self.operator.index, self.linear.slots[1]

    @property
    def matrix(self) -> Rows:
        """The weight as (groups, inputs, outputs)."""
        return self.map.matrix(self.load())

    @property
    def by_channel(self) -> Rows:
        """The weight as (groups, channels, window * outputs): what becomes of each channel."""
        return self.matrix.reshape(self.map.groups, -1, self.map.window * self.map.outputs)

    def per_position(self, values: Floats) -> Floats:
        """Something per channel, (groups, channels), per position of the weight's input axis."""
        return values.reshape(-1) if self.map.transposed else values.sum(0)

    @property
    def blocks(self) -> int:
        """How many matrices have rows for all positions of the weight's input axis.

        Those of a grouped transposed convolution have positions of their own: none.
        """
        return 0 if self.map.transposed and self.map.groups > 1 else self.map.groups


def linear_layers(coupling: Coupling) -> list[Layer]:
    """The linear operators and recurrent cells whose weights are stored as numbers, in order."""
    graph = coupling.graph
    found = []
    every = (*coupling.facts.linears, *coupling.facts.cells)
    for linear in sorted(every, key=lambda linear: linear.operator):
        operator = graph.operators[linear.operator]
        source, weight = source_of(linear, operator), operator.inputs[linear.slots[1]]
        parameter = graph.parameters[weight]
        if parameter.dtype.kind == "f" and source not in graph.known:
            own = linear_map(linear, operator, parameter.shape)
            found.append(Layer(linear, operator, own, source, weight, parameter.load))
    return found


def source_of(linear: Linear, operator: Operator) -> str:
    """The value that holds the features of a linear operator, or of its twin after pruning."""
    return operator.outputs[0] if linear.recurs else operator.inputs[linear.slots[0]]


def features_axes(coupling: Coupling, layer: Layer) -> Axes:
    """The axes of a layer's features."""
    return coupling.relations.value(layer.source) or ()


def pick(
    generator: np.random.Generator, count: int, wanted: int, among: Ints | None = None
) -> Ints:
    """Some of `count` positions, in order; all of them if so many are wanted.

    Args:
        among: the positions, if they aren't 0, 1, ...
    """
    if among is not None:
        return np.asarray(among[pick(generator, len(among), wanted)])
    if wanted >= count:
        return np.arange(count)
    return np.sort(generator.choice(count, max(wanted, 1), replace=False))


def positions_wanted(layer: LinearMap) -> int:
    """How many positions of all batches together are looked at."""
    return max(POSITIONS * layer.inputs, LEAST)


class Scratch:
    """Arrays of zeros: in memory up to a limit, in files of a folder beyond it."""

    def __init__(self, limit: int, folder: Path) -> None:
        self._left = limit
        self._folder = folder
        self._files = 0

    def zeros(self, shape: tuple[int, ...]) -> Floats:
        size = 8 * math.prod(shape)
        if size <= self._left:
            self._left -= size
            return np.zeros(shape)
        self._files += 1
        return np.memmap(self._folder / f"moments{self._files}", np.float64, "w+", shape=shape)


def observe(
    layer: Layer,
    features: NDArray[Any],
    batches: int,
    generator: np.random.Generator,
    among: Ints | None = None,
) -> None:
    """Take one batch of `batches` into the moments of a layer; only some places, if they are given.

    Raises:
        ModelError: the features are no numbers, or so large that their squares aren't.
    """
    wanted = -(-max(POSITIONS * layer.by_channel.shape[1], LEAST) // batches)
    places = pick(generator, layer.map.places(features), wanted, among)
    rows = layer.map.at(features, places)
    if not np.abs(rows).max(initial=0) < LARGEST:
        raise ModelError(
            f"what the layer of `{layer.weight}` reads of the calibration data is NaN, infinite or "
            f"beyond {LARGEST:g}; check the data and its scale"
        )
    layer.moments.add(rows)
