"""`onnx_ir.Model` -> `Graph`: choose sizes for the dynamic axes, infer shapes twice, collect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from spa_graph.errors import ModelError
from spa_graph.frontends.onnx.shapes import Probe, ShapeError, infer, tensor_type
from spa_graph.graph import UNKNOWN, Extent, Graph, Known, Operator, Parameter, Shape

InputShapes = Mapping[str, Sequence[int]]

# Sizes to try for the dynamic axes of an input, by position; most networks accept the first.
# The first axis is the batch. 224 and 256 suit windows and strides of image networks, 48 x 320
# text lines, 1 x 16 token sequences.
_NOMINAL = (
    {2: (1, 16), 3: (1, 16, 64), 4: (1, 3, 224, 224), 5: (1, 3, 16, 112, 112)},
    {2: (1, 1024), 3: (1, 80, 96), 4: (1, 3, 48, 320), 5: (1, 3, 8, 64, 64)},
    {2: (1, 16000), 3: (1, 128, 128), 4: (1, 3, 640, 640), 5: (1, 1, 64, 64, 64)},
    {2: (1, 64), 3: (1, 64, 64), 4: (1, 3, 32, 320), 5: (1, 1, 32, 32, 32)},
)
_STEP = (1, 8, 32, 32, 32)
"""How much the second probe adds to a dynamic axis of each position."""


def read(model: ir.Model, input_shapes: InputShapes | None = None) -> Graph:
    """Build the neutral graph of a model whose functions are inlined.

    Args:
        model: the network; it isn't changed and its weights aren't read.
        input_shapes: concrete sizes for inputs, where the built-in guesses don't fit.

    Raises:
        ModelError: the graph is empty, or no choice of sizes is accepted by its operators.
    """
    return read_expecting(model, {}, input_shapes)[0]


def read_expecting(
    model: ir.Model, wanted: Mapping[str, Shape], input_shapes: InputShapes | None = None
) -> tuple[Graph, list[SizeMismatch]]:
    """`read`, and where a size that the network computes doesn't give a wanted shape.

    Each mismatch is found as if all before it were corrected; the graph counts if there are none.
    """
    if not len(model.graph):
        raise ModelError("the model has no operators; there is nothing to prune")
    nodes = [(node, _bare(node)) for node in model.graph]
    constants = dict(_constants(model.graph))
    nominal, other = _probe_twice(model, nodes, constants, input_shapes or {}, wanted)
    return _graph(model, nodes, constants, nominal, other), _mismatches(nodes, nominal, other)


Nodes = list[tuple[ir.Node, onnx.NodeProto]]


def _graph(
    model: ir.Model,
    nodes: Nodes,
    constants: Mapping[str, ir.TensorProtocol],
    nominal: Probe,
    other: Probe,
) -> Graph:
    computing = [
        position
        for position, (node, _) in enumerate(nodes)
        if node.op_type != "Constant" or node.outputs[0].name not in constants
    ]
    operators = [
        _operator(index, position, *nodes[position], model.opset_imports)
        for index, position in enumerate(computing)
    ]
    names = _free_inputs(model.graph)
    return Graph(
        name=model.graph.name or "graph",
        operators=operators,
        shapes=_shapes(nominal, other),
        parameters={name: _parameter(name, tensor) for name, tensor in constants.items()},
        known=_known(nominal, other),
        inputs=tuple(names),
        outputs=tuple(value.name or "" for value in model.graph.outputs),
        dtypes=_dtypes(nominal),
        unshaped=dict(nominal.unshaped),
    )


def free_inputs(model: ir.Model) -> list[ir.Value]:
    """The inputs that a caller must feed: those without an initializer of the same name."""
    return [v for v in model.graph.inputs if v.const_value is None]


def _free_inputs(graph: ir.Graph) -> list[str]:
    return [value.name or "" for value in graph.inputs if value.const_value is None]


def _bare(node: ir.Node) -> onnx.NodeProto:
    """The node as a message, without tensors or subgraphs that inference doesn't need."""
    proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain, name=node.name or "")
    proto.input.extend(value.name if value is not None else "" for value in node.inputs)
    proto.output.extend(value.name or "" for value in node.outputs)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            proto.attribute.add(name=attribute.name, type=onnx.AttributeProto.GRAPH)
        elif not attribute.is_ref() and node.op_type != "Constant":
            proto.attribute.append(ir.serde.serialize_attribute(attribute))
    return proto


