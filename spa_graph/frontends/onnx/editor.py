"""Applying `Edits` to an ONNX model, in place; and correcting sizes that it computes itself.

Constants that several nodes share are copied before they are edited. Sizes that a network computes
(`Shape -> Gather -> Concat -> Reshape`) follow by themselves where they are read from a pruned
value, and are corrected where a constant names the old size: `Edits.expected` tells what every
value's shape must be, so no pattern has to be recognised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spa_graph.coupling.analysis import Coupling
from spa_graph.edits import Edits
from spa_graph.errors import ModelError, RewriteError
from spa_graph.frontends.onnx.names import fresh_name
from spa_graph.frontends.onnx.reader import SizeMismatch, read, read_expecting
from spa_graph.frontends.onnx.sizes import InputShapes, Key, free_inputs, keys
from spa_graph.frontends.onnx.weights import (
    add_initializer,
    set_constant,
    sliced,
    transform_weights,
)
from spa_graph.graph import ONE, Extent, Graph, Operator, Shape

Ints = NDArray[np.int64]
HINT = "nothing was written. Exclude the weights around it: --exclude PATTERN"


def apply_edits(
    model: ir.Model, coupling: Coupling, edits: Edits, input_shapes: InputShapes | None = None
) -> Graph:
    """Make a model smaller, in place; returns the graph of the result.

    Raises:
        RewriteError: a value does not get the shape that it must have, or an operator rejects it.
    """
    graph = coupling.graph
    nodes = operator_nodes(model, graph)
    edit_operators(model, nodes, edits, range(len(graph.operators)))
    transform_weights(model, nodes, edits.slices, sliced)
    _declare_shapes(model, edits.expected, graph)
    try:
        result = _correct_sizes(model, nodes, graph, edits, input_shapes)
    except ModelError as error:
        raise RewriteError(f"{error.__cause__ or error}, of the smaller network; {HINT}") from error
    _check_shapes(result, edits.expected)
    return result


def operator_nodes(model: ir.Model, graph: Graph) -> list[ir.Node]:
    """The model's nodes by operator index."""
    every = list(model.graph)
    return [every[operator.position] for operator in graph.operators]


def edit_operators(
    model: ir.Model, nodes: list[ir.Node], edits: Edits, operators: range | frozenset[int]
) -> None:
    """Attributes and constant inputs of some operators; selections that become a Gather.

    A node that is replaced is replaced in `nodes` too.
    """
    for index in operators:
        node = nodes[index]
        for name, value in edits.attributes.get(index, {}).items():
            make = ir.AttrInt64 if isinstance(value, int) else ir.AttrInt64s
            node.attributes[name] = make(name, value)  # type: ignore[arg-type]
        for slot, constant in edits.inputs.get(index, {}).items():
            set_constant(model, node, slot, constant)
            if node.op_type == "Split":  # sizes and a count exclude each other
                node.attributes.pop("num_outputs", None)
        if index in edits.gathers:
            nodes[index] = become_gather(model, node, node.inputs[0], *edits.gathers[index])


def become_gather(
    model: ir.Model, node: ir.Node, source: ir.Value | None, axis: int, index: Ints
) -> ir.Node:
    """Put a Gather from `source` in a node's place; its output keeps name and consumers."""
    name = f"{node.outputs[0].name}.index"
    return _become(model, node, "Gather", source, name, index, [ir.AttrInt64("axis", axis)])


def become_reshape(model: ir.Model, node: ir.Node, source: ir.Value | None, sizes: Ints) -> ir.Node:
    """Put a Reshape of `source` in a node's place; its output keeps name and consumers."""
    return _become(model, node, "Reshape", source, f"{node.outputs[0].name}.sizes", sizes, [])


def become_transpose(model: ir.Model, node: ir.Node, order: Sequence[int]) -> None:
    """Put a Transpose of a node's first input in its place; its output keeps its consumers."""
    attributes = [ir.AttrInt64s("perm", list(order))]
    new = ir.Node("", "Transpose", node.inputs[:1], attributes, name=node.name)
    _replace_node(model, node, new)


