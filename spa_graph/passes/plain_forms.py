"""Roundabout forms in which exporters write plain operators, and the plain operators.

* A look-up of all elements of a flattened tensor in their order becomes the Reshape that it is:
  PyTorch's exporter writes `as_strided` so. As a look-up it would freeze every channel.
* A list of parts that are taken out by constant positions becomes a Split: PyTorch's exporter
  writes `split` and `chunk` so before it optimises. Where the size of the parts is computed, as
  half of a free batch, what is taken out becomes a Slice.
* A Reshape that changes the layout of axes of which all but one have one element becomes a
  Transpose, in networks that change layouts in this way: TFLite writes the layouts of
  squeeze-and-excitation so. As a Reshape it keeps ONNX Runtime from cancelling the Transposes
  around it.
* A GatherND whose constant positions are those of one axis becomes the Gather that it is: PyTorch's
  exporter writes `x[:, [3]]` so before it optimises.
* Zeros as initial state of a recurrent layer are left out: they are the default. Layers whose
  states are cut out of one tensor of zeros would be tied in their hidden sizes. So are computed
  biases of zeros, as PyTorch's exporter writes them before it optimises: a weight of which they
  take the shape would have another reader, and its layer no bias to refit.

Each is found in a graph, and rewritten in the model that the graph was read from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spa_graph.frontends.onnx.editor import (
    become_gather,
    become_reshape,
    become_slice,
    become_split,
    become_transpose,
    operator_nodes,
)
from spa_graph.frontends.onnx.lists import part_sizes
from spa_graph.graph import ONE, Extent, Graph, Known, Operator, Shape

Lookup = tuple[Operator, NDArray[np.int64]]
"""The look-up, and the sizes that it arranges the elements in."""
Parts = tuple[Operator, list[int]]
"""The operator that makes a list of parts, and their sizes."""
Cuts = tuple[Operator, list[tuple[Operator, int]]]
"""The operator that makes a list of parts; those that take some out, and which."""
Layout = tuple[Operator, tuple[int, ...]]
"""The operator that changes a layout, and the permutation of axes that it comes to."""
Input = tuple[Operator, int]
"""An operator and the position of its input."""


def remove_unused(model: ir.Model, node: ir.Node | None) -> None:
    """Remove a node that nothing uses, and what only it used."""
    if node is None or node.graph is None:  # removed already
        return
    if any(value.uses() or value.is_graph_output() for value in node.outputs):
        return
    before = [value.producer() for value in node.inputs if value is not None]
    model.graph.remove(node, safe=True)
    for producer in dict.fromkeys(before):
        remove_unused(model, producer)


# --- look-ups that are reshapes ---------------------------------------------------------------


def _find_lookups(graph: Graph) -> list[Lookup]:
    """Gathers of all elements of a flat tensor, in order."""
    found = []
    makers = {name: operator for operator in graph.operators for name in operator.outputs}
    for operator in graph.operators:
        if operator.op_type != "Gather" or operator.domain or operator.version < 5:
            continue
        flat, index = (graph.shapes.get(name) for name in operator.inputs)
        known = graph.known.get(operator.inputs[1])
        if flat is None or index is None or known is None or operator.outputs[0] in graph.known:
            continue
        if any(map(graph.unsized_in, operator.inputs)):
            continue
        sizes = _sizes(known, index)
        if len(flat) != 1 or sizes is None or not _is_everything(known, flat[0]):
            continue
        if _is_linear(graph, makers, operator.inputs[1]):
            found.append((operator, sizes))
    return found


def _is_linear(graph: Graph, makers: Mapping[str, Operator], name: str) -> bool:
    """Whether elements grow evenly along each axis whose size isn't fixed, however long it is.

    What such elements are at two sizes tells what they are at all; those of `Range(n) mod 1024` are
    others from 1024 on.
    """
    known = graph.known.get(name)
    if known is None or known.nominal.dtype not in (np.int32, np.int64):
        return False
    if known.static:
        return True
    maker = makers.get(name)
    if maker is None or maker.domain:
        return False

    def linear(*slots: int) -> bool:
        return all(_is_linear(graph, makers, maker.inputs[slot]) for slot in slots)

    def static(*slots: int) -> bool:
        return all(graph.known[maker.inputs[slot]].static for slot in slots)

    match maker.op_type:
        case "Range":  # start, limit, delta: the limit decides about the size only
            return static(0, 2)
        case "Add" | "Sub":
            return linear(0, 1)
        case "Mul":
            return linear(0, 1) and (static(0) or static(1))
        case "Identity" | "Cast" | "Unsqueeze" | "Squeeze" | "Expand":
            return linear(0)
        case "Reshape":
            return linear(0) and _wide(graph, maker.inputs[0]) == _wide(graph, name)
    return False


def _wide(graph: Graph, name: str) -> list[Extent]:
    """The sizes of all axes of more than one element."""
    return [extent for extent in graph.shapes[name] if extent != ONE]


def _is_everything(known: Known, extent: Extent) -> bool:
    """Whether these are the positions of all elements of an axis, in order."""
    return all(
        positions.size == size and np.array_equal(positions.reshape(-1), np.arange(size))
        for positions, size in zip((known.nominal, known.other), extent, strict=True)
    )


def _sizes(known: Known, shape: Shape) -> NDArray[np.int64] | None:
    """The sizes to reshape to, as a constant; None if more than one is dynamic."""
    dynamic = [extent for extent in shape if not extent.static]
    if len(dynamic) > 1 or not (dynamic or known.static) or any(min(e) < 1 for e in shape):
        return None
    return np.array([extent.nominal if extent.static else -1 for extent in shape], np.int64)


def _use_reshapes(model: ir.Model, graph: Graph, lookups: list[Lookup]) -> None:
    nodes = operator_nodes(model, graph)
    for operator, sizes in lookups:
        node = nodes[operator.index]
        flat, index = node.inputs[0], node.inputs[1]
        assert flat is not None and index is not None
        flattened = flat.producer()
        direct = flattened is not None and flattened.op_type in ("Reshape", "Flatten")
        become_reshape(model, node, flattened.inputs[0] if direct and flattened else flat, sizes)
        remove_unused(model, flattened)
        remove_unused(model, index.producer())


# --- lists that are splits --------------------------------------------------------------------


def _find_lists(graph: Graph) -> list[Parts]:
    """SplitToSequence into parts of constant sizes, each of which one operator takes out."""
    found = []
    for operator, takers in _lists(graph):
        sizes = _part_sizes(graph, operator)
        positions = [_taken(graph, taker, len(sizes)) for taker in takers]
        if len(set(positions) - {None}) == len(takers) > 0:
            found.append((operator, sizes))
    return found


def _lists(graph: Graph) -> Iterator[tuple[Operator, list[Operator]]]:
    """Every SplitToSequence whose parts aren't read by subgraphs or given out, and its readers."""
    uses = graph.uses()
    elsewhere = {*graph.outputs, *(name for other in graph.operators for name in other.captures)}
    for operator in graph.operators:
        if operator.op_type != "SplitToSequence" or operator.domain or operator.version < 13:
            continue
        squeezes = operator.attributes.get("keepdims", 1) == 0  # parts of one element
        if operator.outputs[0] not in elsewhere and not squeezes:
            yield operator, [taker for taker, _ in uses.get(operator.outputs[0], ())]


