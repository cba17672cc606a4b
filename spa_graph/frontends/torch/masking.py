"""The masked reference: what the pruned module must compute, run without slicing.

The traced original with the parameters of the removed channels set to zero. Operators that would
see those zeros (a normalisation over channels, a sum over features that are not zero) get only the
kept channels, and their outputs are zero in the removed ones. So every weight keeps its full shape,
and an index that is wrong anywhere shows as a difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from spa_graph.coupling.analysis import Coupling
from spa_graph.coupling.relations import Axes
from spa_graph.edits import Edits
from spa_graph.frontends.torch.editor import CallEdits, NewCall, Share, sliced, zeroed
from spa_graph.frontends.torch.reader import Place, Reading
from spa_graph.frontends.torch.sizes import Sizes
from spa_graph.plan import AxisIndices, Kept


class Reference(fx.Interpreter):
    """Runs a traced module with masked weights."""

    def __init__(
        self,
        module: fx.GraphModule,
        reading: Reading,
        coupling: Coupling,
        kept: Kept,
        edits: Edits,
        sizes: Sizes,
    ) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._reading, self._coupling, self._kept = reading, coupling, kept
        self._calls = CallEdits(reading, edits, sizes)
        self._compact = coupling.exactness.compact
        self._index = {place.node: index for index, place in enumerate(reading.places)}
        self._masks: dict[tuple[int, int], AxisIndices] = {
            (use.operator, use.slot): slices for use, slices in edits.slices if slices
        }

    def run_node(self, n: fx.Node) -> Any:
        index = self._index.get(n)
        if index is None:
            return super().run_node(n)
        with self._set_current_node(n):
            return self._run(self._reading.places[index], index)

    def _run(self, place: Place, index: int) -> Any:
        node, compact = place.node, index in self._compact
        operator = self._reading.graph.operators[index]
        operands: dict[fx.Node, Any] = {n: self.env[n] for n in node.all_input_nodes}
        for slot, source in enumerate(place.lowered.slots):
            if not isinstance(source, fx.Node) or not isinstance(self.env[source], Tensor):
                continue
            if compact:
                axes = self._coupling.relations.operand(operator, slot)
                operands[source] = sliced(self.env[source], self._left(axes))
            elif (index, slot) in self._masks:
                operands[source] = zeroed(self.env[source], self._masks[index, slot])
        result = _call(node, operands, self._calls.of(index) if compact else None)
        if not compact:
            return result
        names = operator.outputs
        if isinstance(result, Tensor):
            return self._put_back(result, names[0])
        given = list(result)
        for position, name in enumerate(names):
            if name:
                given[position] = self._put_back(given[position], name)
        return type(result)(given)

    def _left(self, axes: Axes | None) -> AxisIndices:
        """The elements that stay, of the axes that lose any."""
        found = {}
        for position, axis in enumerate(axes or ()):
            stays = self._coupling.kept_elements(axis, self._kept)
            if stays is not None:
                found[position] = np.flatnonzero(stays)
        return found

    def _put_back(self, tensor: Tensor, name: str) -> Tensor:
        """Over the full axes; positions among the kept elements become those of the whole axis."""
        ranked = self._coupling.facts.ranked.get(name)
        for left in self._left(None if ranked is None else (ranked,)).values():
            tensor = torch.from_numpy(left).to(tensor.device)[tensor]
        axes = self._coupling.relations.value(name) or ()
        for place, left in self._left(axes).items():
            shape = list(tensor.shape)
            shape[place] = self._coupling.size(axes[place])
            index = torch.from_numpy(left).to(tensor.device)
            tensor = tensor.new_zeros(shape).index_copy(place, index, tensor)
        return tensor


def _call(node: fx.Node, operands: dict[fx.Node, Any], new: NewCall | None) -> Any:
    """Run a node's call on other operands, with new arguments if it changes."""
    new = new or NewCall(node.target, {})
    args, kwargs = new.in_place_of(node) if new.arguments else (node.args, node.kwargs)

    def concrete(value: Any) -> Any:
        if isinstance(value, Share):
            return value.of(operands[value.size])
        return operands.get(value, value) if isinstance(value, fx.Node) else value

    args, kwargs = pytree.tree_map(
        concrete, (list(args), dict(kwargs)), is_leaf=lambda v: isinstance(v, fx.Node)
    )
    return new.target(*args, **kwargs)
