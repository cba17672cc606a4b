"""Canonical form: what the analysis wants to see, with the same results and the same interface.

Valid model in, valid model out; input and output names are kept.
* Local functions are inlined.
* A channel shuffle, `Reshape - Transpose - Reshape` that only permutes one axis, becomes a
  constant Gather: as reshapes it would tie channels that need not be tied.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import InlinePass

from spa_graph.frontends.onnx.editor import operator_nodes, replace_node
from spa_graph.frontends.onnx.reader import InputShapes, read
from spa_graph.frontends.onnx.weights import add_initializer
from spa_graph.graph import ONE, Graph, Operator, Shape


def canonicalize(model: ir.Model, input_shapes: InputShapes) -> tuple[Graph, list[str]]:
    """Canonicalise in place; returns the model's graph and what was rewritten."""
    changed = []
    if model.functions:
        InlinePass()(model)
        changed.append("local functions inlined")
    graph = read(model, input_shapes)
    shuffles = _find_shuffles(graph)
    if shuffles:
        nodes = operator_nodes(model, graph)
        for last, source, axis, index in shuffles:
            _use_gather(model, nodes[last.index], source, axis, index)
        graph = read(model, input_shapes)
        changed.append(f"{len(shuffles)} channel shuffles became Gather")
    return graph, changed


def _use_gather(model: ir.Model, last: ir.Node, source: str, axis: int, index: NDArray[np.int64]) -> None:
    middle = last.inputs[0]
    first = middle.producer().inputs[0].producer() if middle is not None else None  # type: ignore[union-attr]
    assert first is not None and first.inputs[0] is not None and first.inputs[0].name == source
    positions = add_initializer(model, f"{last.outputs[0].name}.shuffle", ir.tensor(index))
    attributes = [ir.AttrInt64("axis", axis)]
    gather = ir.Node("", "Gather", [first.inputs[0], positions], attributes, name=last.name)
    chain = [last, middle.producer(), first]  # type: ignore[union-attr]
    replace_node(model, last, gather)
    for node in chain[1:]:
        unused = node is not None and not any(
            value.uses() or value.is_graph_output() for value in node.outputs
        )
        if node is not None and unused:
            model.graph.remove(node, safe=True)


def _find_shuffles(graph: Graph) -> list[tuple[Operator, str, int, NDArray[np.int64]]]:
    """(last reshape, source value, axis, permutation) of every channel shuffle."""
    producer = {name: operator for operator in graph.operators for name in operator.outputs}
    found = []
    for last in graph.operators:
        transpose = producer.get(last.inputs[0]) if last.op_type == "Reshape" else None
        if transpose is None or transpose.op_type != "Transpose":
            continue
        first = producer.get(transpose.inputs[0])
        if first is None or first.op_type != "Reshape" or last.outputs[0] in graph.known:
            continue
        shapes = [graph.shapes.get(n) for n in (first.inputs[0], first.outputs[0], last.outputs[0])]
        if None in shapes or shapes[0] != shapes[2]:
            continue
        order = transpose.attributes.get("perm")
        permuted = _permuted_axis(shapes[0] or (), shapes[1] or (), order)
        if permuted is not None:
            found.append((last, first.inputs[0], *permuted))
    return found


def _permuted_axis(
    source: Shape, split: Shape, order: list[int] | None
) -> tuple[int, NDArray[np.int64]] | None:
    """The one axis that is cut, permuted and merged again, with its permutation."""
    order = list(order) if order is not None else list(range(len(split)))[::-1]
    moved = [position for position, origin in enumerate(order) if position != origin]
    if not moved:
        return None
    low, high = moved[0], moved[-1]
    before = [extent for extent in split[:low] if extent != ONE]
    behind = [extent for extent in split[high + 1 :] if extent != ONE]
    factors = split[low : high + 1]
    if not all(extent.static for extent in factors):
        return None
    sizes = [extent.nominal for extent in factors]
    for axis, extent in enumerate(source):
        left = [e for e in source[:axis] if e != ONE]
        right = [e for e in source[axis + 1 :] if e != ONE]
        if extent.static and extent.nominal == math.prod(sizes) and (left, right) == (before, behind):
            local = [position - low for position in order[low : high + 1]]
            index = np.arange(extent.nominal).reshape(sizes).transpose(local).reshape(-1)
            return axis, index.astype(np.int64)
    return None
