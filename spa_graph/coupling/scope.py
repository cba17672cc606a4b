"""What an operator rule sees and says: one operator, its axes, and the relation builder.

A rule states four kinds of facts:
* relations between axes (`same`, `segment`, `index_map`, `product`, `freeze`);
* what must follow when sizes change (`attribute_size`, `input_sizes`, ...): `Binding`s;
* what it computes: multiply-accumulates (`macs`) and the roles of its parameters;
* how it treats channels whose weights are zeroed (`zero`, `contract`, `renormalise`), from which
  follows whether removing them is exact, and how the masked reference network is built.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.relations import Axes, Axis, IndexMap, Product, Relations, Segment, Why
from spa_graph.graph import ONE, Extent, Known, Operator, Shape

ZeroMode = Literal["all", "any", "move", "never", "divide", "compact"]
"""When an output channel is zero although the operator isn't told to skip it.

all: if it is zero in every input (Add, Relu); any: if in one (Mul); move: the operator only moves
elements; never (Sigmoid); divide: if it is zero in the first input, while a zero in the second
would give NaN; compact: a zero would give NaN or infinity. In the last two cases the masked
reference network leaves the removed channels out of the operator, and they are not exact.
"""

Block = Literal["heads", "groups", "experts"]
"""What an axis of independent blocks counts: attention heads, groups of a convolution or of a
normalisation, experts of a mixture."""

Role = Literal["weight", "bias", "scale", "statistic", "table"]
Slots = tuple[int, ...] | None
"""Some of an operator's inputs, by position; None means all of them."""


class Cost(NamedTuple):
    """An operator's multiply-accumulates: `factor` times the product of the sizes of `axes`."""

    operator: int
    factor: float
    axes: Axes


class Zeros(NamedTuple):
    """How an operator passes zeroed channels: from which inputs, to which outputs."""

    mode: ZeroMode = "never"
    inputs: Slots = None
    outputs: Slots = (0,)


_zeros = cache(Zeros)  # few are different


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """An attribute or constant input that names sizes or indices of pruned axes.

    kind: "size" (one integer), "sizes" (a list), "index" (positions in `axes[0]`, given in
    `index`, that make up `axes[1]`), "gather" (the same, for an operator that becomes a Gather),
    "bounds" (start and stop of a slice of `axes[0]` whose part is `axes[1]`).
    target: an attribute's name, an input's position, or the entry in a Slice's lists.
    """

    operator: int
    kind: Literal["size", "sizes", "index", "gather", "bounds"]
    target: str | int
    axes: Axes
    index: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Code:
    """How a weight's integers stand for numbers: (integer - zero point) * scale.

    The two are inputs of the same operator: one element, or one along `axis` of the weight.
    """

    scale: int
    zero_point: int
    axis: int


LinearForm = Literal["matrix", "convolution", "transposed convolution", "cell"]
OWN_OUTPUT = -1
"""In the place of an input: what the operator itself gave, one step earlier."""


class Linear(NamedTuple):
    """An operator that maps features by a stored weight: y = W x + b at every position.

    Attributes:
        operator: its index.
        form: a position is a row of a matrix, or a window that a convolution looks at. What the
            gates of a recurrent cell add up are rows of matrices too, one for each direction,
            inside an operator that does more.
        slots: the inputs that hold features, weight and bias; a bias may be absent, or None if the
            operator can't have one. Features may be OWN_OUTPUT.
        features: the axis of the features that is summed over, counted from the end.
        inputs, outputs: the weight's axis that is summed over, and the one that the results have.
        result: the axis of the results, counted from the end; None if they stay inside (cells).
        directions: the axis of the features that runs along the directions, counted from the end;
            None if all directions read the same.
    """

    operator: int
    form: LinearForm
    slots: tuple[int, int, int | None]
    features: int
    inputs: int
    outputs: int
    result: int | None
    directions: int | None = None

    @property
    def recurs(self) -> bool:
        """Whether it reads what the operator itself gave, one step earlier."""
        return self.slots[0] == OWN_OUTPUT


