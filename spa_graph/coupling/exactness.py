"""Which channels can be removed exactly: where zeroed weights give the same result as no weights.

With the parameters of a channel set to zero, its features are zero as far as operators preserve
zeros. A contraction over zero features adds nothing, so leaving them out is *exact*. Where features
are not zero (Sigmoid gives 0.5) but are not summed with a weight of zero, or where an operator
normalises over the channels (LayerNorm, mean), leaving them out changes the result: the channel is
*renormalising*. The masked reference network then runs that operator without the removed channels
(*compact*), so that the pruned network has an exact counterpart in both cases.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import chain, starmap

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.relations import Axis, Relations
from spa_graph.coupling.scope import Facts, Slots, Zeros
from spa_graph.coupling.solver import Channels
from spa_graph.graph import Graph, Operator


class Exactness:
    """Zeroed channels, followed through the network when somebody asks."""

    def __init__(
        self, graph: Graph, relations: Relations, facts: Facts, channels: Channels
    ) -> None:
        self._given = graph, relations, facts, channels

    @property
    def exact(self) -> NDArray[np.bool_]:
        """Per channel, whether removing equals zeroing."""
        return self._traced.exact

    @property
    def compact(self) -> frozenset[int]:
        """The operators that the masked reference network runs compactly."""
        return frozenset(self._traced.compact)

    @cached_property
    def _traced(self) -> _Tracer:
        tracer = _Tracer(*self._given)
        tracer.trace()
        return tracer


class _Tracer:
    def __init__(
        self, graph: Graph, relations: Relations, facts: Facts, channels: Channels
    ) -> None:
        self.graph = graph
        self.relations = relations
        self.facts = facts
        self.channels = channels
        self.zero: set[tuple[str, int]] = set()  # (value, axis): zero in the removed channels
        self.exact = np.ones(int(channels.bounds[-1]), bool)
        self.compact: set[int] = set()
        dims = map(relations.dim, range(relations.count))
        self.prunable = [dim in channels.of_element for dim in dims]  # by axis
        # of the operator at hand:
        self.operands: list[tuple[int, int, Axis, bool]] = []
        self.tied: dict[Axis, Axis] = {}

    def trace(self) -> None:
        contracted: dict[int, list[tuple[Axis, Slots]]] = {}
        for index, axis, slots in self.facts.contracted:
            contracted.setdefault(index, []).append((axis, slots))
        renormalised: dict[int, list[Axis]] = {}
        for index, axis in self.facts.renormalised:
            renormalised.setdefault(index, []).append(axis)
        for operator in self.graph.operators:
            self.operands = list(self._inputs(operator))
            self.tied = self._ties(operator) if self.operands else {}
            for axis, slots in contracted.get(operator.index, []):
                self._contraction(operator, axis, slots)
            for axis in renormalised.get(operator.index, []):
                self._inexact(operator, axis)
            self._outputs(operator)

    def _prunable(self, axis: Axis) -> bool:
        return axis < len(self.prunable) and self.prunable[axis]

    def _ties(self, operator: Operator) -> dict[Axis, Axis]:
        """For each axis that the operator itself ties to others: one that stands for all."""
        root: dict[Axis, Axis] = {}
        ties = self.facts.ties.get(operator.index, ())
        for one, other in chain.from_iterable(starmap(zip, ties)):
            first, second = root.setdefault(one, one), root.setdefault(other, other)
            if second != first:
                root.update({tied: first for tied, old in root.items() if old == second})
        return root

    def _inexact(self, operator: Operator, axis: Axis) -> None:
        if self._prunable(axis):
            self.compact.add(operator.index)
            channel = self.channels.of_element[self.relations.dim(axis)]
            self.exact[channel[channel >= 0]] = False

    def _contraction(self, operator: Operator, axis: Axis, slots: Slots) -> None:
        along = self._zero_along(operator, axis)
        if not any(zero for slot, zero in along.items() if slots is None or slot in slots):
            self._inexact(operator, axis)

    def _inputs(self, operator: Operator) -> Iterator[tuple[int, int, Axis, bool]]:
        """(slot, axis position, axis, known to be zero there) of every prunable input axis."""
        for slot, name in enumerate(operator.inputs):
            axes = self.relations.operand(operator, slot) if name else None
            for position, axis in enumerate(axes or ()):
                if self._prunable(axis):
                    zero = name in self.graph.parameters or (name, position) in self.zero
                    yield slot, position, axis, zero or self._only_zeros(name)

    def _only_zeros(self, name: str) -> bool:
        known = self.graph.known.get(name)
        return known is not None and not known.nominal.any() and not known.other.any()

    def _zero_along(self, operator: Operator, along: Axis) -> dict[int, bool]:
        """For each input that has an axis which the operator ties to this one: whether it is zero.

        That it is the same Dim isn't enough: in the product of two square matrices of features,
        rows that are zero on the left say nothing about the columns of the result.
        """
        flags: dict[int, bool] = {}
        ties, covering = self.tied, self.facts.covering
        along = ties.get(along, along)
        for slot, _, axis, zero in self.operands:
            covered = covering.get((operator.index, axis), axis)
            if along in (ties.get(axis, axis), ties.get(covered, covered)):
                flags[slot] = flags.get(slot, True) and zero
        return flags

    def _outputs(self, operator: Operator) -> None:
        how = self.facts.zeros.get(operator.index, Zeros())
        for slot, _, axis, _ in self.operands:
            if how.mode == "compact" or (how.mode == "divide" and slot == 1):
                self._inexact(operator, axis)
        for slot, name in enumerate(operator.outputs):
            for position, axis in enumerate((name and self.relations.value(name)) or ()):
                if self._prunable(axis) and self._is_zero(operator, how, slot, axis):
                    self.zero.add((name, position))

    def _is_zero(self, operator: Operator, how: Zeros, output: int, axis: Axis) -> bool:
        if operator.index in self.compact:
            return True  # the reference network puts zeros there
        if how.mode == "move":
            return all(zero for *_, zero in self.operands)
        if how.mode == "divide":
            return self._zero_along(operator, axis).get(0, False)
        if how.mode not in ("all", "any") or output not in (how.outputs or (output,)):
            return False
        along = self._zero_along(operator, axis)
        wanted = [slot for slot, name in enumerate(operator.inputs) if name]
        wanted = [slot for slot in wanted if how.inputs is None or slot in how.inputs]
        flags = [along.get(slot, False) for slot in wanted]
        return all(flags) if how.mode == "all" else any(flags)
