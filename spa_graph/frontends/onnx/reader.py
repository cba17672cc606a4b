"""`onnx_ir.Model` -> `Graph`: choose sizes for the dynamic axes, infer shapes twice, collect."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from spa_graph.errors import ModelError
from spa_graph.frontends.onnx.constants import CONSTANTS, constant_tensor
from spa_graph.frontends.onnx.shapes import Probe, ShapeError, captured, infer, tensor_type
from spa_graph.frontends.onnx.sizes import (
    InputShapes,
    Sizes,
    candidates,
    dynamic_keys,
    extremes,
    free_inputs,
    moved,
    third,
)
from spa_graph.graph import Extent, Graph, Known, Operator, Parameter, Shape


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
    probes = _probe_twice(model, nodes, constants, input_shapes or {}, wanted)
    return _graph(model, nodes, constants, probes), _mismatches(nodes, probes)


Nodes = list[tuple[ir.Node, onnx.NodeProto]]


def _graph(
    model: ir.Model,
    nodes: Nodes,
    constants: Mapping[str, ir.TensorProtocol],
    probes: _Probes,
) -> Graph:
    shapes = _shapes(probes.nominal, probes.other)
    coincidences = frozenset(_coincidences(shapes, probes.others))
    opsets = normalised_opsets(model)
    computing = [
        position
        for position, (node, _) in enumerate(nodes)
        if node.op_type not in CONSTANTS or node.outputs[0].name not in constants
    ]
    operators = [
        _operator(index, position, *nodes[position], opsets)
        for index, position in enumerate(computing)
    ]
    return Graph(
        name=model.graph.name or "graph",
        operators=operators,
        shapes=shapes,
        parameters={name: _parameter(name, tensor) for name, tensor in constants.items()},
        known=_known(probes, shapes, coincidences),
        inputs=tuple(value.name or "" for value in free_inputs(model)),
        outputs=tuple(value.name or "" for value in model.graph.outputs),
        dtypes=_dtypes(probes.nominal),
        unsized=frozenset(probes.nominal.chosen | probes.other.chosen) | coincidences,
        unshaped=dict(probes.nominal.unshaped),
        samples=probes.samples,
    )


def normalised_opsets(model: ir.Model) -> dict[str, int]:
    """The versions of all domains; ONNX's own goes by the empty name, not `ai.onnx`."""
    opsets = dict(model.opset_imports)
    opsets.setdefault("", opsets.get("ai.onnx", 1))
    return opsets


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
        if node.op_type in CONSTANTS and node.domain in ("", "ai.onnx"):
            tensor = constant_tensor(node)
            if tensor is not None and tensor.dtype != ir.DataType.STRING:
                yield node.outputs[0].name or "", tensor


@dataclass(frozen=True, slots=True, eq=False)
class SizeMismatch:
    """An operator that is told a wrong shape: by which input, and what it says in both probes.

    computed: whether it depends on the sizes of some axes, so that it can't become a constant.
    """

    output: str
    slot: int
    nominal: NDArray[np.int64]
    other: NDArray[np.int64]
    computed: bool


def _mismatches(nodes: Nodes, probes: _Probes) -> list[SizeMismatch]:
    nominal, other = probes.nominal, probes.other
    found = []
    for name in dict.fromkeys([*nominal.mismatches, *other.mismatches]):
        slot = (nominal.mismatches.get(name) or other.mismatches[name])[0]
        value = next(proto.input[slot] for _, proto in nodes if name in proto.output)
        first, second = (np.asarray(probe.values[value]).reshape(-1) for probe in (nominal, other))
        found.append(SizeMismatch(name, slot, first, second, computed=value in nominal.origins))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Probes:
    """What two looks at a network showed.

    samples: input shapes to run it with: those of the probes, and others that it may reject.
    moved: whether the second look had every dynamic axis at another size.
    """

    nominal: Probe
    other: Probe
    samples: list[Sizes]
    moved: bool
    others: list[Probe] = field(default_factory=list)
    """More looks, only to see which sizes are equal in both probes by coincidence."""


ProbeWith = Callable[[Sizes, int], Probe]


