"""Canonical form: what the analysis wants to see, with the same results and the same interface.

Valid model in, valid model out; input and output names are kept.
* Local functions are inlined, and so is the branch of an If whose condition is always the same:
  exporters write `if x.shape[0] == 1` as an If, and what a subgraph captures stays frozen.
* What exporters write in a roundabout way becomes plain operators, see `plain_forms.py`.
* A channel shuffle, `Reshape - Transpose - Reshape` that only permutes one axis, becomes a
  constant Gather: as reshapes it would tie channels that need not be tied.
* A number that is computed from sizes that never change, as in `x / sqrt(x.shape[-1])`, becomes a
  constant: pruning changes such sizes, and the number must stay what it was.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import InlinePass

from spa_graph.coupling.analysis import SIZE_SLOTS
from spa_graph.frontends.onnx.editor import become_gather, operator_nodes, take_over
from spa_graph.frontends.onnx.names import keep_apart
from spa_graph.frontends.onnx.pieces import subgraphs
from spa_graph.frontends.onnx.reader import read
from spa_graph.frontends.onnx.sizes import InputShapes
from spa_graph.frontends.onnx.weights import add_initializer
from spa_graph.graph import ONE, Graph, Operator, Shape
from spa_graph.passes.plain_forms import STEPS, remove_unused


def canonicalize(model: ir.Model, input_shapes: InputShapes) -> tuple[Graph, list[str]]:
    """Canonicalise in place; returns the model's graph and what was rewritten."""
    changed = []
    if model.functions:
        InlinePass()(model)
        changed.append("local functions inlined")
    graph = read(model, input_shapes)
    decided = 0
    while branches := _find_branches(model, graph):  # one may hold the next
        for node, branch in branches:
            _inline(model, node, branch)
        decided += len(branches)
        graph = read(model, input_shapes)
    if decided:
        changed.append(f"{decided} decided branches inlined")
    for find, rewrite, what in STEPS:
        found = find(graph)
        if found:
            rewrite(model, graph, found)
            graph = read(model, input_shapes)
            changed.append(f"{len(found)} {what}")
    shuffles = _find_shuffles(graph)
    if shuffles:
        nodes = operator_nodes(model, graph)
        for last, first, axis, index in shuffles:
            _use_gather(model, nodes[last.index], nodes[first.index], axis, index)
        graph = read(model, input_shapes)
        changed.append(f"{len(shuffles)} channel shuffles became Gather")
    numbers = _find_numbers(model, graph)
    if numbers:
        _store_numbers(model, graph, numbers)
        graph = read(model, input_shapes)
        changed.append(f"{len(numbers)} numbers computed from sizes became constants")
    return graph, changed


def _find_branches(model: ir.Model, graph: Graph) -> list[tuple[ir.Node, ir.Graph]]:
    """Every If with a condition that no input can change, and the branch it takes."""
    found = []
    overridable = _overridable(model, graph)
    for operator in graph.operators:
        known = graph.known.get(operator.inputs[0]) if operator.op_type == "If" else None
        if known is not None and known.static and operator.inputs[0] not in overridable:
            node = operator_nodes(model, graph)[operator.index]
            taken = "then_branch" if bool(known.nominal.all()) else "else_branch"
            found.append((node, node.attributes[taken].as_graph()))
    return found


def _overridable(model: ir.Model, graph: Graph) -> set[str]:
    """Defaults of inputs, which whoever runs the network may replace, and what follows from them.

    Before version 4, files list all weights as inputs; they are constants nevertheless.
    """
    if model.ir_version < 4:
        return set()
    found = {v.name or "" for v in model.graph.inputs if v.name in model.graph.initializers}
    for operator in graph.operators:
        if operator.op_type not in ("Shape", "Size") and not found.isdisjoint(operator.inputs):
            found.update(filter(None, operator.outputs))
    return found