@dataclass(slots=True)
class Facts:
    """Everything that the rules said about the operators (the relations are kept apart).

    `ties`: per operator, the axes that it makes one itself with those in their place. Others may be
    one Dim because of the rest of the network: both axes of a covariance matrix.
    `blocks` are the axes that count blocks. `stored` are weights, and what is computed from nothing
    else. `least`: how many elements of an axis stay at least. `positions`: values whose elements
    are positions in an axis; `ranked`: those among them that come straight out of a ranking;
    `computed_with`: the axes of those that are used for more than to index. `copies`: what values
    that follow from sizes are copies of.
    """

    costs: list[Cost] = field(default_factory=list)
    bindings: list[Binding] = field(default_factory=list)
    roles: dict[tuple[int, int], Role] = field(default_factory=dict)
    codes: dict[tuple[int, int], Code] = field(default_factory=dict)
    zeros: dict[int, Zeros] = field(default_factory=dict)
    ties: dict[int, list[tuple[Sequence[Axis], Sequence[Axis]]]] = field(default_factory=dict)
    covering: dict[tuple[int, Axis], Axis] = field(default_factory=dict)
    contracted: list[tuple[int, Axis, Slots]] = field(default_factory=list)
    renormalised: list[tuple[int, Axis]] = field(default_factory=list)
    frozen_operators: dict[int, str] = field(default_factory=dict)
    blocks: list[tuple[Block, Axis]] = field(default_factory=list)
    inside_blocks: list[tuple[tuple[Axis, ...], tuple[Axis, ...]]] = field(default_factory=list)
    hidden_units: list[Axis] = field(default_factory=list)
    only_experts: list[tuple[Axis, Why]] = field(default_factory=list)
    stored: set[str] = field(default_factory=set)
    least: list[tuple[Axis, int]] = field(default_factory=list)
    ranked: dict[str, Axis] = field(default_factory=dict)
    positions: dict[str, Axis] = field(default_factory=dict)
    computed_with: list[tuple[Axis, Why]] = field(default_factory=list)
    copies: dict[str, str] = field(default_factory=dict)
    linears: list[Linear] = field(default_factory=list)
    cells: list[Linear] = field(default_factory=list)