def _become(
    model: ir.Model,
    node: ir.Node,
    op_type: str,
    source: ir.Value | None,
    name: str,
    constant: Ints,
    attributes: list[ir.Attr],
) -> ir.Node:
    stored = add_initializer(model, name, ir.tensor(constant))
    new = ir.Node("", op_type, [source, stored], attributes, name=node.name)
    _replace_node(model, node, new)
    return new


def become_split(
    model: ir.Model, node: ir.Node, axis: int, sizes: Sequence[int], takers: Mapping[int, ir.Node]
) -> None:
    """Put a Split in place of a list of parts and of the nodes that take them, by position."""
    name = node.outputs[0].name
    stored = add_initializer(model, f"{name}.sizes", ir.tensor(np.array(sizes, np.int64)))
    inputs, attributes = [node.inputs[0], stored], [ir.AttrInt64("axis", axis)]
    split = ir.Node("", "Split", inputs, attributes, num_outputs=len(sizes), name=node.name)
    model.graph.insert_before(node, split)
    for position, part in enumerate(split.outputs):
        if position in takers:
            take_over(takers[position].outputs[0], part)
            model.graph.remove(takers[position], safe=True)
        else:
            part.name = fresh_name(model, f"{name}.part{position}")
    model.graph.remove(node, safe=True)


def become_slice(
    model: ir.Model, node: ir.Node, parts: ir.Node, axis: int, position: int, fixed: int | None
) -> None:
    """Put a Slice in place of a node that takes a part, by position, out of a list of equal parts.

    Args:
        parts: the SplitToSequence that makes the list, whose second input is the size of each.
        fixed: that size, if it never changes. It may be computed from the size of an axis that
            pruning changes, and must stay what it was.
    """
    whole, size = parts.inputs

    def stored(what: str, *numbers: int) -> ir.Value:
        name = f"{node.outputs[0].name}.{what}"
        return add_initializer(model, name, ir.tensor(np.array(numbers, np.int64)))

    numbers = {"start": position, "end": position + 1}
    if fixed is not None:
        ends = [stored(what, fixed * number) for what, number in numbers.items()]
    else:
        wide = ir.Node("", "Cast", [size], [ir.AttrInt64("to", ir.DataType.INT64.value)])
        flat = ir.Node("", "Reshape", [wide.outputs[0], stored("flat", 1)])
        bounds = [
            ir.Node("", "Mul", [flat.outputs[0], stored(what, number)])
            for what, number in numbers.items()
        ]
        for fresh in (wide, flat, *bounds):
            fresh.outputs[0].name = fresh_name(model, f"{node.outputs[0].name}.{fresh.op_type}")
            model.graph.insert_before(node, fresh)
        ends = [bound.outputs[0] for bound in bounds]
    inputs = [whole, *ends, stored("axis", axis)]
    _replace_node(model, node, ir.Node("", "Slice", inputs, name=node.name))


def _replace_node(model: ir.Model, node: ir.Node, new: ir.Node) -> None:
    """Put one node in place of another; the first output keeps its name, type and consumers."""
    model.graph.insert_before(node, new)
    take_over(node.outputs[0], new.outputs[0])
    model.graph.remove(node, safe=True)


def take_over(old: ir.Value, fresh: ir.Value) -> None:
    """Give a value's name, type and consumers to another."""
    fresh.type, fresh.shape, fresh.name = old.type, old.shape, old.name
    old.name = f"{old.name}.replaced"
    ir.convenience.replace_all_uses_with(old, fresh, replace_graph_outputs=True)