def _inline(model: ir.Model, node: ir.Node, branch: ir.Graph) -> None:
    """Put a branch in the place of its If; other branches may use the same names."""
    results = list(branch.outputs)
    branch.outputs.clear()
    weights = list(branch.initializers.values())
    branch.initializers.clear()
    nodes = list(branch)
    branch.remove(nodes)
    model.graph.insert_before(node, nodes)
    for old, result in zip(node.outputs, results, strict=True):
        identity = ir.Node("", "Identity", [result])
        model.graph.insert_before(node, identity)
        take_over(old, identity.outputs[0])
    condition = node.inputs[0]
    _let_go(node)
    model.graph.remove(node, safe=True)
    keep_apart(model, [*weights, *(value for inner in nodes for value in inner.outputs)])
    for weight in weights:
        model.graph.register_initializer(weight)
    remove_unused(model, condition.producer() if condition is not None else None)


def _let_go(node: ir.Node) -> None:
    """Forget what a node's subgraphs read: it would count as used after the node is gone."""
    for graph in subgraphs(node):
        graph.outputs.clear()
        for inner in graph:
            _let_go(inner)
            for position in range(len(inner.inputs)):
                inner.replace_input_with(position, None)


def _find_numbers(model: ir.Model, graph: Graph) -> list[tuple[Operator, int]]:
    """Inputs (operator, position) that are computed from static sizes, and not used as sizes."""
    overridable = _overridable(model, graph)
    return [
        (operator, slot)
        for operator in graph.operators
        if not all(name in graph.known for name in operator.outputs if name)
        for slot, name in enumerate(operator.inputs)
        if slot not in SIZE_SLOTS.get(operator.op_type, ())
        and _is_static_number(graph, name)
        and name not in overridable
    ]


def _is_static_number(graph: Graph, name: str) -> bool:
    known = graph.known.get(name)
    if known is None or known.fill or not known.origins or not known.static:
        return False
    return known.nominal.size == 1


def _store_numbers(model: ir.Model, graph: Graph, numbers: list[tuple[Operator, int]]) -> None:
    nodes = operator_nodes(model, graph)
    for operator, slot in numbers:
        node = nodes[operator.index]
        old = node.inputs[slot]
        assert old is not None
        number = ir.tensor(graph.known[operator.inputs[slot]].nominal)
        stored = add_initializer(model, f"{node.outputs[0].name}.number{slot}", number)
        node.replace_input_with(slot, stored)
        remove_unused(model, old.producer())


def _use_gather(
    model: ir.Model, last: ir.Node, first: ir.Node, axis: int, index: NDArray[np.int64]
) -> None:
    middle = last.inputs[0]
    become_gather(model, last, first.inputs[0], axis, index)
    remove_unused(model, middle.producer() if middle is not None else None)


def _find_shuffles(graph: Graph) -> list[tuple[Operator, Operator, int, NDArray[np.int64]]]:
    """(last reshape, first one, axis, permutation) of every channel shuffle.

    Identities in it don't matter.
    """
    producer = {name: operator for operator in graph.operators for name in operator.outputs}
    found = []
    for last in graph.operators:
        transpose = _source(producer, last) if last.op_type == "Reshape" else None
        if transpose is None or transpose.op_type != "Transpose":
            continue
        first = _source(producer, transpose)
        if first is None or first.op_type != "Reshape" or last.outputs[0] in graph.known:
            continue
        shapes = [graph.shapes.get(n) for n in (first.inputs[0], first.outputs[0], last.outputs[0])]
        if None in shapes or shapes[0] != shapes[2]:
            continue
        order = transpose.attributes.get("perm")
        permuted = _permuted_axis(shapes[0] or (), shapes[1] or (), order)
        if permuted is not None:
            found.append((last, first, *permuted))
    return found


def _source(producer: dict[str, Operator], operator: Operator) -> Operator | None:
    """The operator that an operator's first input comes from."""
    source = producer.get(operator.inputs[0])
    while source is not None and source.op_type == "Identity":
        source = producer.get(source.inputs[0])
    return source


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
        if (
            extent.static
            and extent.nominal == math.prod(sizes)
            and (left, right) == (before, behind)
        ):
            local = [position - low for position in order[low : high + 1]]
            index = np.arange(extent.nominal).reshape(sizes).transpose(local).reshape(-1)
            return axis, index.astype(np.int64)
    return None