class Scope:
    """One operator, as its rule sees it."""

    __slots__ = (
        "_inputs",
        "_mentioned",
        "_outputs",
        "_ties",
        "facts",
        "looked_up",
        "operator",
        "relations",
    )

    def __init__(self, operator: Operator, relations: Relations, facts: Facts) -> None:
        self.operator = operator
        self.relations = relations
        self.facts = facts
        self._inputs = relations.operands(operator)
        self._outputs = list(map(relations.value, operator.outputs))
        self._mentioned: set[Axis] = set()
        self.looked_up: set[int] = set()  # inputs that hold positions which the rule understands
        self._ties = facts.ties[operator.index] = []

    # --- reading ------------------------------------------------------------------------------

    def input(self, slot: int) -> Axes | None:
        """The axes of an input; None if it is absent or its shape is unknown."""
        return self._inputs[slot] if slot < len(self._inputs) else None

    def output(self, slot: int = 0) -> Axes | None:
        return self._outputs[slot] if slot < len(self._outputs) else None

    def inputs(self) -> list[Axes]:
        """The axes of every input that is present and shaped."""
        return [axes for axes in self._inputs if axes is not None]

    def outputs(self) -> list[Axes]:
        return [axes for axes in self._outputs if axes is not None]

    def has_input(self, slot: int) -> bool:
        return slot < len(self.operator.inputs) and bool(self.operator.inputs[slot])

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.operator.attributes.get(name, default)

    def extent(self, axis: Axis) -> Extent:
        return self.relations.extents[axis]

    def extents(self, axes: Iterable[Axis]) -> Shape:
        return tuple(map(self.relations.extents.__getitem__, axes))

    def known(self, slot: int) -> Known | None:
        """The value of an input, if it follows from shapes and constants alone."""
        if not self.has_input(slot):
            return None
        return self.relations.graph.known.get(self.operator.inputs[slot])

    def constant(self, slot: int) -> NDArray[Any] | None:
        """The value of an input that is the same whatever the dynamic sizes are."""
        known = self.known(slot)
        return known.nominal if known is not None and known.static else None

    def is_parameter(self, slot: int) -> bool:
        return (
            self.has_input(slot) and self.operator.inputs[slot] in self.relations.graph.parameters
        )

    def is_stored(self, slot: int) -> bool:
        """Whether an input is a weight, or computed from weights alone."""
        return self.has_input(slot) and self.operator.inputs[slot] in self.facts.stored

    # --- relations ----------------------------------------------------------------------------

    def same(self, first: Axis, *others: Axis) -> None:
        """The axes are one index space."""
        self._mentioned.add(first)
        self.align((first,) * len(others), others)

    def align(self, axes: Sequence[Axis], others: Sequence[Axis]) -> None:
        """Each axis is one index space with the other in its place."""
        if not axes and not others:
            return
        self._mentioned.update(axes, others)
        self._ties.append((axes, others))
        self.relations.same(axes, others, self.operator)

    def freeze(self, axes: Iterable[Axis], why: str) -> None:
        axes = tuple(axes)
        if axes:
            self._mentioned.update(axes)
            self.relations.freeze(axes, self.operator, why)

    def free(self, axes: Iterable[Axis]) -> None:
        """These axes take any size that their consumers need."""
        self._mentioned.update(axes)

    def freeze_unmentioned(self) -> None:
        """Freeze the axes that the rule said nothing about: unknown is frozen."""
        mentioned = self._mentioned
        for operands in (self._inputs, self._outputs):
            for axes in operands:
                if axes and not mentioned.issuperset(axes):
                    self.freeze({*axes} - mentioned, "needs it at this size")

    def freeze_all(self, why: str) -> None:
        """Freeze everything the operator touches, and report the operator."""
        self.facts.frozen_operators[self.operator.index] = why
        for axes in [*self.inputs(), *self.outputs()]:
            self.freeze(axes, why)

    def new_axis(self, extent: Extent, label: str) -> Axis:
        return self.relations.new_axis(extent, self.operator.name, label)

    def fixed(self, size: int, why: str) -> Axis:
        """A frozen axis of no value, such as the four gates of an LSTM."""
        axis = self.new_axis(Extent(size, size), why)
        self.freeze((axis,), why)
        return axis

    def segments(self, whole: Axis, parts: Sequence[Axis]) -> None:
        """`whole` is the parts, one behind the other."""
        offset = 0
        if any(not self.extent(axis).static for axis in (whole, *parts)):
            self.freeze((whole, *parts), "joins or cuts an axis of dynamic size")
            return
        for part in parts:
            self.segment(whole, offset, part)
            offset += self.extent(part).nominal

    def segment(self, whole: Axis, offset: int, part: Axis) -> None:
        self._mentioned.update((whole, part))
        self.relations.add(Segment(whole, offset, part))

    def index_map(self, out: Axis, source: Axis, index: NDArray[Any]) -> None:
        self._mentioned.update((out, source))
        self.relations.add(IndexMap(out, source, np.asarray(index, np.int64).reshape(-1)))

    def product(self, whole: Axis, factors: Sequence[Axis]) -> None:
        """`whole` merges the factors, the last one running fastest. Dynamic factors are frozen."""
        self._mentioned.update((whole, *factors))
        extents = self.relations.extents
        if ONE in self.extents(factors):
            factors = [axis for axis in factors if extents[axis] != ONE]
        if len(factors) == 1:
            self.same(whole, factors[0])
            return
        for axis in factors:
            if not extents[axis].static:
                self.freeze((axis,), "merged axis of dynamic size")
        if not factors:
            self.freeze((whole,), "has a single element")
        else:
            self.relations.add(Product(whole, tuple(factors)))

    def prefer(self, axis: Axis, block: Block | None) -> None:
        """The axis counts independent blocks: given a choice, whole blocks are pruned.

        None: blocks that have nothing inside to prune instead.
        """
        self.relations.prefer(axis)
        if block is not None:
            self.facts.blocks.append((block, axis))

    def inside_blocks(self, blocks: Iterable[Axis], axes: Iterable[Axis]) -> None:
        """Some axes are what blocks of features are made of, heads or positions."""
        self.facts.inside_blocks.append((tuple(blocks), tuple(axes)))

    def hidden_units(self, axis: Axis) -> None:
        """The axis is the state of a recurrent layer."""
        self.facts.hidden_units.append(axis)

    def only_experts(self, axes: Iterable[Axis], why: str) -> None:
        """These axes are frozen unless they count experts, of which a router chooses."""
        self._mentioned.update(axes)
        self.facts.only_experts += [(axis, (self.operator, why)) for axis in axes]

    def keeps(self, axes: Iterable[Axis], least: int) -> None:
        """At least so many elements of each of these axes stay."""
        self.facts.least += [(axis, least) for axis in axes]

    # --- positions ----------------------------------------------------------------------------

    def ranks(self, axis: Axis, slot: int, least: int, why: str) -> None:
        """Output `slot` holds positions in an axis of which `least` elements are picked."""
        self.only_experts((axis,), why)
        self.picks(axis, least)
        name = self.operator.outputs[slot] if slot < len(self.operator.outputs) else ""
        if name:
            self.facts.ranked[name] = self.facts.positions[name] = axis

    def picks(self, axis: Axis, least: int) -> None:
        """The operator picks `least` elements of an axis, and so does it of what is left of it.

        Among fewer it picks others: it is renormalising.
        """
        self.renormalise(axis)
        self.keeps((axis,), least)

    def positions(self, slot: int) -> Axis | None:
        """The axis that an input holds positions in, if it is known to hold positions."""
        return self.facts.positions.get(self.operator.inputs[slot])

    def look_up(self, slot: int, *axes: Axis) -> bool:
        """The positions in input `slot` index these axes: one index space with what was ranked.

        False if it isn't known to hold positions, or if there are other elements than those ranked.
        """
        ranked = self.positions(slot)
        if ranked is None or {*self.extents(axes)} != {self.extent(ranked)}:
            return False
        self.same(ranked, *axes)
        self.looked_up.add(slot)
        return True

    # --- facts --------------------------------------------------------------------------------

    def macs(self, factor: float, *axes: Axis) -> None:
        self.facts.costs.append(Cost(self.operator.index, factor, axes))

    def linear(
        self,
        form: LinearForm,
        slots: tuple[int, int, int | None],
        *,
        features: int,
        inputs: int,
        outputs: int,
        result: int,
    ) -> None:
        """The operator is linear in its features, if its weight is stored; see `Linear`."""
        if self.is_parameter(slots[1]) and not self.is_parameter(slots[0]):
            linear = Linear(self.operator.index, form, slots, features, inputs, outputs, result)
            self.facts.linears.append(linear)

    def cell(self, slots: tuple[int, int, int], directions: int | None = None) -> None:
        """What a cell's gates add up is linear in these features, if the weight is stored.

        The weight is (directions, gates * hidden, features).
        """
        known = self.output() if slots[0] == OWN_OUTPUT else not self.is_parameter(slots[0])
        if known and self.is_parameter(slots[1]):
            linear = Linear(self.operator.index, "cell", slots, -1, 2, 1, None, directions)
            self.facts.cells.append(linear)

    def role(self, slot: int, role: Role) -> None:
        self.facts.roles[self.operator.index, slot] = role

    def code(self, slot: int, *, scale: int, zero_point: int, axis: int) -> None:
        """Input `slot` holds quantised weights; `scale` and `zero_point` are inputs as well."""
        self.facts.codes[self.operator.index, slot] = Code(scale, zero_point, axis)

    def zero(self, mode: ZeroMode, slots: Slots = None, outputs: Slots = (0,)) -> None:
        """How zeroed channels pass; `slots` limits "all" and "any" to some inputs.

        "all" of no inputs is always: the channels are zero whatever comes in. `outputs` are those
        that get the zeros; "move" moves them to all outputs.
        """
        self.facts.zeros[self.operator.index] = _zeros(mode, slots, outputs)

    def covers(self, whole: Axis, axis: Axis) -> None:
        """An operand that is zero along `whole` is zero along `axis`, as gates x hidden is."""
        self.facts.covering[self.operator.index, whole] = axis

    def contract(self, *axes: Axis, slots: Slots = None) -> None:
        """The operator sums over these axes: zero channels add nothing.

        One operand of zeros is enough; `slots` names those for which that is true.
        """
        self._mentioned.update(axes)
        self.facts.contracted += [(self.operator.index, axis, slots) for axis in axes]

    def renormalise(self, *axes: Axis) -> None:
        """The result depends on how many elements these axes have, or on their zeros."""
        self._mentioned.update(axes)
        self.facts.renormalised += [(self.operator.index, axis) for axis in axes]

    def attribute_size(self, name: str, axis: Axis) -> None:
        self._bind("size", name, (axis,))

    def attribute_sizes(self, name: str, axes: Sequence[Axis]) -> None:
        self._bind("sizes", name, tuple(axes))

    def input_sizes(self, slot: int, axes: Sequence[Axis]) -> None:
        self._bind("sizes", slot, tuple(axes))

    def input_index(self, slot: int, out: Axis, source: Axis, index: NDArray[Any]) -> None:
        """Input `slot` holds positions in `source`; keeps those that stay, renumbered."""
        self._bind("index", slot, (source, out), np.asarray(index, np.int64).reshape(-1))

    def becomes_gather(self, out: Axis, source: Axis, index: NDArray[Any]) -> None:
        """A strided selection: once pruned, only a list of positions can express it."""
        self._bind("gather", 0, (source, out), np.asarray(index, np.int64).reshape(-1))

    def slice_bounds(self, position: int, whole: Axis, part: Axis, start: int) -> None:
        """A Slice whose entry `position` takes `part` out of `whole` from `start` on."""
        self._bind("bounds", position, (whole, part), np.array([start], np.int64))

    def _bind(
        self, kind: Any, target: str | int, axes: Axes, index: NDArray[np.int64] | None = None
    ) -> None:
        self.facts.bindings.append(Binding(self.operator.index, kind, target, axes, index))
