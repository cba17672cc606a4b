"""onnx's checker on a written file, without reading its weights."""

from __future__ import annotations

from pathlib import Path

import onnx

from spa_graph.frontends.onnx import files


def complaint(path: Path) -> str | None:
    """What onnx's checker says against a file, or None.

    Weights that are not in the message (they are mapped, or external) are declared as inputs.
    """
    message = files.read_message(path)
    graph = message.graph
    elsewhere = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    declared = {value.name for value in graph.input}
    for tensor in elsewhere:
        graph.initializer.remove(tensor)
        _declare(graph, tensor.name, tensor, declared)
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        for attribute in node.attribute:
            if attribute.t.data_location == onnx.TensorProto.EXTERNAL:
                graph.node.remove(node)
                _declare(graph, node.output[0], attribute.t, declared)
                break
    return complaint_about(message)


def complaint_about(message: onnx.ModelProto) -> str | None:
    """What onnx's checker says against a model in memory, or None."""
    try:
        onnx.checker.check_model(message)
    except (onnx.checker.ValidationError, ValueError) as error:
        return " ".join(str(error).split())
    return None


def _declare(
    graph: onnx.GraphProto, name: str, tensor: onnx.TensorProto, declared: set[str]
) -> None:
    if name not in declared:
        info = onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
        graph.input.append(info)
