"""Pieces of a network as small ONNX files: what computes some values from values that are known."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from spa_graph.frontends.onnx.reader import normalised_opsets
from spa_graph.frontends.onnx.weights import stored_tensor


def reads(node: ir.Node) -> list[ir.Value]:
    """The values that a node reads, also inside its subgraphs."""
    found = [value for value in node.inputs if value is not None]
    for graph in subgraphs(node):
        own = {id(value) for each in graph for value in each.outputs}
        own.update(id(value) for value in (*graph.inputs, *graph.initializers.values()))
        every = [value for each in graph for value in reads(each)]
        every += [value for value in graph.outputs if value is not None]
        found += [value for value in every if id(value) not in own]
    return found


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs that a node holds: branches of an If, the body of a Loop."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.value)
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.value)
    return found


def is_stored(value: ir.Value) -> bool:
    """Whether a value is an initializer or a Constant's output."""
    node = value.producer()
    return value.const_value is not None if node is None else node.op_type == "Constant"


def ancestors(
    nodes: Iterable[ir.Node], wanted: Collection[str], known: Collection[str]
) -> list[ir.Node]:
    """The nodes that compute some values from known ones; `nodes` in topological order."""
    needed = set(wanted) - set(known)
    found = []
    for node in reversed(list(nodes)):
        if any(value.name in needed for value in node.outputs):
            found.append(node)
            needed.update(v.name for v in reads(node) if v.name and v.name not in known)
    return found[::-1]


def piece(
    model: ir.Model,
    nodes: Iterable[ir.Node],
    inputs: Mapping[str, tuple[np.dtype, int]],
    outputs: Iterable[str],
) -> bytes:
    """A model of some nodes, given type and rank of the values that come in."""
    graph = onnx.GraphProto(name="piece")
    stored: dict[str, ir.TensorProtocol] = {}
    for node in nodes:
        if node.op_type != "Constant":
            graph.node.append(ir.serde.serialize_node(node))
        for value in reads(node):
            if value.name and value.name not in inputs and is_stored(value):
                stored.setdefault(value.name, stored_tensor(value))
    for name, tensor in stored.items():
        if tensor.dtype != ir.DataType.STRING:  # what is computed only when it is read
            tensor = ir.Tensor(tensor.numpy(), dtype=tensor.dtype)
        proto = ir.serde.serialize_tensor(tensor)
        proto.name = name
        graph.initializer.append(proto)
    for name, (dtype, rank) in inputs.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        shape = [None] * rank
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    message = onnx.ModelProto(ir_version=max(model.ir_version, 4), graph=graph)
    for domain, version in normalised_opsets(model).items():
        message.opset_import.append(onnx.OperatorSetIdProto(domain=domain, version=version))
    return message.SerializeToString()