def _second_look(
    inputs: list[ir.Value], given: InputShapes, sizes: Sizes, nominal: Probe, probe: ProbeWith
) -> _Probes:
    """Move every dynamic axis that the network lets move. A third batch size shows nothing new."""
    dynamic = dynamic_keys(inputs, given)
    if not dynamic:
        return _Probes(nominal, probe(sizes, 1), [sizes], moved=True)
    last = third(inputs, given, sizes)
    more = [last] if any(last[name][1:] != sizes[name][1:] for name in sizes) else []
    everything = moved(inputs, given, sizes, dynamic)
    other = _attempt(probe, everything)
    if other is not None:
        return _Probes(nominal, other, [sizes, everything, *more], moved=True)
    movable = [k for k in dynamic if _attempt(probe, moved(inputs, given, sizes, [k])) is not None]
    some = moved(inputs, given, sizes, movable)
    other = _attempt(probe, some)
    if other is None:
        return _Probes(nominal, probe(sizes, 1), [sizes, *more], moved=False)
    return _Probes(nominal, other, [sizes, some, *more], moved=False)


def _probe_twice(
    model: ir.Model,
    nodes: Nodes,
    constants: Mapping[str, ir.TensorProtocol],
    input_shapes: InputShapes,
    wanted: Mapping[str, Shape],
) -> _Probes:
    opsets = normalised_opsets(model)
    inputs = free_inputs(model)
    declared = _declared(model)
    targets = [
        {name: tuple(extent[i] for extent in shape) for name, shape in wanted.items()}
        for i in (0, 1)
    ]

    def probe(sizes: Sizes, which: int) -> Probe:
        types = {v.name or "": tensor_type(int(v.dtype or 1), sizes[v.name or ""]) for v in inputs}
        wanted_then = targets[which] if which < len(targets) else {}
        return infer(nodes, constants, types, opsets, declared, wanted_then, which)

    failure: ShapeError | None = None
    for sizes in candidates(inputs, input_shapes):
        try:
            nominal = probe(sizes, 0)
        except ShapeError as error:
            failure = failure or error
            continue
        probes = _second_look(inputs, input_shapes, sizes, nominal, probe)
        first, last = probes.samples[0], probes.samples[-1]
        free = any(first[name][1:] != last[name][1:] for name in first)
        if not wanted and (free or nominal.chosen):
            looks = [_attempt(probe, far, 2) for far in extremes(inputs, input_shapes, sizes)]
            probes.others.extend(look for look in looks if look is not None)
        return probes
    raise ModelError(
        f"no input sizes were found that the network accepts ({failure}); "
        "give them: --input-shape NAME=1,3,224,224"
    ) from failure


def _attempt(probe: ProbeWith, sizes: Sizes, which: int = 1) -> Probe | None:
    try:
        return probe(sizes, which)
    except ShapeError:
        return None


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
        captures=tuple(captured(node)),
    )


def _shapes(nominal: Probe, other: Probe) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for name in nominal.types:
        first, second = nominal.shape(name), other.shape(name)
        if first is not None and second is not None and len(first) == len(second):
            shapes[name] = tuple(map(Extent, first, second))
        else:
            why = other.unshaped.get(name, "its shape depends on data")
            nominal.unshaped.setdefault(name, why)
    return shapes


def _coincidences(shapes: Mapping[str, Shape], looks: list[Probe]) -> Iterator[tuple[str, int]]:
    """Axes, as (value, axis), of the same size in both probes, but not everywhere."""
    for look in looks:
        for name, shape in shapes.items():
            seen = look.shape(name)
            if seen is None or len(seen) != len(shape):
                continue
            for axis, (extent, size) in enumerate(zip(shape, seen, strict=True)):
                if extent.static and extent.nominal != size:
                    yield name, axis


def _known(
    probes: _Probes, shapes: Mapping[str, Shape], coincidences: Collection[tuple[str, int]]
) -> dict[str, Known]:
    """Small values; one is static if it follows from nothing that could have another size."""
    nominal, other = probes.nominal, probes.other
    found = {}
    for name, value in nominal.values.items():
        if name not in other.values:
            continue
        origins = nominal.origins.get(name, frozenset())
        fixed = probes.moved and all(
            shapes[origin][axis].static and (origin, axis) not in coincidences
            for origin, axis in origins
        )
        found[name] = Known(
            value,
            other.values[name],
            origins,
            fill=name in nominal.fills,
            static=(fixed or not origins) and np.array_equal(value, other.values[name]),
        )
    return found


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
