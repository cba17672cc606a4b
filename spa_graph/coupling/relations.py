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
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spa_graph.graph import ONE, Extent, Graph, Operator, Parameter

Axis = int
Axes = tuple[Axis, ...]


class Segment(NamedTuple):
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


class Product(NamedTuple):
    """`whole` enumerates the combinations of `factors`, the last one running fastest."""

    whole: Axis
    factors: Axes


Relation = Segment | IndexMap | Product


class Use(NamedTuple):
    """One operator's use of one parameter."""

    parameter: str
    operator: int
    slot: int
    axes: Axes


Why = tuple[object, ...]


class Relations:
    """Collects what the rules say; `coupling.solver` turns it into channel groups."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.items: list[Relation] = []
        self.uses: list[Use] = []
        self.blocks: set[Axis] = set()
        self._parent: list[Axis] = []
        self.extents: list[Extent] = []
        self._owner: list[str] = []
        self._place: list[int | str] = []
        self._why: dict[Axis, Why] = {}
        self._values: dict[str, Axes] = {}
        self._own_axes: dict[tuple[int, int], Axes] = {}
        self._enter_parameters()

    def _enter_parameters(self) -> None:
        places: dict[str, list[tuple[int, int]]] = {name: [] for name in self.graph.parameters}
        for operator in self.graph.operators:
            for slot, name in enumerate(operator.inputs):
                if name in places:
                    places[name].append((operator.index, slot))
        for name, parameter in self.graph.parameters.items():
            shape = [Extent(size, size) for size in parameter.shape]
            users = [self.graph.operators[operator].op_type for operator, _ in places[name]]
            shared = len(users) > 1 and (CUTTING.issuperset(users) or tied_on_purpose(parameter))
            common = self._new_axes(name, shape) if shared else None
            for place in places[name]:
                axes = common or self._new_axes(name, shape)
                self._own_axes[place] = axes
                self.uses.append(Use(name, *place, axes))

    # --- axes ---------------------------------------------------------------------------------

    def new_axis(self, extent: Extent, owner: str, label: str) -> Axis:
        """An axis of no value in particular, such as the number of groups of a convolution."""
        (axis,) = self._new_axes(owner, (extent,))
        self._place[axis] = label
        return axis

    def _new_axes(self, name: str, shape: Sequence[Extent]) -> Axes:
        first, rank = len(self._parent), len(shape)
        axes = tuple(range(first, first + rank))
        self._parent += axes
        self.extents += shape
        self._owner += [name] * rank
        self._place += range(rank)
        if ONE in shape:
            self.freeze((a for a in axes if self.extents[a] == ONE), "has a single element")
        return axes

    def value(self, name: str) -> Axes | None:
        """The axes of a value, or None if its shape is unknown."""
        axes = self._values.get(name)
        if axes is None and name in self.graph.shapes:
            axes = self._values[name] = self._new_axes(name, self.graph.shapes[name])
            unsized = [a for i, a in enumerate(axes) if (name, i) in self.graph.unsized]
            self.freeze(unsized, "has a size that depends on what comes in")
        return axes

    def operand(self, operator: Operator, slot: int) -> Axes | None:
        """The axes of an operator's input, its own where it uses a parameter."""
        return self._own_axes.get((operator.index, slot)) or self.value(operator.inputs[slot])

    def operands(self, operator: Operator) -> list[Axes | None]:
        """The axes of all inputs."""
        own = self._own_axes.get
        return [
            own((operator.index, slot)) or self.value(name)
            for slot, name in enumerate(operator.inputs)
        ]

    def extent(self, axis: Axis) -> Extent:
        return self.extents[axis]

    def label(self, axis: Axis) -> str:
        return f"{self._owner[axis]}:{self._place[axis]}"

    @property
    def count(self) -> int:
        return len(self._parent)

    # --- what rules say -----------------------------------------------------------------------

    def dim(self, axis: Axis) -> Axis:
        """The representative of the axis's Dim: its first axis."""
        parent = self._parent
        while parent[axis] != axis:
            parent[axis] = axis = parent[parent[axis]]
        return axis

    def same(self, axes: Iterable[Axis], others: Iterable[Axis], where: object) -> None:
        """Each axis is one index space with the other in its place. Axes of different sizes can't
        be: both are frozen."""
        parent, extent, why = self._parent, self.extents, self._why
        for a, b in zip(axes, others, strict=True):
            while parent[a] != a:  # `dim`, twice, in its place: nothing is called as often
                parent[a] = a = parent[parent[a]]
            while parent[b] != b:
                parent[b] = b = parent[parent[b]]
            if a == b:
                continue
            if extent[a] != extent[b]:
                self.freeze((a, b), where, "sizes disagree")
                continue
            if b < a:
                a, b = b, a
            parent[b] = a
            if b in why:
                why.setdefault(a, why.pop(b))
            if b in self.blocks:
                self.blocks.add(a)

    def freeze(self, axes: Iterable[Axis], *why: object) -> None:
        """Keep the size of these axes. `why` are the parts of a sentence, joined if it is read."""
        for axis in axes:
            self._why.setdefault(self.dim(axis), why)

    def why(self, axis: Axis) -> Why | None:
        """The parts of the reason for which the axis's Dim is frozen, or None."""
        return self._why.get(self.dim(axis))

    def reason(self, axis: Axis) -> str | None:
        """Why the axis's Dim is frozen, or None."""
        why = self.why(axis)
        return None if why is None else ": ".join(map(str, why))

    def prefer(self, axis: Axis) -> None:
        """The axis counts independent blocks (heads, groups): given a choice, prune along it."""
        self.blocks.add(self.dim(axis))

    def add(self, relation: Relation) -> None:
        self.items.append(relation)


CUTTING = frozenset({"Slice", "Split"})
"""A vector that all users take parts of (the gates of a bias) is one on purpose."""
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