def _part_sizes(graph: Graph, operator: Operator) -> list[int]:
    """The sizes of the parts; empty if they are not constant."""
    shape = graph.shapes.get(operator.inputs[0])
    split = graph.known.get(operator.inputs[1]) if len(operator.inputs) > 1 else None
    if shape is None or split is None or not split.static:
        return []
    if graph.unsized_in(operator.inputs[0]):
        return []
    extent = shape[operator.attributes.get("axis", 0)]
    return part_sizes(split.nominal, extent.nominal if extent.static else 0)


def _taken(graph: Graph, taker: Operator, count: int) -> int | None:
    """Which of the parts a SequenceAt takes out, if that is constant."""
    position = _position(graph, taker)
    return position % count if position is not None and -count <= position < count else None


def _position(graph: Graph, taker: Operator) -> int | None:
    known = graph.known.get(taker.inputs[1]) if taker.op_type == "SequenceAt" else None
    return int(known.nominal) if known is not None and known.static else None


def _use_splits(model: ir.Model, graph: Graph, lists: list[Parts]) -> None:
    nodes = operator_nodes(model, graph)
    uses = graph.uses()
    for operator, sizes in lists:
        node = nodes[operator.index]
        takers = {
            position: nodes[taker.index]
            for taker, _ in uses[operator.outputs[0]]
            if (position := _taken(graph, taker, len(sizes))) is not None
        }
        become_split(model, node, operator.attributes.get("axis", 0), sizes, takers)


def _find_cuts(graph: Graph) -> list[Cuts]:
    """SplitToSequence into parts of one computed size, which are taken out from the front."""
    found = []
    for operator, takers in _lists(graph):
        size = graph.shapes.get(operator.inputs[1]) if len(operator.inputs) > 1 else None
        cuts = [(taker, _position(graph, taker)) for taker in takers]
        counted = [(taker, at) for taker, at in cuts if at is not None and at >= 0]
        if size == () and len(counted) == len(takers) > 0:
            found.append((operator, counted))
    return found


def _use_slices(model: ir.Model, graph: Graph, lists: list[Cuts]) -> None:
    nodes = operator_nodes(model, graph)
    for operator, cuts in lists:
        node, axis = nodes[operator.index], operator.attributes.get("axis", 0)
        size = graph.known.get(operator.inputs[1])
        fixed = int(size.nominal) if size is not None and size.static else None
        for taker, position in cuts:
            become_slice(model, nodes[taker.index], node, axis, position, fixed)
        model.graph.remove(node, safe=True)


