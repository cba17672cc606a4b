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

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spa_graph.graph import ONE, Extent, Graph, Known, Operator, Parameter, Shape

Axis = int
Axes = tuple[Axis, ...]


def but(axes: Axes, position: int) -> Axes:
    """All of a value's axes but one."""
    return axes[:position] + axes[position + 1 :]


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


_SINGLE: Why = ("has a single element",)


class Relations:
    """Collects what the rules say; `coupling.solver` turns it into channel groups."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.items: list[Relation] = []
        self.uses: list[Use] = []
        self.blocks: set[Axis] = set()
        self.factors: set[Axis] = set()
        """Dims that are part of a merged axis."""
        self._parent: list[Axis] = []
        self.extents: list[Extent] = []
        # The axes of a value follow each other: its name stands once, beside the first of them.
        self._starts: list[Axis] = []
        self._owners: list[str] = []
        self._labels: dict[Axis, str] = {}
        self._why: dict[Axis, Why] = {}
        self._values: dict[str, Axes] = {}
        self._own_axes: dict[int, dict[int, Axes]] = {}  # by operator and slot
        self.narrow = {name for name, shape in graph.shapes.items() if shape in ((), (ONE,))} | {""}
        """Values of one element, which have nothing to freeze; and what is absent."""
        self.integers: set[str] = set()
        """Parameters that are integers or flags, of more than one element."""
        self._enter_parameters()

    def _enter_parameters(self) -> None:
        parameters, shapes = self.graph.parameters, self.graph.shapes
        places: dict[str, list[tuple[int, int]]] = {
            name: [] for name, parameter in parameters.items() if not _is_setting(parameter)
        }
        for operator in self.graph.operators:
            for slot, name in enumerate(operator.inputs):
                if name in places:
                    places[name].append((operator.index, slot))
        for name, own in places.items():
            parameter, shape = parameters[name], shapes.get(name)
            if shape is None:
                shape = tuple(Extent(size, size) for size in parameter.shape)
            if parameter.dtype.kind in "biu" and any(extent != ONE for extent in shape):
                self.integers.add(name)
            self._enter_uses(parameter, shape, own)

    def _enter_uses(
        self, parameter: Parameter, shape: Shape, places: Sequence[tuple[int, int]]
    ) -> None:
        """A parameter's axes: one value's for all uses, or each use's own."""
        name = parameter.name
        if len(places) > 1 and not self._is_tied(parameter, places):
            for operator, slot in places:
                axes = self._own_axes.setdefault(operator, {})[slot] = self._new_axes(name, shape)
                self.uses.append(Use(name, operator, slot, axes))
        elif places:
            axes = self._values[name] = self._new_axes(name, shape)
            self.uses += [Use(name, operator, slot, axes) for operator, slot in places]

    def _is_tied(self, parameter: Parameter, places: Sequence[tuple[int, int]]) -> bool:
        users = {self.graph.operators[operator].op_type for operator, _ in places}
        if not self.graph.merges or users <= CUTTING:
            return True
        return not users <= ARITHMETIC and tied_on_purpose(parameter)

    # --- axes ---------------------------------------------------------------------------------

    def new_axis(self, extent: Extent, owner: str, label: str) -> Axis:
        """An axis of no value in particular, such as the number of groups of a convolution."""
        (axis,) = self._new_axes(owner, (extent,))
        self._labels[axis] = label
        return axis

    def _new_axes(self, name: str, shape: Shape) -> Axes:
        if not shape:
            return ()
        first = len(self._parent)
        axes = tuple(range(first, first + len(shape)))
        self._starts.append(first)
        self._owners.append(name)
        self._parent += axes
        self.extents += shape
        if ONE in shape:
            for axis, extent in zip(axes, shape, strict=True):
                if extent == ONE:
                    self._why[axis] = _SINGLE
        return axes

    def value(self, name: str) -> Axes | None:
        """The axes of a value, or None if its shape is unknown."""
        axes = self._values.get(name)
        if axes is None and name in self.graph.shapes:
            axes = self._values[name] = self._new_axes(name, self.graph.shapes[name])
            if self.graph.unsized:
                unsized = [a for i, a in enumerate(axes) if (name, i) in self.graph.unsized]
                self.freeze(unsized, "has a size that depends on what comes in")
        return axes

    def operand(self, operator: Operator, slot: int) -> Axes | None:
        """The axes of an operator's input, its own where it uses a parameter."""
        own = self._own_axes.get(operator.index, {}).get(slot)
        return self.value(operator.inputs[slot]) if own is None else own

    def operands(self, operator: Operator) -> list[Axes | None]:
        """The axes of all inputs."""
        own = self._own_axes.get(operator.index)
        if own is None:
            return list(map(self.value, operator.inputs))
        slots = enumerate(operator.inputs)
        return [own[slot] if slot in own else self.value(name) for slot, name in slots]

    def origins(self, known: Known) -> Iterator[Axis]:
        """The axes whose sizes a number was computed from."""
        for name, position in known.origins:
            if name in self.graph.parameters:
                yield from (use.axes[position] for use in self.uses if use.parameter == name)
            else:
                yield (self.value(name) or ())[position]

    def extent(self, axis: Axis) -> Extent:
        return self.extents[axis]

    def label(self, axis: Axis) -> str:
        at = bisect_right(self._starts, axis) - 1
        return f"{self._owners[at]}:{self._labels.get(axis, axis - self._starts[at])}"

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
            if b in self.factors:
                self.factors.add(a)

    def freeze(self, axes: Iterable[Axis], *why: object) -> None:
        """Keep the size of these axes. `why` are the parts of a sentence, joined if it is read."""
        parent, frozen = self._parent, self._why
        for axis in axes:
            while parent[axis] != axis:  # `dim` in its place, as above
                parent[axis] = axis = parent[parent[axis]]
            frozen.setdefault(axis, why)

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
        if isinstance(relation, Product):
            self.factors.update(map(self.dim, relation.factors))


def _is_setting(parameter: Parameter) -> bool:
    """Whether a constant is one whole number (a size, a position): exports hold hundreds of them,
    and nothing of them can go."""
    dtype = parameter.dtype
    return parameter.shape in ((), (1,)) and dtype.kind in "iu" and dtype.itemsize >= 4


CUTTING = frozenset({"Slice", "Split"})
"""A vector that all users take parts of (the gates of a bias) is one on purpose."""
ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Where"})
"""A table that all users add, multiply or choose by is no layer's weight: exporters compute one for
all layers (rotary frequencies, ALiBi, relative positions), which would tie the heads of all."""
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