def _constants(graph: ir.Graph) -> Iterator[tuple[str, ir.TensorProtocol]]:
    for name, value in graph.initializers.items():
        if value.const_value is not None and value.dtype != ir.DataType.STRING:
            yield name, value.const_value
    for node in graph:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            tensor = constant_tensor(node)
            if tensor is not None and tensor.dtype != ir.DataType.STRING:
                yield node.outputs[0].name or "", tensor


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """What a Constant node holds, in whichever attribute it is."""
    for key, attribute in node.attributes.items():
        if key == "value":
            return attribute.value  # as_tensor() checks its type, slowly
        if key in ("value_int", "value_ints"):
            return ir.tensor(np.array(attribute.value, np.int64))
        if key in ("value_float", "value_floats"):
            return ir.tensor(np.array(attribute.value, np.float32))
    return None


@dataclass(frozen=True, slots=True, eq=False)
class SizeMismatch:
    """An operator that is told a wrong shape: by which input, and what it says in both probes."""

    output: str
    slot: int
    nominal: NDArray[np.int64]
    other: NDArray[np.int64]


def _mismatches(nodes: Nodes, nominal: Probe, other: Probe) -> list[SizeMismatch]:
    found = []
    for name in dict.fromkeys([*nominal.mismatches, *other.mismatches]):
        slot = (nominal.mismatches.get(name) or other.mismatches[name])[0]
        value = next(proto.input[slot] for _, proto in nodes if name in proto.output)
        values = [np.asarray(probe.values[value]).reshape(-1) for probe in (nominal, other)]
        found.append(SizeMismatch(name, slot, values[0], values[1]))
    return found


def _probe_twice(
    model: ir.Model,
    nodes: Nodes,
    constants: Mapping[str, ir.TensorProtocol],
    input_shapes: InputShapes,
    wanted: Mapping[str, Shape],
) -> tuple[Probe, Probe]:
    opsets = dict(model.opset_imports)
    opsets.setdefault("", opsets.get("ai.onnx", 1))
    inputs = free_inputs(model)
    declared = _declared(model)
    targets = [
        {name: tuple(extent[i] for extent in shape) for name, shape in wanted.items()}
        for i in (0, 1)
    ]

    def probe(sizes: Mapping[str, Sequence[int]], which: int) -> Probe:
        types = {v.name or "": tensor_type(int(v.dtype or 1), sizes[v.name or ""]) for v in inputs}
        return infer(nodes, constants, types, opsets, declared, targets[which])

    failure: ShapeError | None = None
    for nominal_sizes in _candidates(inputs, input_shapes):
        try:
            nominal = probe(nominal_sizes, 0)
        except ShapeError as error:
            failure = failure or error
            continue
        other = _second_probe(inputs, nominal_sizes, probe)
        return nominal, (nominal if other is None else other)
    raise ModelError(
        f"no input sizes were found that the network accepts ({failure}); "
        "give them: --input-shape NAME=1,3,224,224"
    )


def _candidates(inputs: list[ir.Value], given: InputShapes) -> Iterator[dict[str, tuple[int, ...]]]:
    unknown = set(given) - {value.name for value in inputs}
    if unknown:
        names = ", ".join(value.name or "" for value in inputs)
        raise ModelError(f"no input `{unknown.pop()}`; the inputs are: {names}")
    seen = []
    for guess in _NOMINAL:
        sizes = {v.name or "": _sizes(v, guess, given.get(v.name or "")) for v in inputs}
        if sizes not in seen:
            seen.append(sizes)
            yield sizes


def _sizes(
    value: ir.Value, guess: Mapping[int, tuple[int, ...]], given: Sequence[int] | None
) -> tuple[int, ...]:
    if value.shape is None:
        if given is None:
            raise ModelError(
                f"input `{value.name}` has no shape; give one: --input-shape {value.name}=1,3,224,224"
            )
        return tuple(given)
    rank = len(value.shape)
    if given is not None and len(given) != rank:
        raise ModelError(f"input `{value.name}` has {rank} axes, --input-shape gives {len(given)}")
    defaults = given or guess.get(rank, (1,) + (16,) * rank)
    return tuple(
        int(defaults[axis]) if _is_dynamic(dim) else int(dim)
        for axis, dim in enumerate(value.shape)
    )


ProbeWith = Callable[[Mapping[str, Sequence[int]], int], Probe]