# --- reshapes that are transposes -------------------------------------------------------------


def _find_layouts(graph: Graph) -> list[Layout]:
    """Reshapes that do what a Transpose of the network does, or undoes, to axes of one element.

    Where an image of one channel is reshaped, nothing has to cancel, and a Reshape costs nothing.
    """
    found = []
    orders = {order for operator in graph.operators for order in _orders(operator)}
    for operator in graph.operators:
        if operator.op_type != "Reshape" or operator.domain or operator.outputs[0] in graph.known:
            continue
        source, target = (graph.shapes.get(n) for n in (operator.inputs[0], operator.outputs[0]))
        if source is None or target is None or source == target:
            continue
        if any(map(graph.unsized_in, (operator.inputs[0], operator.outputs[0]))):
            continue
        # Sizes that change could be the same by chance if there were several
        if sum(not extent.static for extent in source) > 1 or (0, 0) in source:
            continue
        if sum(extent.static and extent != ONE for extent in source) > 1:
            continue
        for order in sorted(orders):
            kept = [axis for axis in order if axis < len(source) and source[axis] != ONE]
            moved = len(order) == len(source) and tuple(source[axis] for axis in order)
            if moved == target and kept == sorted(kept):
                found.append((operator, order))
                break
    return found


def _orders(operator: Operator) -> list[tuple[int, ...]]:
    """The permutation of a Transpose, and the one that undoes it."""
    order = operator.attributes.get("perm") if operator.op_type == "Transpose" else None
    if order is None or operator.domain:
        return []
    return [tuple(order), tuple(int(axis) for axis in np.argsort(order))]


def _use_transposes(model: ir.Model, graph: Graph, layouts: list[Layout]) -> None:
    nodes = operator_nodes(model, graph)
    for operator, order in layouts:
        node = nodes[operator.index]
        sizes = node.inputs[1]
        become_transpose(model, node, order)
        remove_unused(model, sizes.producer() if sizes is not None else None)


# --- look-ups along one axis ------------------------------------------------------------------


def _find_picks(graph: Graph) -> list[Operator]:
    """GatherNDs that pick elements of the first axis by constant positions."""
    return [
        operator
        for operator in graph.operators
        if operator.op_type == "GatherND" and not operator.domain
        if not operator.attributes.get("batch_dims", 0)
        for known in [graph.known.get(operator.inputs[1])]
        if known is not None and known.static and known.nominal.shape[-1] == 1
    ]


def _use_gathers(model: ir.Model, graph: Graph, picks: list[Operator]) -> None:
    nodes = operator_nodes(model, graph)
    for operator in picks:
        node, positions = nodes[operator.index], graph.known[operator.inputs[1]].nominal
        source, old = node.inputs
        become_gather(model, node, source, 0, positions[..., 0])
        assert old is not None
        remove_unused(model, old.producer())


# --- optional inputs of zeros -----------------------------------------------------------------

STATE_SLOTS = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
BIAS_SLOTS = {"Conv": (2,), "ConvTranspose": (2,)}


def _find_zeros(slots: Mapping[str, tuple[int, ...]]) -> Callable[[Graph], list[Input]]:
    """Finds optional inputs that are computed, and zero whatever the sizes are."""

    def find(graph: Graph) -> list[Input]:
        return [
            (operator, slot)
            for operator in graph.operators
            for slot in slots.get(operator.op_type, ())
            if not operator.domain and slot < len(operator.inputs)
            for known in [graph.known.get(operator.inputs[slot])]
            if known is not None and known.uniform and not known.nominal.any()
        ]

    return find


def _leave_out(model: ir.Model, graph: Graph, inputs: list[Input]) -> None:
    """Remove optional inputs; trailing ones disappear."""
    nodes = operator_nodes(model, graph)
    for operator, slot in inputs:
        node = nodes[operator.index]
        old = node.inputs[slot]
        assert old is not None
        node.replace_input_with(slot, None)
        while node.inputs[-1] is None:
            node.resize_inputs(len(node.inputs) - 1)
        remove_unused(model, old.producer())


STEPS: tuple[tuple[Callable[[Graph], Any], Callable[[ir.Model, Graph, Any], None], str], ...] = (
    (_find_lists, _use_splits, "lists of parts became Split"),
    (_find_cuts, _use_slices, "lists of parts of a computed size became Slice"),
    (_find_picks, _use_gathers, "look-ups along one axis became Gather"),
    (_find_lookups, _use_reshapes, "look-ups of all elements in order became Reshape"),
    (_find_layouts, _use_transposes, "changes of layout became Transpose"),
    (_find_zeros(STATE_SLOTS), _leave_out, "initial states of zeros were left out"),
    (_find_zeros(BIAS_SLOTS), _leave_out, "computed biases of zeros were left out"),
)
"""What to look for, how to rewrite it, and what to call that."""
