"""Applying `Edits` to a traced module: smaller weights, and the sizes that calls name.

What `Edits` tells of an operator (its attributes, its constant operands, the shapes of its outputs)
becomes new arguments of the call. The same arguments serve the pruned graph and the operators that
the masked reference runs without the removed channels.
"""

from __future__ import annotations

import operator as python
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from spa_graph.edits import Edits
from spa_graph.errors import RewriteError
from spa_graph.frontends.torch.lowering import (
    arguments_by_name,
    changed_arguments,
    is_symbolic,
)
from spa_graph.frontends.torch.reader import Place, Reading, attribute
from spa_graph.frontends.torch.sizes import Sizes
from spa_graph.graph import Operator, Shape
from spa_graph.plan import AxisIndices

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class NewCall:
    """How a call changes: perhaps another operator, and some of its arguments by name."""

    target: Any
    arguments: dict[str, Any]

    def in_place_of(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments of the new call; the node stays."""
        if self.target is node.target:
            return changed_arguments(node, self.arguments)
        return tuple(self.arguments[each.name] for each in self.target._schema.arguments), {}


@dataclass(frozen=True, slots=True)
class Share:
    """A symbolic size of which `kept` parts in `whole` stay: heads x batch, of which heads go."""

    size: fx.Node
    kept: int
    whole: int

    def of(self, size: Any) -> Any:
        """The share of a number; always a whole one."""
        return size * self.kept // self.whole

    def inserted(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        """Its computation in a graph that `node` stands for the size in."""
        product = graph.call_function(python.mul, (node, self.kept))
        share = graph.call_function(python.floordiv, (product, self.whole))
        share.meta["val"] = self.of(self.size.meta["val"])
        return share


def sliced(tensor: Tensor, kept: AxisIndices) -> Tensor:
    """Only the kept positions of each axis."""
    for axis, index in kept.items():
        tensor = tensor.index_select(axis, torch.from_numpy(index).to(tensor.device))
    return tensor


def zeroed(tensor: Tensor, kept: AxisIndices) -> Tensor:
    """The same shape, zero wherever a position of some axis is not kept."""
    tensor = tensor.clone()
    for axis, index in kept.items():
        gone = np.delete(np.arange(tensor.shape[axis]), index)
        tensor.index_fill_(axis, torch.from_numpy(gone).to(tensor.device), 0)
    return tensor


# --- arguments --------------------------------------------------------------------------------


class CallEdits:
    """The new arguments of every call that changes, by operator."""

    def __init__(self, reading: Reading, edits: Edits, sizes: Sizes) -> None:
        self._reading, self._edits, self._sizes = reading, edits, sizes

    def of(self, index: int) -> NewCall | None:
        """How an operator's call changes, or None.

        Raises:
            RewriteError: its sizes can't be expressed.
        """
        operator, place = self._reading.graph.operators[index], self._reading.places[index]
        if index in self._edits.gathers:
            axis, positions = self._edits.gathers[index]
            new = {"self": place.node.args[0], "dim": axis, "index": torch.from_numpy(positions)}
            return NewCall(aten.index_select.default, new)
        if place.lowered.op_type in ("Split", "even_split"):
            return self._split(operator, place)
        arguments: dict[str, Any] = {}
        for key, value in self._edits.attributes.get(index, {}).items():
            if key in place.lowered.arguments:
                arguments[place.lowered.arguments[key]] = value
        for slot, constant in self._edits.inputs.get(index, {}).items():
            if slot in place.lowered.arguments:
                argument = place.lowered.arguments[slot]
                arguments[argument] = _constant(place.node, argument, constant)
        arguments |= self._sizes_of(operator, place)
        return NewCall(place.node.target, arguments) if arguments else None

    def _expected(self, name: str) -> Shape:
        return self._edits.expected.get(name) or self._reading.graph.shapes[name]

    def _changed(self, name: str) -> bool:
        return self._expected(name) != self._reading.graph.shapes[name]

    def _split(self, operator: Operator, place: Place) -> NewCall | None:
        if not any(map(self._changed, operator.outputs)):
            return None
        axis = operator.attributes["axis"]
        parts = [self._expected(name)[axis] for name in operator.outputs]
        if not all(part.static for part in parts):
            return None  # cuts an axis of dynamic size, which stays
        sizes: Any = [part.nominal for part in parts]
        if place.lowered.op_type == "even_split":
            return NewCall(
                aten.split.Tensor, {"self": place.node.args[0], "split_size": sizes[0], "dim": axis}
            )
        given = {"self": place.node.args[0], "split_sizes": sizes, "dim": axis}
        return NewCall(aten.split_with_sizes.default, given)

    def _sizes_of(self, operator: Operator, place: Place) -> dict[str, Any]:
        lowered, name = place.lowered, operator.outputs[0]
        given = arguments_by_name(place.node) if lowered.sizes or lowered.inner else {}
        if lowered.inner:  # input and output have the same shape
            listed = given[lowered.inner]
            shape = self._expected(name)[-len(listed) :]
            return {lowered.inner: [e.nominal for e in shape]} if self._changed(name) else {}
        if not lowered.sizes or not self._changed(name):
            return {}
        listed, start = list(given[lowered.sizes]), lowered.attributes.get("from", 0)
        wanted = self._expected(name)[start : start + len(listed)]
        before = self._reading.graph.shapes[name][start : start + len(listed)]
        return {lowered.sizes: self._correct(operator, listed, before, wanted)}

    def _correct(
        self, operator: Operator, listed: list[Any], before: Shape, wanted: Shape
    ) -> list[Any]:
        """A list of sizes with the new ones; -1 stays, and to a Reshape says one that is computed.

        To an Expand it says that the operand's size stays, which may be one.
        """
        new = list(listed)
        inferred = -1 in [size for size in listed if not isinstance(size, fx.Node)]
        inferred |= operator.op_type != "Reshape"
        for place, (size, old, extent) in enumerate(zip(listed, before, wanted, strict=True)):
            if old == extent or (not isinstance(size, fx.Node) and size == -1):
                continue
            if is_symbolic(size) and self._sizes.extent(size.meta["val"]) == extent:
                continue
            if extent.static:
                new[place] = extent.nominal
            elif not inferred:
                new[place], inferred = -1, True
            elif is_symbolic(size) and self._follows(size):
                continue
            elif is_symbolic(size) and old.nominal * extent.other == old.other * extent.nominal:
                common = gcd(extent.nominal, old.nominal)
                new[place] = Share(size, extent.nominal // common, old.nominal // common)
            else:
                raise RewriteError(
                    f"{operator}: more than one of its sizes is computed from a pruned axis"
                )
        return new

    def _follows(self, size: fx.Node) -> bool:
        """Whether a size is computed from that of a tensor's axis which itself gets smaller."""
        if size.target is aten.sym_size.int:
            read = arguments_by_name(size)
            name, axis = self._reading.values[read["self"]], int(read["dim"])
            return self._expected(name)[axis] != self._reading.graph.shapes[name][axis]
        return any(map(self._follows, filter(is_symbolic, size.all_input_nodes)))


def _constant(node: fx.Node, argument: str, value: NDArray[np.int64]) -> Any:
    """A constant operand in the form in which the call has it."""
    old = arguments_by_name(node)[argument]
    if isinstance(old, list | tuple):  # x[:, positions]
        return [None if each is None else torch.from_numpy(value) for each in old]
    if isinstance(old, fx.Node):
        shape = old.meta["val"].shape
        return torch.from_numpy(value.reshape(tuple(shape) if len(shape) == 0 else -1))
    return int(value.reshape(-1)[0])


# --- the smaller graph ------------------------------------------------------------------------


def prune_graph(module: fx.GraphModule, reading: Reading, edits: Edits, sizes: Sizes) -> None:
    """Make a copy of a traced module smaller, in place; its nodes have the original's names."""
    nodes = {node.name: node for node in module.graph.nodes}
    calls = CallEdits(reading, edits, sizes)
    slice_parameters(module, {use.parameter: kept for use, kept in edits.slices if kept})
    for index, place in enumerate(reading.places):
        new = calls.of(index)
        if new is not None:
            _change(module, nodes[place.node.name], new, nodes)
    for node in module.graph.nodes:
        if not is_symbolic(node):
            node.meta.pop("val", None)  # they have the old shapes
        node.meta.pop("tensor_meta", None)
    module.graph.lint()
    module.recompile()


def _change(
    module: fx.GraphModule, node: fx.Node, new: NewCall, nodes: Mapping[str, fx.Node]
) -> None:
    arguments = {
        name: _own(module, node, name, value, nodes) for name, value in new.arguments.items()
    }
    node.args, node.kwargs = NewCall(new.target, arguments).in_place_of(node)
    node.target = new.target


def _own(
    module: fx.GraphModule, node: fx.Node, name: str, value: Any, nodes: Mapping[str, fx.Node]
) -> Any:
    """An argument with this graph's nodes; constants become buffers."""

    def replace(each: Any) -> Any:
        if isinstance(each, fx.Node):
            return nodes[each.name]
        if isinstance(each, Share):
            with module.graph.inserting_before(node):
                return each.inserted(module.graph, nodes[each.size.name])
        if not isinstance(each, Tensor):
            return each
        device = next((p.device for p in module.parameters()), each.device)
        buffer = f"{node.name}_{name}"
        module.register_buffer(buffer, each.to(device))
        with module.graph.inserting_before(node):
            return module.graph.get_attr(buffer)

    return [replace(each) for each in value] if isinstance(value, list) else replace(value)


def slice_parameters(module: nn.Module, kept: Mapping[str, AxisIndices]) -> None:
    """Slice parameters and buffers by name, in place: types, devices, ties and hooks stay.

    Raises:
        RewriteError: one is a constant that `forward` makes; nothing was changed.
    """
    try:
        tensors = {name: get_tensor(module, name) for name in kept}
    except AttributeError as error:
        raise RewriteError(
            "it makes a constant with an element for each channel; register it as a buffer"
        ) from error
    for name, axes in kept.items():
        tensor = tensors[name]
        set_data(tensor, sliced(tensor.detach(), axes))


def get_tensor(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its fully qualified name."""
    found = attribute(module, name)
    assert isinstance(found, Tensor)
    return found


def set_data(tensor: Tensor, new: Tensor) -> None:
    """Put smaller values in a tensor, which keeps its identity: ties and hooks stay.

    As long as the loss of an earlier step is alive, autograd uses its node for the gradient of the
    tensor again, which has the old shape. A change of type in between makes it drop that node.
    """
    tensor.grad = None
    new = new.contiguous()
    other = torch.float32 if new.dtype == torch.float64 else torch.float64
    if new.is_floating_point():
        tensor.data = new.new_empty(0, dtype=other)
    tensor.data = new


def fill_zeros(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Put random numbers in parameters that are all zero, in place; returns them by name.

    A layer that starts at zero hides whatever comes before it, so that equal outputs would show
    nothing. What is proven with other weights is true with these.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and parameter.numel() and not parameter.any():
            drawn[name] = 0.1 * torch.randn(parameter.shape, generator=generator)
    put(module, drawn)
    return drawn


def put(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Overwrite parameters by name, in place."""
    for name, value in values.items():
        tensor = get_tensor(module, name).detach()
        tensor.copy_(value.to(tensor))


def clear(module: nn.Module, names: Iterable[str]) -> None:
    """Set parameters to zero by name, in place."""
    for name in names:
        get_tensor(module, name).detach().zero_()
