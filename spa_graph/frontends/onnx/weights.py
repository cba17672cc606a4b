"""Replacing the weights of a model use by use; they are read only when they are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spa_graph.coupling.relations import Use
from spa_graph.frontends.onnx.constants import FilledTensor, constant_tensor
from spa_graph.frontends.onnx.mapping import ComputedTensor
from spa_graph.frontends.onnx.names import fresh_name
from spa_graph.plan import AxisIndices, same_slices

Transform = Callable[[ir.TensorProtocol, AxisIndices], ir.TensorProtocol]


def sliced(tensor: ir.TensorProtocol, kept: AxisIndices) -> ir.TensorProtocol:
    """Only the kept positions of each axis."""
    sizes = [len(kept[axis]) if axis in kept else size for axis, size in enumerate(_sizes(tensor))]
    if isinstance(tensor, FilledTensor):
        return FilledTensor(tensor.fill, sizes, tensor.name)

    def rows(start: int, stop: int) -> NDArray[Any]:
        weights = tensor.numpy()
        part = weights[kept[0][start:stop]] if 0 in kept else weights[start:stop]
        for axis, index in kept.items():
            part = np.take(part, index, axis=axis) if axis else part
        return part

    return ComputedTensor(rows, tensor.dtype, ir.Shape(sizes), tensor.name)


def zeroed(tensor: ir.TensorProtocol, kept: AxisIndices) -> ir.TensorProtocol:
    """The same shape, zero wherever a position of some axis is not kept."""
    sizes = _sizes(tensor)
    gone = {axis: np.delete(np.arange(sizes[axis]), index) for axis, index in kept.items()}

    def rows(start: int, stop: int) -> NDArray[Any]:
        part = tensor.numpy()[start:stop].copy()
        for axis, index in gone.items():
            own = index if axis else index[(index >= start) & (index < stop)] - start
            part[(slice(None),) * axis + (own,)] = 0
        return part

    return ComputedTensor(rows, tensor.dtype, ir.Shape(sizes), tensor.name)


def _sizes(tensor: ir.TensorProtocol) -> list[int]:
    return [int(size) for size in tensor.shape.numpy()]


def transform_weights(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    slices: Iterable[tuple[Use, AxisIndices]],
    transform: Transform,
) -> None:
    """Replace every weight that changes by its transform, in place.

    A weight whose uses need different ones is copied; the first keeps its name.

    Args:
        nodes: the model's nodes by operator index.
        slices: for every use of every weight, what it keeps.
    """
    by_name: dict[str, list[tuple[Use, AxisIndices]]] = {}
    for use, kept in slices:
        by_name.setdefault(use.parameter, []).append((use, kept))
    for name, uses in by_name.items():
        if not any(kept for _, kept in uses):
            continue
        value = nodes[uses[0][0].operator].inputs[uses[0][0].slot]
        assert value is not None, f"{name} is not an input"
        tensor = stored_tensor(value)
        for number, (kept, places) in enumerate(_distinct(uses)):
            new = transform(tensor, kept) if kept else tensor
            if number == 0:
                _store_weight(model, value, new)
                continue
            copy = _add_weight(model, f"{name}.pruned{number}", new)
            for use in places:
                nodes[use.operator].replace_input_with(use.slot, copy)


def _distinct(uses: list[tuple[Use, AxisIndices]]) -> list[tuple[AxisIndices, list[Use]]]:
    """Uses by what they keep; those that keep everything come first and stay in place."""
    found: list[tuple[AxisIndices, list[Use]]] = []
    for use, kept in uses:
        same = next((places for other, places in found if same_slices(other, kept)), None)
        if same is None:
            found.append((kept, [use]))
        else:
            same.append(use)
    return sorted(found, key=lambda entry: bool(entry[0]))


def _store_weight(model: ir.Model, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Put another weight in place of one that is stored, or that a ConstantOfShape makes."""
    node = value.producer()
    if node is None or node.op_type != "ConstantOfShape":
        return store_tensor(value, tensor)
    if isinstance(tensor, FilledTensor):
        set_constant(model, node, 0, np.array(_sizes(tensor), np.int64))
        value.shape = None if value.shape is None else tensor.shape
        return
    stored = add_initializer(model, f"{value.name}.stored", tensor)
    ir.convenience.replace_all_uses_with(value, stored)
    model.graph.remove(node, safe=True)


def _add_weight(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer, or a ConstantOfShape for a weight of one repeated value."""
    if not isinstance(tensor, FilledTensor):
        return add_initializer(model, name, tensor)
    sizes = add_initializer(model, f"{name}.shape", ir.tensor(np.array(_sizes(tensor), np.int64)))
    name = fresh_name(model, name)
    fill = [ir.AttrTensor("value", ir.tensor(tensor.fill.reshape(1)))]
    node = ir.Node("", "ConstantOfShape", [sizes], fill, name=name)
    value = node.outputs[0]
    value.name, value.shape, value.type = name, tensor.shape, ir.TensorType(tensor.dtype)
    maker = sizes.producer()
    if maker is None:
        model.graph.insert_before(model.graph[0], node)
    else:
        model.graph.insert_after(maker, node)
    return value


def stored_tensor(value: ir.Value) -> ir.TensorProtocol:
    """What an initializer, or the output of a Constant node, holds."""
    node = value.producer()
    tensor = value.const_value if node is None else constant_tensor(node)
    assert tensor is not None, f"{value.name} is not stored"
    return tensor


def store_tensor(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Put another tensor in place of what is stored."""
    node = value.producer()
    if node is None:
        value.const_value = tensor
    else:
        for key in [key for key in node.attributes if key.startswith("value")]:
            del node.attributes[key]
        node.attributes["value"] = ir.AttrTensor("value", tensor)
    value.type = ir.TensorType(tensor.dtype)
    value.shape = ir.Shape(_sizes(tensor))


def set_constant(model: ir.Model, node: ir.Node, slot: int, value: NDArray[np.int64]) -> None:
    """Make an input a constant, which is copied if others use it; its type and rank 0 stay."""
    while len(node.inputs) <= slot:
        node.resize_inputs(len(node.inputs) + 1)
    old = node.inputs[slot]
    dtype = np.int64 if old is None or old.dtype is None else old.dtype.numpy()
    scalar = old is not None and old.shape is not None and not len(old.shape)
    tensor = ir.tensor(value.astype(dtype).reshape(() if scalar else value.shape))
    alone = old is not None and len(old.uses()) == 1 and not old.is_graph_output()
    producer = old.producer() if old is not None else None
    stored = (
        producer.op_type == "Constant"
        if producer is not None
        else old is not None and old.is_initializer()
    )
    if old is not None and alone and stored:
        store_tensor(old, tensor)
    else:
        name = f"{node.outputs[0].name}.input{slot}"
        node.replace_input_with(slot, add_initializer(model, name, tensor))


def add_initializer(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new stored value under a name that is not taken yet.

    Before version 4 of the format every initializer is an input too, and inputs stay what they
    are: there it is the output of a Constant.
    """
    name, shape = fresh_name(model, name), ir.Shape(_sizes(tensor))
    kind = ir.TensorType(tensor.dtype)
    if model.ir_version < 4:
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], name=name)
        value = node.outputs[0]
        value.name, value.shape, value.type = name, shape, kind
        model.graph.insert_before(model.graph[0], node)
        return value
    value = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
    model.graph.register_initializer(value)
    return value
