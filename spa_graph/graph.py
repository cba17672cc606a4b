"""The frontend-neutral graph: what the analysis sees of a network.

A size is known twice. Every network is looked at under two assignments of its dynamic axes (two
*probes*); a size that is the same in both is static. So symbolic shapes need no algebra: equality,
divisibility and products are compared as pairs of numbers, and a batch of 3 is never mistaken for
3 colour channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Extent(NamedTuple):
    """The size of one axis under the two probes."""

    nominal: int
    other: int

    @property
    def static(self) -> bool:
        """Whether the size is known and doesn't depend on the inputs' sizes."""
        return self.nominal == self.other

    def __mul__(self, factor: object) -> Extent:
        """The size of the axis that merges two axes."""
        if not isinstance(factor, tuple):
            return NotImplemented
        return Extent(self.nominal * factor[0], self.other * factor[1])

    def divides(self, whole: Extent) -> bool:
        """Whether this size divides `whole` in both probes."""
        if min(self) < 1 or min(whole) < 1:
            return False
        return whole.nominal % self.nominal == 0 and whole.other % self.other == 0

    def into(self, whole: Extent) -> Extent:
        """`whole / self`; only meaningful if `self.divides(whole)`."""
        return Extent(whole.nominal // self.nominal, whole.other // self.other)


ONE = Extent(1, 1)
Shape = tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """A small value that follows from shapes and constants alone, under both probes.

    `origins` names the axes whose sizes it was computed from, as (value, axis). If it is a `fill`,
    they decide about its shape only: each element is the same whatever the sizes are. It is
    `static` if it is the same whatever sizes the inputs have, which equality in two probes alone
    doesn't show (`min(length, 8)`).
    """

    nominal: NDArray[Any]
    other: NDArray[Any]
    origins: frozenset[tuple[str, int]] = frozenset()
    fill: bool = False
    static: bool = False

    @property
    def uniform(self) -> bool:
        """Whether it is one value repeated, not by coincidence of sizes: zeros, ones."""
        if self.origins and not self.fill:
            return False
        return all((v == v.flat[0]).all() for v in (self.nominal, self.other) if v.size)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A stored constant: an initializer or the output of a Constant node.

    `load` maps or reads the weights when called; nothing is read before.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int
    load: Callable[[], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator. An absent optional input or output is the empty string.

    `index` is its place in `Graph.operators`, `position` its place in the frontend's network.
    """

    index: int
    position: int
    name: str
    domain: str
    op_type: str
    version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    captures: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The operator type as people write it, with a domain unless it is ONNX's own."""
        return f"{self.domain}::{self.op_type}" if self.domain else self.op_type

    def __str__(self) -> str:
        return f"{self.kind} `{self.name}`"


@dataclass(slots=True)
class Graph:
    """A network as operators over named values, in topological order."""

    name: str
    operators: list[Operator]
    shapes: dict[str, Shape]
    parameters: dict[str, Parameter]
    known: dict[str, Known]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtypes: dict[str, np.dtype[Any]] = field(default_factory=dict)
    samples: list[dict[str, tuple[int, ...]]] = field(default_factory=list)
    """Shapes of the inputs to run the network with; the first are those of the probes, which it
    accepts, the last it may reject."""
    unsized: frozenset[tuple[str, int]] = frozenset()
    """Axes (value, position) whose size depends on data, so that the probes' were chosen for it, or
    is the same in both probes by coincidence."""
    merges: bool = True
    """Whether equal weights may have been merged by an exporter, so that sharing says little."""
    unshaped: dict[str, str] = field(default_factory=dict)
    """Values whose shape could not be inferred, with the reason."""

    def unsized_in(self, name: str) -> bool:
        """Whether the size of some axis of a value is not what the probes say."""
        return any((name, axis) in self.unsized for axis in range(len(self.shapes.get(name, ()))))

    def uses(self) -> dict[str, list[tuple[Operator, int]]]:
        """Where each value is consumed, as (operator, input position)."""
        found: dict[str, list[tuple[Operator, int]]] = {}
        for operator in self.operators:
            for slot, name in enumerate(operator.inputs):
                if name:
                    found.setdefault(name, []).append((operator, slot))
        return found
