"""The masked reference network: what the pruned network must compute, built without slicing.

The original network with the parameters of the removed channels set to zero. Operators that would
see those zeros (a normalisation over channels, a sum over features that are not zero) get only the
kept channels: `Gather -> operator -> Pad, Gather`, and their outputs are zero in the removed ones.
A ranking that gets only the kept elements returns positions among these, which are looked up: all
positions in the reference are those of the whole axis. So every weight keeps its full shape, and an
index that is wrong anywhere shows as a difference.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spa_graph.coupling.analysis import Coupling
from spa_graph.edits import Edits
from spa_graph.frontends.onnx.editor import edit_operators, operator_nodes
from spa_graph.frontends.onnx.names import fresh_name
from spa_graph.frontends.onnx.reader import normalised_opsets
from spa_graph.frontends.onnx.weights import add_initializer, transform_weights, zeroed
from spa_graph.plan import Kept

Stays = NDArray[np.bool_]


def mask(model: ir.Model, coupling: Coupling, kept: Kept, edits: Edits) -> None:
    """Turn a copy of the original model into the masked reference, in place."""
    nodes = operator_nodes(model, coupling.graph)
    transform_weights(model, nodes, edits.slices, zeroed)
    compact = coupling.exactness.compact
    edit_operators(model, nodes, edits, compact)
    for index in sorted(compact):
        _run_compactly(model, coupling, kept, nodes[index], index)


def _run_compactly(
    model: ir.Model, coupling: Coupling, kept: Kept, node: ir.Node, index: int
) -> None:
    operator = coupling.graph.operators[index]
    for slot, name in enumerate(operator.inputs):
        axes = coupling.relations.operand(operator, slot) if name else None
        for position, axis in enumerate(axes or ()):
            stays = coupling.kept_elements(axis, kept)
            if stays is not None:
                _take(model, node, slot, position, stays)
    for slot, name in enumerate(operator.outputs):
        if name in coupling.facts.ranked:
            stays = coupling.kept_elements(coupling.facts.ranked[name], kept)
            if stays is not None:
                _look_up(model, node.outputs[slot], np.flatnonzero(stays))
        for position, axis in enumerate(coupling.relations.value(name) or () if name else ()):
            stays = coupling.kept_elements(axis, kept)
            if stays is not None:
                rank = len(coupling.relations.value(name) or ())
                _put_back(model, node, slot, position, rank, stays)


def _take(model: ir.Model, node: ir.Node, slot: int, axis: int, stays: Stays) -> None:
    """Feed only the kept elements to an input."""
    source = node.inputs[slot]
    label = next(out.name for out in node.outputs if out.name)
    taken = _gather(model, source, np.flatnonzero(stays), axis, f"{label}.take{slot}.{axis}")
    model.graph.insert_before(node, taken)
    node.replace_input_with(slot, taken.outputs[0])


def _put_back(
    model: ir.Model, node: ir.Node, slot: int, axis: int, rank: int, stays: Stays
) -> None:
    """Spread an output over its full axis: append a zero, then look up every element."""
    out = node.outputs[slot]
    consumers = [(use.node, use.idx) for use in out.uses()]
    name = fresh_name(model, f"{out.name}.full{axis}")
    pads = np.zeros(2 * rank, np.int64)
    pads[rank + axis] = 1
    label = fresh_name(model, f"{name}.pad")
    if normalised_opsets(model)[""] >= 11:
        amount = add_initializer(model, f"{name}.pads", ir.tensor(pads))
        padded = ir.Node("", "Pad", [out, amount], name=label)
    else:
        padded = ir.Node("", "Pad", [out], [ir.AttrInt64s("pads", pads.tolist())], name=label)
    padded.outputs[0].name = label
    index = np.where(stays, np.cumsum(stays) - 1, int(stays.sum()))
    full = _gather(model, padded.outputs[0], index, axis, name)
    model.graph.insert_after(node, [padded, full])
    for consumer, position in consumers:
        consumer.replace_input_with(position, full.outputs[0])


def _look_up(model: ir.Model, positions: ir.Value, numbers: NDArray[np.int64]) -> None:
    """Let everyone who reads positions among some elements read the elements' numbers instead."""
    consumers = [(use.node, use.idx) for use in positions.uses()]
    name = f"{positions.name}.whole"
    stored = add_initializer(model, f"{name}.numbers", ir.tensor(numbers))
    label = fresh_name(model, name)
    node = ir.Node("", "Gather", [stored, positions], [ir.AttrInt64("axis", 0)], name=label)
    node.outputs[0].name = label
    producer = positions.producer()
    assert producer is not None, f"{positions.name} is not computed"
    model.graph.insert_after(producer, node)
    for consumer, position in consumers:
        consumer.replace_input_with(position, node.outputs[0])


def _gather(
    model: ir.Model, source: ir.Value | None, index: NDArray[np.int64], axis: int, name: str
) -> ir.Node:
    positions = add_initializer(model, f"{name}.index", ir.tensor(index.astype(np.int64)))
    label = fresh_name(model, f"{name}.{axis}")
    gather = ir.Node("", "Gather", [source, positions], [ir.AttrInt64("axis", axis)], name=label)
    gather.outputs[0].name = label
    return gather