def _declare_shapes(model: ir.Model, expected: Mapping[str, Shape], graph: Graph) -> None:
    """Update the shapes that the file states for inner values, and take back what isn't so.

    Exporters that move Transposes leave shapes of another layout (jax2onnx). ONNX Runtime gets over
    them in some files, and rejects others. What outputs of the network state is its interface, and
    stays: -1 for a free size, as PaddlePaddle writes.
    """
    for node in model.graph:
        for value in node.outputs:
            old = graph.shapes.get(value.name or "")
            if value.is_graph_output() or value.shape is None or old is None:
                continue
            if len(value.shape) != len(old):
                continue
            new = expected.get(value.name or "", old)
            value.shape = ir.Shape(list(map(_declared, value.shape, old, new)))


def _declared(
    dim: int | ir.SymbolicDim, before: Extent, after: Extent
) -> int | ir.SymbolicDim | None:
    """What to state of an axis's size; None for nothing."""
    if before != after:
        # a symbol such as `12*batch` no longer holds, and may now differ between layers
        return after.nominal if after.static else None
    return None if isinstance(dim, int) and dim not in before else dim


# --- sizes that the network computes ----------------------------------------------------------


def _correct_sizes(
    model: ir.Model,
    nodes: list[ir.Node],
    graph: Graph,
    edits: Edits,
    input_shapes: InputShapes | None,
) -> Graph:
    """Correct the sizes that come out wrong; returns the graph of the result."""
    by_output = {o.outputs[0]: o for o in graph.operators if o.outputs}
    wanted = {name: shape for name, shape in edits.expected.items() if name in by_output}
    result, mismatches = read_expecting(model, wanted, input_shapes)
    for mismatch in mismatches:
        operator = by_output[mismatch.output]
        source = result.shapes.get(operator.inputs[0], ())
        target = edits.expected[mismatch.output]
        if operator.op_type == "Tile":
            target = tuple(size.into(whole) for size, whole in zip(source, target, strict=True))
        _correct(model, nodes[operator.index], graph, operator, mismatch, source, target)
    return read(model, input_shapes) if mismatches else result


@dataclass(frozen=True, slots=True)
class _Entry:
    """How one entry of a size input is corrected: entry * factor / divisor + put + size.

    size: an axis of one of the network's inputs, as long as what is wanted.
    """

    factor: int = 1
    divisor: int = 1
    put: int = 0
    size: tuple[ir.Value, int] | None = None


_RIGHT, _INFERRED = _Entry(), _Entry(0, 1, -1)


def _correct(
    model: ir.Model,
    node: ir.Node,
    graph: Graph,
    operator: Operator,
    mismatch: SizeMismatch,
    source: Shape,
    target: Shape,
) -> None:
    """Correct the entries of a size input that come out wrong.

    Args:
        source: the shape of what is reshaped, expanded or repeated.
        target: what the entries must be.
    """
    nominal, other = mismatch.nominal, mismatch.other
    if len(nominal) != len(target):
        raise RewriteError(f"{operator}: its sizes do not match the rank of its output")
    infers = operator.op_type == "Reshape" and -1 not in nominal
    entries: list[_Entry] = []
    own = (*(ONE for _ in target[len(source) :]), *source)  # an Expand adds axes in front
    copied = (*source, *(None for _ in target[len(source) :]))  # what a Reshape makes of a 0
    told = zip(nominal.tolist(), other.tolist(), strict=True)
    for (now, then), extent, had, copy in zip(told, target, own, copied, strict=False):
        # a width that is divided by a number of heads may come out as 0 too
        copies = (now, then) == (0, 0) and operator.op_type == "Reshape" and copy == extent
        broadcasts = (now, then) == (1, 1) and operator.op_type == "Expand" and had == extent
        if (now, then) in (tuple(extent), (-1, -1)) or copies or broadcasts:
            entries.append(_RIGHT)
        elif extent.static:
            entries.append(_Entry(0, 1, extent.nominal))
        elif infers:
            entries.append(_INFERRED)
            infers = False
        elif min(now, then) > 0 and now * extent.other == then * extent.nominal:
            ratio = Fraction(extent.nominal, now)
            entries.append(_Entry(ratio.numerator, ratio.denominator))
        elif mismatch.computed and (size := _input_axis(model, graph, extent)):
            entries.append(_Entry(0, 1, 0, size))
        else:
            raise RewriteError(
                f"{operator}: more than one of its sizes is computed from a pruned axis"
            )
    _override(model, node, mismatch, entries)


