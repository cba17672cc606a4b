"""FLOPs and interface of an ONNX file, found without spa_graph.

2 x multiply-accumulates of convolutions, matrix products and recurrent layers, from the shapes that
ONNX Runtime really computes: the network is run once with the values in question as outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

Shape = tuple[int, ...]
Feeds = Mapping[str, NDArray[Any]]


def flops(path: Path, feeds: Feeds) -> float:
    """FLOPs of one run of a file."""
    model = onnx.load(path)
    counted = [node for node in model.graph.node if node.op_type in MACS]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes |= {name: array.shape for name, array in feeds.items()}
    wanted = {name for node in counted for name in (*node.input, *node.output)}
    shapes |= _computed_shapes(model, wanted, feeds)
    return sum(2.0 * MACS[node.op_type](node, shapes) for node in counted)


def _computed_shapes(model: onnx.ModelProto, wanted: set[str], feeds: Feeds) -> dict[str, Shape]:
    computed = {name for node in model.graph.node for name in node.output if name} & wanted
    names = sorted(computed - {value.name for value in model.graph.output})
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    outputs = [value.name for value in session.get_outputs()]
    return {
        name: array.shape
        for name, array in zip(outputs, session.run(outputs, dict(feeds)), strict=True)
    }


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


def _einsum(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    # every combination of letters; no ellipsis here
    terms = node.attribute[0].s.decode().split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, name in zip(terms, node.input, strict=True):
        sizes |= dict(zip(term, shapes[name], strict=True))
    return int(np.prod(list(sizes.values())))


def _recurrent(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int:
    steps, batch = shapes[node.input[0]][:2]
    weights = sum(np.prod(shapes[name]) for name in node.input[1:3])
    return int(steps * batch * weights)


MACS: dict[str, Callable[[onnx.NodeProto, Mapping[str, Shape]], int]] = {
    "Conv": _conv,
    "ConvTranspose": _transposed,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
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
