"""FLOPs and interface of an ONNX file, found without spa_graph.

2 x multiply-accumulates of convolutions, matrix products and recurrent layers, from onnx's own
shape inference with every dynamic axis set to a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Shape = tuple[int, ...]
LARGE = 1024  # bytes of an initializer that can't be a shape


def flops(path: Path, sizes: Mapping[str, int]) -> float:
    """FLOPs of a file; `sizes` names the size of each dynamic axis.

    Raises:
        KeyError: a dynamic axis has no size, or an operator that is counted has no shape.
    """
    model = onnx.load(path)
    _fix_axes(model, sizes)
    _forget_weights(model)
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = _shapes(inferred.graph)
    return sum(
        2.0 * MACS[node.op_type](node, shapes)
        for node in inferred.graph.node
        if node.op_type in MACS
    )


def _fix_axes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> None:
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    # What the file says about inner values may still name the dynamic axes.
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _forget_weights(model: onnx.ModelProto) -> None:
    """Large initializers become inputs: inference needs their shapes only."""
    graph = model.graph
    kept = []
    for tensor in graph.initializer:
        if tensor.ByteSize() < LARGE:
            kept.append(tensor)
        else:
            kind = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(kind)
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            found.setdefault(value.name, tuple(dim.dim_value for dim in dims))
    return found


def _conv(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    # each output element: (inputs / group) x kernel
    return int(np.prod(shapes[node.output[0]]) * np.prod(shapes[node.input[1]][1:]))


def _transposed(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    # each input element: (outputs / group) x kernel
    return int(np.prod(shapes[node.input[0]]) * np.prod(shapes[node.input[1]][1:]))


def _matmul(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    return int(np.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1])


def _gemm(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    return int(np.prod(shapes[node.output[0]]) * np.prod(shapes[node.input[0]])
               // shapes[node.output[0]][0])  # fmt: skip


def _recurrent(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    steps, batch = shapes[node.input[0]][:2]
    weights = sum(np.prod(shapes[name]) for name in node.input[1:3])
    return int(steps * batch * weights)


MACS: dict[str, Callable[[onnx.NodeProto, Mapping[str, Shape]], int]] = {
    "Conv": _conv,
    "ConvTranspose": _transposed,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "GRU": _recurrent,
}


def interface(path: Path) -> dict[str, Any]:
    """Everything that a user of a file relies on."""
    model = onnx.load(path, load_external_data=False)
    stored = {tensor.name for tensor in model.graph.initializer}
    return {
        "inputs": [_value(v) for v in model.graph.input if v.name not in stored],
        "outputs": [_value(value) for value in model.graph.output],
        "opsets": {entry.domain: entry.version for entry in model.opset_import},
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
    }


def _value(value: onnx.ValueInfoProto) -> tuple[str, int, list[int | str]]:
    kind = value.type.tensor_type
    return value.name, kind.elem_type, [dim.dim_param or dim.dim_value for dim in kind.shape.dim]


def shared_vectors(path: Path) -> Sequence[str]:
    """Weights of one axis that more than one operator uses: exporters merge what is equal."""
    graph = onnx.load(path, load_external_data=False).graph
    vectors = {t.name for t in graph.initializer if len(t.dims) == 1 and t.dims[0] > 8}
    uses = [name for node in graph.node for name in set(node.input) if name in vectors]
    return sorted({name for name in uses if uses.count(name) > 1})
