"""The same network in other forms, and what its groups are whatever the form.

A form has its own names, merges or folds weights, writes an operator out or in one node. What no
form changes is what a channel costs: `describe` has for each group its number of channels, how many
weights of contractions go with each channel, and how many multiply-accumulates. Weights of
everything else (BatchNormalization's, biases, position tables) are left out: one form folds them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from spa_graph.coupling.analysis import ChannelGroup
from spa_graph.graph import Graph
from spa_graph.passes.network import Analysis

Form = Callable[[onnx.ModelProto], onnx.ModelProto]


# --- what all forms have in common -----------------------------------------------------------


@dataclass(frozen=True, order=True)
class Cost:
    """What a channel group is, without its name.

    weights, macs: of the contractions, for each channel; multiply-accumulates of one sample.
    """

    channels: int
    weights: int
    macs: int


def describe(analysis: Analysis) -> Counter[Cost]:
    """How many groups there are of each kind."""
    contracted = _contracted_weights(analysis.graph, set(analysis.cost.operators.tolist()))
    counts = analysis.cost.full
    whole = analysis.cost.cost("flops", counts)
    batch = analysis.graph.samples[0][analysis.graph.inputs[0]][0]
    found: Counter[Cost] = Counter()
    for number, group in enumerate(analysis.groups):
        one_less = counts - (np.arange(len(counts)) == number)
        macs = (whole - analysis.cost.cost("flops", one_less)) / 2
        weights = _weights_per_channel(analysis.graph, group, contracted)
        found[Cost(group.size, weights, round(macs / batch))] += 1
    return found


def _weights_per_channel(graph: Graph, group: ChannelGroup, contracted: set[str]) -> int:
    """Each stored element counts once, though several operators may use it."""
    axes = {
        (member.parameter, member.axis, member.index.tobytes()): member.index.shape[1]
        for member in group.members
        if member.parameter in contracted
    }
    return sum(
        positions * int(np.prod(shape)) // shape[axis]
        for (name, axis, _), positions in axes.items()
        for shape in [graph.parameters[name].shape]
    )


def _contracted_weights(graph: Graph, contractions: set[int]) -> set[str]:
    """Matrices that reach a contraction, perhaps cut, joined or transposed on the way."""
    made_of: dict[str, set[str]] = {"": set(), **{name: set() for name in graph.known}}
    for name, parameter in graph.parameters.items():
        matrix = parameter.dtype.kind == "f" and sum(size > 1 for size in parameter.shape) > 1
        made_of[name] = {name} if matrix else set()
    found: set[str] = set()
    for operator in graph.operators:
        if operator.index in contractions:
            slots = 3 if operator.op_type in ("LSTM", "GRU", "RNN") else 2
            found.update(*(made_of.get(name, ()) for name in operator.inputs[:slots]))
        elif all(name in made_of for name in operator.inputs):
            weights = set().union(*(made_of[name] for name in operator.inputs))
            made_of.update((name, weights) for name in operator.outputs if name)
    return found


# --- other forms ------------------------------------------------------------------------------


def merged(model: onnx.ModelProto) -> onnx.ModelProto:
    """Equal initializers become one."""
    model = _copy(model)
    first: dict[tuple[object, ...], str] = {}
    renamed, kept = {}, []
    for tensor in model.graph.initializer:
        key = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
        if first.setdefault(key, tensor.name) == tensor.name:
            kept.append(tensor)
        renamed[tensor.name] = first[key]
    _replace_initializers(model, kept)
    _rename_inputs(model, renamed)
    return model


def alike(model: onnx.ModelProto) -> onnx.ModelProto:
    """As if untrained: every vector of weights is the same one element, repeated."""
    model = _copy(model)
    resized = _resize_scales(model)
    tensors = []
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32 and array.ndim == 1 and tensor.name not in resized:
            tensor = numpy_helper.from_array(np.full_like(array, 0.5), tensor.name)
        tensors.append(tensor)
    _replace_initializers(model, tensors)
    return model


def constant_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Initializers become Constant nodes."""
    model = _copy(model)
    nodes = [
        helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in model.graph.initializer
    ]
    _replace_initializers(model, [])
    _replace_nodes(model, [*nodes, *model.graph.node])
    return model


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every float is an fp16, inputs and outputs too."""
    model = _copy(model)
    scales = _resize_scales(model)
    tensors = [
        tensor if tensor.name in scales else _halved(tensor) for tensor in model.graph.initializer
    ]
    _replace_initializers(model, tensors)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            elif attribute.name == "value" and not scales.intersection(node.output):
                attribute.t.CopyFrom(_halved(attribute.t))
            elif attribute.name == "value_float":
                value = np.array(attribute.f, np.float16)
                attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


def _resize_scales(model: onnx.ModelProto) -> set[str]:
    return {
        name for node in model.graph.node if node.op_type == "Resize" for name in node.input[2:]
    }


def _halved(tensor: TensorProto) -> TensorProto:
    if tensor.data_type != TensorProto.FLOAT:
        return tensor
    limit = float(np.finfo(np.float16).max)
    array = np.clip(numpy_helper.to_array(tensor), -limit, limit)
    return numpy_helper.from_array(array.astype(np.float16), tensor.name)


def converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Another opset."""
    return onnx.version_converter.convert_version(model, opset)


def with_batch(model: onnx.ModelProto, batch: int | str) -> onnx.ModelProto:
    """The first axis of inputs and outputs is fixed, or dynamic; inner shapes are forgotten."""
    model = _copy(model)
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if isinstance(batch, int):
            first.dim_value = batch
        else:
            first.dim_param = batch
    return model


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    """BatchNormalization behind a convolution becomes part of it."""
    model = _copy(model)
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    uses = Counter(name for node in model.graph.node for name in node.input)
    producer = {node.output[0]: node for node in model.graph.node}
    nodes, gone = list(model.graph.node), set()
    for norm in model.graph.node:
        conv = producer.get(norm.input[0]) if norm.op_type == "BatchNormalization" else None
        if conv is None or conv.op_type != "Conv" or uses[conv.output[0]] > 1:
            continue
        scale, shift, mean, variance = (arrays[name] for name in norm.input[1:])
        scale = scale / np.sqrt(variance + np.float32(1e-5))
        bias = arrays[conv.input[2]] if len(conv.input) > 2 else 0
        weight = arrays[conv.input[1]] * scale.reshape(-1, 1, 1, 1)
        for name, array in (("weight", weight), ("bias", (bias - mean) * scale + shift)):
            arrays[f"{conv.output[0]}.fused.{name}"] = array.astype(np.float32)
        inputs = [conv.input[0], *(f"{conv.output[0]}.fused.{n}" for n in ("weight", "bias"))]
        del conv.input[:]
        conv.input.extend(inputs)
        conv.output[0] = norm.output[0]
        gone.add(norm.output[0])
        nodes.remove(norm)
    assert gone
    _replace_nodes(model, nodes)
    used = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(a, name) for name, a in arrays.items() if name in used]
    _replace_initializers(model, tensors)
    return model


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _replace_initializers(model: onnx.ModelProto, tensors: list[TensorProto]) -> None:
    tensors = list(tensors)
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)


def _replace_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    nodes = list(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _rename_inputs(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    for node in model.graph.node:
        for slot, name in enumerate(node.input):
            node.input[slot] = names.get(name, name)