def _override(
    model: ir.Model, node: ir.Node, mismatch: SizeMismatch, entries: list[_Entry]
) -> None:
    """Put corrected sizes in: as a constant, or computed from what the network computes."""
    factors, divisors, puts = (
        np.array([getattr(entry, part) for entry in entries], np.int64)
        for part in ("factor", "divisor", "put")
    )
    if not mismatch.computed:
        set_constant(model, node, mismatch.slot, mismatch.nominal * factors // divisors + puts)
        return
    name = fresh_name(model, f"{node.outputs[0].name}.sizes")
    sizes = node.inputs[mismatch.slot]
    steps = [("Mul", "mask", factors), ("Div", "parts", divisors), ("Add", "put", puts)]
    for op_type, label, values in steps:
        if op_type == "Div" and (values == 1).all():
            continue
        constant = add_initializer(model, f"{name}.{label}", ir.tensor(values))
        last = name if op_type == "Add" else fresh_name(model, f"{name}.{op_type.lower()}")
        step = ir.node(op_type, [sizes, constant], name=last)
        sizes = step.outputs[0]
        sizes.name = last
        model.graph.insert_before(node, step)
    for place, entry in enumerate(entries):
        if entry.size is not None:
            at = (np.arange(len(entries)) == place).astype(np.int64)
            sizes = _add_size(model, node, sizes, at, *entry.size)
    node.replace_input_with(mismatch.slot, sizes)


def _input_axis(model: ir.Model, graph: Graph, extent: Extent) -> tuple[ir.Value, int] | None:
    """A dynamic axis of the network's inputs that always has this size, if only one is known to."""
    found: dict[Key, tuple[ir.Value, int]] = {}
    for value in free_inputs(model):
        name = value.name or ""
        for axis, (key, own) in enumerate(zip(keys(value, {}), graph.shapes[name], strict=True)):
            if key is not None and own == extent and (name, axis) not in graph.unsized:
                found.setdefault(key, (value, axis))
    return next(iter(found.values())) if len(found) == 1 else None


def _add_size(
    model: ir.Model, node: ir.Node, sizes: ir.Value | None, at: Ints, source: ir.Value, axis: int
) -> ir.Value:
    """Sizes plus that of an axis, where `at` is 1; in front of the node that is told them."""
    name = fresh_name(model, f"{node.outputs[0].name}.size")
    index, places = (
        add_initializer(model, f"{name}.{label}", ir.tensor(values))
        for label, values in (("axis", np.array([axis], np.int64)), ("at", at))
    )
    shape = ir.node("Shape", [source], name=f"{name}.shape")
    size = ir.node("Gather", [shape.outputs[0], index], name=f"{name}.gather")
    placed = ir.node("Mul", [size.outputs[0], places], name=f"{name}.mul")
    total = ir.node("Add", [sizes, placed.outputs[0]], name=name)
    for step in (shape, size, placed, total):
        step.outputs[0].name = step.name
        model.graph.insert_before(node, step)
    return total.outputs[0]


def _at_both_sizes(shape: Shape) -> list[str]:
    return ["x".join(str(extent[probe]) for extent in shape) for probe in (0, 1)]


def _check_shapes(result: Graph, expected: Mapping[str, Shape]) -> None:
    for operator in result.operators:
        for name in operator.outputs:
            if name in expected and name in result.shapes and result.shapes[name] != expected[name]:
                # where they agree at the sizes of the inputs, they differ at others
                both = map(_at_both_sizes, (result.shapes[name], expected[name]))
                got, want = next((a, b) for a, b in zip(*both, strict=True) if a != b)
                raise RewriteError(
                    f"{operator}: its output `{name}` would be {got} instead of {want}; {HINT}"
                )
