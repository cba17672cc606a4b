"""Axes, Dims and the relations between them.

* An **axis** is one axis of one value, here a small integer.
* A **Dim** is a class of axes that share one index space, element for element (union-find).
* A **relation** ties elements of different Dims: `Segment`, `IndexMap`, `Product`.
* A Dim is **frozen** when its size must not change; it keeps the first reason it was given.

A large initializer that several operators use couples them: the tie is on purpose (tied
embeddings, siamese branches). A small one may be shared only because an exporter merged equal
tensors; each of its uses gets axes of its own, and it is copied if they end up pruned differently.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa_graph.graph import ONE, Extent, Graph, Operator, Parameter

Axis = int
Axes = tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """`whole[offset + i] ~ part[i]`: Concat, Split, contiguous Slice."""

    whole: Axis
    offset: int
    part: Axis


@dataclass(frozen=True, slots=True, eq=False)
class IndexMap:
    """`out[i] ~ source[index[i]]`: Gather, strided Slice, Tile. Index -1: `out[i]` is new."""

    out: Axis
    source: Axis
    index: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Product:
    """`whole` enumerates the combinations of `factors`, the last one running fastest."""

    whole: Axis
    factors: Axes


Relation = Segment | IndexMap | Product


@dataclass(frozen=True, slots=True)
class Use:
    """One operator's use of one parameter."""

    parameter: str
    operator: int
    slot: int
    axes: Axes


class Relations:
    """Collects what the rules say; `coupling.solver` turns it into channel groups."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.items: list[Relation] = []
        self.uses: list[Use] = []
        self.blocks: set[Axis] = set()
        self._parent: list[Axis] = []
        self._extent: list[Extent] = []
        self._label: list[str] = []
        self._reason: dict[Axis, str] = {}
        self._values: dict[str, Axes] = {}
        self._own_axes: dict[tuple[int, int], Axes] = {}
        self._enter_parameters()

    def _enter_parameters(self) -> None:
        uses = self.graph.uses()
        for name, parameter in self.graph.parameters.items():
            places = uses.get(name, [])
            shared = len(places) > 1 and tied_on_purpose(parameter)
            common = self.new_axes(name, parameter.shape) if shared else None
            for operator, slot in places:
                axes = common or self.new_axes(name, parameter.shape)
                self._own_axes[operator.index, slot] = axes
                self.uses.append(Use(name, operator.index, slot, axes))

    # --- axes ---------------------------------------------------------------------------------

    def new_axis(self, extent: Extent, label: str) -> Axis:
        """An axis of no value in particular, such as the number of groups of a convolution."""
        axis = len(self._parent)
        self._parent.append(axis)
        self._extent.append(extent)
        self._label.append(label)
        if extent == ONE:
            self._reason[axis] = "has a single element"
        return axis

    def new_axes(self, name: str, shape: Iterable[int]) -> Axes:
        return tuple(
            self.new_axis(Extent(size, size), f"{name}:{i}") for i, size in enumerate(shape)
        )

    def value(self, name: str) -> Axes | None:
        """The axes of a value, or None if its shape is unknown."""
        if name not in self._values:
            shape = self.graph.shapes.get(name)
            if shape is None:
                return None
            axes = [self.new_axis(extent, f"{name}:{i}") for i, extent in enumerate(shape)]
            self._values[name] = tuple(axes)
            unsized = [a for i, a in enumerate(axes) if (name, i) in self.graph.unsized]
            self.freeze(unsized, "has a size that depends on data")
        return self._values[name]

    def operand(self, operator: Operator, slot: int) -> Axes | None:
        """The axes of an operator's input, its own where it uses a parameter."""
        own = self._own_axes.get((operator.index, slot))
        return own if own is not None else self.value(operator.inputs[slot])

    def extent(self, axis: Axis) -> Extent:
        return self._extent[axis]

    def label(self, axis: Axis) -> str:
        return self._label[axis]

    @property
    def count(self) -> int:
        return len(self._parent)

    # --- what rules say -----------------------------------------------------------------------

    def dim(self, axis: Axis) -> Axis:
        """The representative of the axis's Dim."""
        parent = self._parent
        while parent[axis] != axis:
            parent[axis] = parent[parent[axis]]
            axis = parent[axis]
        return axis

    def same(self, first: Axis, second: Axis, where: object) -> None:
        """Both axes are one index space. Axes of different sizes can't be: both are frozen."""
        a, b = self.dim(first), self.dim(second)
        if a == b:
            return
        if self._extent[a] != self._extent[b]:
            self.freeze((a, b), f"{where}: sizes disagree")
            return
        a, b = min(a, b), max(a, b)
        self._parent[b] = a
        reason = self._reason.pop(b, None)
        if reason is not None:
            self._reason.setdefault(a, reason)
        if b in self.blocks:
            self.blocks.add(a)

    def freeze(self, axes: Iterable[Axis], reason: str) -> None:
        for axis in axes:
            self._reason.setdefault(self.dim(axis), reason)

    def reason(self, axis: Axis) -> str | None:
        """Why the axis's Dim is frozen, or None."""
        return self._reason.get(self.dim(axis))

    def prefer(self, axis: Axis) -> None:
        """The axis counts independent blocks (heads, groups): given a choice, prune along it."""
        self.blocks.add(self.dim(axis))

    def add(self, relation: Relation) -> None:
        self.items.append(relation)


_PIECE = 1 << 16
"""How many weights are compared at a time: varied ones show at once."""


def tied_on_purpose(parameter: Parameter) -> bool:
    """Whether a shared parameter ties its users, rather than being merged because it was equal.

    Vectors and constant-filled tensors are what exporters merge; a matrix of varied weights is
    shared only where the network says so.
    """
    if sum(size > 1 for size in parameter.shape) < 2:
        return False
    weights = parameter.load().reshape(-1)
    pieces = (weights[i : i + _PIECE] for i in range(0, weights.size, _PIECE))
    return any(bool((piece != weights[0]).any()) for piece in pieces)


def product_of(extents: Sequence[Extent]) -> Extent:
    total = ONE
    for extent in extents:
        total = total * extent
    return total