def _second_probe(
    inputs: list[ir.Value], nominal: Mapping[str, tuple[int, ...]], probe: ProbeWith
) -> Probe | None:
    """A probe with every dynamic axis moved that the network lets move; None if there is none."""
    positions = sorted({axis for value in inputs for axis in _dynamic_axes(value)})
    if not positions:
        return None
    everything = _attempt(probe, _moved(inputs, nominal, positions))
    if everything is not None:
        return everything
    movable = [p for p in positions if _attempt(probe, _moved(inputs, nominal, [p])) is not None]
    return _attempt(probe, _moved(inputs, nominal, movable)) if movable else None


def _attempt(probe: ProbeWith, sizes: Mapping[str, tuple[int, ...]]) -> Probe | None:
    try:
        return probe(sizes, 1)
    except ShapeError:
        return None


def _dynamic_axes(value: ir.Value) -> list[int]:
    return [i for i, dim in enumerate(value.shape or ()) if _is_dynamic(dim)]


def _is_dynamic(dim: object) -> bool:
    return not isinstance(dim, int) or dim <= 0  # some exporters write -1 for a dynamic axis


def _moved(
    inputs: list[ir.Value], sizes: Mapping[str, tuple[int, ...]], positions: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    moved = {}
    for value in inputs:
        dynamic = _dynamic_axes(value)
        moved[value.name or ""] = tuple(
            size + _STEP[min(axis, 4)] if axis in dynamic and axis in positions else size
            for axis, size in enumerate(sizes[value.name or ""])
        )
    return moved


def _declared(model: ir.Model) -> dict[str, onnx.TypeProto]:
    """The fully static tensor types that the file states for inner values."""
    found = {}
    for node in model.graph:
        for value in node.outputs:
            shape = value.shape
            if value.dtype is not None and shape is not None and shape.is_static():
                found[value.name or ""] = tensor_type(int(value.dtype), shape.numpy())
    return found


def _operator(
    index: int, position: int, node: ir.Node, proto: onnx.NodeProto, opsets: Mapping[str, int]
) -> Operator:
    domain = "" if node.domain == "ai.onnx" else node.domain
    return Operator(
        index=index,
        position=position,
        name=node.name or f"{node.op_type}:{next((v.name for v in node.outputs if v.name), '')}",
        domain=domain,
        op_type=node.op_type,
        version=node.version or opsets.get(domain, 1),
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        attributes={key: a.value for key, a in node.attributes.items() if not a.is_ref()},
        captures=tuple(_captures(node)),
    )


def _captures(node: ir.Node) -> Iterator[str]:
    """Values of the outer graph that the node's subgraphs use."""
    for attribute in node.attributes.values():
        graphs: Sequence[ir.Graph] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = (attribute.as_graph(),)
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = tuple(attribute.as_graphs())
        for graph in graphs:
            for inner in graph.all_nodes():
                yield from (v.name or "" for v in inner.inputs if _outside(v, node.graph))
            yield from (v.name or "" for v in graph.outputs if _outside(v, node.graph))


def _outside(value: ir.Value | None, outer: Any) -> bool:
    return value is not None and value.graph is outer


def _shapes(nominal: Probe, other: Probe) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for name in nominal.types:
        first, second = nominal.dims(name), other.dims(name)
        if first is not None and second is not None and len(first) == len(second):
            pairs = zip(first, second, strict=True)
            shapes[name] = tuple(
                UNKNOWN if a is None or b is None else Extent(a, b) for a, b in pairs
            )
        else:
            nominal.unshaped.setdefault(name, "its shape depends on data")
    return shapes


def _known(nominal: Probe, other: Probe) -> dict[str, Known]:
    return {
        name: Known(
            value,
            other.values[name],
            nominal.origins.get(name, frozenset()),
            fill=name in nominal.fills,
        )
        for name, value in nominal.values.items()
        if name in other.values
    }


def _dtypes(probe: Probe) -> dict[str, np.dtype[Any]]:
    found = {}
    for name, kind in probe.types.items():
        element = kind.tensor_type.elem_type
        if element and element != onnx.TensorProto.STRING:
            found[name] = ir.DataType(element).numpy()
    return found


def _parameter(name: str, tensor: ir.TensorProtocol) -> Parameter:
    return Parameter(
        name=name,
        shape=tuple(int(size) for size in tensor.shape.numpy()),
        dtype=tensor.dtype.numpy(),
        nbytes=tensor.nbytes,
        load=tensor.numpy,
    )
