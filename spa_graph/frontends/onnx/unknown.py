"""Sizes that depend on data: how many elements NonZero finds, or how many boxes are left.

They are one more kind of size that a network is looked at with twice: 1 in the first probe, in the
second a prime of its own. So the other axes behind them stay known, and what is computed from such
a size follows from it. Where two of them turn out to be one size, inference rejects the primes;
then the shape is unknown, which is not the network's fault.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

_PRIMES = [n for n in range(11, 2000) if all(n % d for d in range(2, int(n**0.5) + 1))]


def chosen(which: int, number: int) -> int:
    """The size, in a look, of the axis that is the `number`-th to depend on data."""
    return (1, _PRIMES[number % len(_PRIMES)], 0)[which]


def branch_types(
    node: ir.Node,
    types: Mapping[str, onnx.TypeProto],
    values: Mapping[str, NDArray[np.generic]],
    imports: list[onnx.OperatorSetIdProto],
) -> dict[str, onnx.TypeProto]:
    """Types of the outputs of an If: what both branches agree on.

    Args:
        types: of the values of the outer graph.
        values: those that are known.

    Raises:
        ValueError: the branches give tensors of different rank or element type.
    """
    branches = [
        _outputs(node.attributes[name].as_graph(), types, values, imports)
        for name in ("then_branch", "else_branch")
    ]
    names = [value.name or "" for value in node.outputs]
    return {name: _common(*both) for name, *both in zip(names, *branches, strict=False) if name}


def _outputs(
    graph: ir.Graph,
    types: Mapping[str, onnx.TypeProto],
    values: Mapping[str, NDArray[np.generic]],
    imports: list[onnx.OperatorSetIdProto],
) -> list[onnx.TypeProto]:
    proto = onnx.GraphProto(name="branch")
    proto.node.extend(ir.serde.serialize_node(node) for node in graph)
    proto.output.extend(onnx.ValueInfoProto(name=value.name) for value in graph.outputs)
    own = {value.name for node in graph for value in node.outputs}
    outside = {name for node in proto.node for name in node.input if name} - own
    for name in sorted(outside | {value.name or "" for value in graph.outputs} - own):
        stored = graph.initializers.get(name)
        if stored is not None and stored.const_value is not None:
            proto.initializer.append(ir.serde.serialize_tensor(stored.const_value))
        elif name in values:
            proto.initializer.append(onnx.numpy_helper.from_array(np.asarray(values[name]), name))
        elif name in types:
            proto.input.append(onnx.ValueInfoProto(name=name, type=types[name]))
    model = onnx.ModelProto(graph=proto, opset_import=imports, ir_version=onnx.IR_VERSION)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True).graph
    return [value.type for value in inferred.output]


def _common(first: onnx.TypeProto, second: onnx.TypeProto) -> onnx.TypeProto:
    tensors = first.tensor_type, second.tensor_type
    if tensors[0].elem_type != tensors[1].elem_type or not tensors[0].elem_type:
        raise ValueError("its branches give different types")
    if not all(tensor.HasField("shape") for tensor in tensors):
        raise ValueError("control flow")
    if len(tensors[0].shape.dim) != len(tensors[1].shape.dim):
        raise ValueError("its branches give tensors of different rank")
    common = onnx.TypeProto()
    common.CopyFrom(first)
    for dim, other in zip(common.tensor_type.shape.dim, tensors[1].shape.dim, strict=True):
        known = dim.HasField("dim_value") and other.HasField("dim_value")
        if not known or dim.dim_value != other.dim_value:
            dim.Clear()
    return common
