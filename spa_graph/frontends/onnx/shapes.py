"""Shapes and shape-like values of every tensor, under one concrete choice of the dynamic axes.

One walk in topological order, node by node: small values that follow from shapes and constants are
computed (by onnx's reference operators), other outputs get their shape from onnx's own inference
of that one operator. Weights are never read, and nothing is serialised but the node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from spa_graph.frontends.onnx import contrib
from spa_graph.frontends.onnx.lists import part_types
from spa_graph.frontends.onnx.unknown import branch_types, chosen

KNOWN_LIMIT = 1 << 16
"""Values of more elements than this are not shape data."""
_NEVER_EVALUATED = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli",
     "Multinomial", "Dropout", "If", "Loop", "Scan", "DequantizeLinear", "QuantizeLinear"}
)  # fmt: skip
# Also those whose result follows from the *shape* of an input alone.
_FROM_SHAPE = frozenset({"Shape", "Size"})

# They repeat an element over a shape that an input tells.
_FILLS = frozenset(
    {"ConstantOfShape", "Expand", "Slice", "Concat", "Split", "Reshape", "Squeeze", "Unsqueeze",
     "Transpose", "Cast", "CastLike", "Identity"}
)  # fmt: skip
"""Operators that pass on, repeat or rearrange elements."""
_PARTS = frozenset({"Slice", "Split"})
"""Those of them that leave some out: which ones, sizes may tell."""
_PICKS = frozenset({"Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Identity", "Cast"})
"""Operators whose result is elements of their first input."""

# The largest of a few stored floats: torchvision's detectors pad images to a size found like that.
_SUMMARIES = frozenset({"ReduceMax", "ReduceMin"})
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})
FEW = 16

# Their scales are floats, and decide about the output's shape.
_FLOAT_SETTINGS = frozenset({"Resize", "Upsample"})

MACHINE_LEARNING = "ai.onnx.ml"
# Those of its operators that onnx infers nothing for: element by element; None: type of the input.
_SCALING = {
    "Scaler": onnx.TensorProto.FLOAT, "Normalizer": onnx.TensorProto.FLOAT, "Imputer": None,
}  # fmt: skip

Types = dict[str, onnx.TypeProto]


class ShapeError(Exception):
    """The network doesn't accept this choice of sizes: operator and reason."""


@dataclass
class Probe:
    """What is known of each value under one choice of sizes.

    which: the first look at the network (0) or the second (1).
    chosen: the axes whose size depends on data, which therefore was chosen too.
    uncertain: values behind them; an operator that rejects those doesn't reject the network's
        inputs.
    parts: the types of all parts of lists.
    """

    which: int = 0
    types: Types = field(default_factory=dict)
    values: dict[str, NDArray[Any]] = field(default_factory=dict)
    origins: dict[str, frozenset[tuple[str, int]]] = field(default_factory=dict)
    axes: dict[str, tuple[str, NDArray[np.int64]]] = field(default_factory=dict)
    """Values whose elements are sizes of one other value: which, and each one's axis."""
    fills: set[str] = field(default_factory=set)
    unshaped: dict[str, str] = field(default_factory=dict)
    chosen: set[tuple[str, int]] = field(default_factory=set)
    uncertain: set[str] = field(default_factory=set)
    parts: dict[str, list[onnx.TypeProto]] = field(default_factory=dict)
    mismatches: dict[str, tuple[int, NDArray[Any]]] = field(default_factory=dict)
    """Outputs whose shape is not the wanted one: the input that names it, and what it says."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a value, or None where an axis is unknown."""
        dims = self.dims(name)
        return None if dims is None or None in dims else tuple(d for d in dims if d is not None)

    def dims(self, name: str) -> tuple[int | None, ...] | None:
        """The axes of a value, None for each of unknown size; None if the rank is unknown too."""
        kind = self.types.get(name)
        if kind is None or not kind.HasField("tensor_type"):
            return None
        if not kind.tensor_type.HasField("shape"):
            return None
        return tuple(
            dim.dim_value if dim.HasField("dim_value") else None
            for dim in kind.tensor_type.shape.dim
        )


def tensor_type(dtype: int, shape: Iterable[int]) -> onnx.TypeProto:
    """The TypeProto of a dense tensor."""
    return onnx.helper.make_tensor_type_proto(dtype, list(shape))


def infer(
    nodes: list[tuple[ir.Node, onnx.NodeProto]],
    constants: Mapping[str, ir.TensorProtocol],
    inputs: Mapping[str, onnx.TypeProto],
    opsets: Mapping[str, int],
    declared: Mapping[str, onnx.TypeProto],
    wanted: Mapping[str, tuple[int, ...]] | None = None,
    which: int = 0,
) -> Probe:
    """Shapes and known values, given the types of the graph's inputs.

    `declared` are static types that the file itself states, used where inference stops. Where an
    operator that is told its output's shape gives another one than `wanted`, that is noted, and the
    walk goes on with the wanted one.

    Raises:
        ShapeError: an operator rejects these sizes.
    """
    probe = Probe(types=dict(inputs), which=which)
    for name, tensor in constants.items():
        probe.types[name] = tensor_type(int(tensor.dtype), tensor.shape.numpy())
        if _is_shape_data(tensor):
            probe.values[name] = tensor.numpy()
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    for node, proto in nodes:
        if proto.op_type == "Constant" and proto.output[0] not in probe.types:
            _unshaped(probe, proto, "it holds text or a sparse tensor")
        if proto.op_type == "Constant" or proto.output[0] in constants:
            continue
        _look_at_few(probe, proto, constants)
        try:
            if not _evaluate(probe, node, proto, opsets):
                _infer_types(probe, node, proto, opsets, imports, constants)
        except ShapeError as error:
            if not (wanted and _told_shape(proto, wanted)):
                if not _uncertain(probe, node, proto):
                    raise
                _unshaped(probe, proto, f"sizes that depend on data are at odds: {error}")
        if wanted and _told_shape(proto, wanted):
            _note_mismatch(probe, proto, wanted)
        _use_declared(probe, proto, declared)
        _choose_unknown(probe, node, proto)
    return probe


def _uncertain(probe: Probe, node: ir.Node, proto: onnx.NodeProto) -> bool:
    return not probe.uncertain.isdisjoint([*proto.input, *captured(node)])


def captured(node: ir.Node) -> Iterator[str]:
    """Values of the outer graph that the node's subgraphs use."""
    for attribute in node.attributes.values():
        graphs: Sequence[ir.Graph] = ()
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = (attribute.as_graph(),)
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = tuple(attribute.as_graphs())
        for graph in graphs:
            for inner in graph.all_nodes():
                yield from (_name(v) for v in inner.inputs if _outside(v, node.graph))
            yield from (_name(v) for v in graph.outputs if _outside(v, node.graph))


def _name(value: ir.Value | None) -> str:
    return (value.name if value is not None else None) or ""


def _outside(value: ir.Value | None, outer: Any) -> bool:
    return value is not None and value.graph is outer


def _choose_unknown(probe: Probe, node: ir.Node, proto: onnx.NodeProto) -> None:
    """Choose a size for every axis of the outputs that has none: it depends on data."""
    behind = _uncertain(probe, node, proto)
    for name in filter(None, proto.output):
        dims = probe.dims(name)
        for axis, size in enumerate(dims or ()):
            if size is None:
                behind = True
                chosen_size = chosen(probe.which, len(probe.chosen))
                probe.types[name].tensor_type.shape.dim[axis].dim_value = chosen_size
                probe.chosen.add((name, axis))
    if behind:
        probe.uncertain.update(filter(None, proto.output))


# Operators that are told the shape of their output, and by which input; Tile how often it repeats.
SIZE_INPUTS = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0, "Resize": 3, "Tile": 1}


def _told_shape(proto: onnx.NodeProto, wanted: Mapping[str, tuple[int, ...]]) -> bool:
    slot = SIZE_INPUTS.get(proto.op_type)
    return (
        slot is not None
        and proto.domain in ("", "ai.onnx")
        and len(proto.input) > slot
        and proto.output[0] in wanted
    )


def _note_mismatch(
    probe: Probe, proto: onnx.NodeProto, wanted: Mapping[str, tuple[int, ...]]
) -> None:
    name, slot = proto.output[0], SIZE_INPUTS[proto.op_type]
    if probe.shape(name) == wanted[name] or proto.input[slot] not in probe.values:
        return
    probe.mismatches[name] = (slot, np.asarray(probe.values[proto.input[slot]]).reshape(-1))
    source = proto.input[0]
    element = probe.types[name if name in probe.types else source].tensor_type.elem_type
    probe.types[name] = tensor_type(element, wanted[name])
    value = probe.values.pop(name, None)
    probe.axes.pop(name, None)
    if value is not None and value.size:
        probe.values[name] = np.full(wanted[name], value.flat[0], value.dtype)


def _is_shape_data(tensor: ir.TensorProtocol) -> bool:
    """Integers that may be sizes or positions, and single numbers; never (quantised) weights."""
    if tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL):
        return tensor.size <= KNOWN_LIMIT
    return tensor.size == 1 and tensor.dtype in (
        ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16,
    )  # fmt: skip


def _look_at_few(
    probe: Probe, proto: onnx.NodeProto, constants: Mapping[str, ir.TensorProtocol]
) -> None:
    """Small constants that are settings beside a size (`size * [2.0, 2.0]`), or get summarised."""
    scaled = proto.op_type in _ARITHMETIC and any(name in probe.origins for name in proto.input)
    if proto.op_type in _SUMMARIES or scaled:
        for name in proto.input:
            tensor = constants.get(name)
            if tensor is not None and tensor.size <= FEW:
                probe.values.setdefault(name, tensor.numpy())


def _evaluate(
    probe: Probe, node: ir.Node, proto: onnx.NodeProto, opsets: Mapping[str, int]
) -> bool:
    """Compute the node's outputs if they follow from known values; whether that was so."""
    if proto.domain not in ("", "ai.onnx") or proto.op_type in _NEVER_EVALUATED:
        return False
    names = [name for name in proto.input if name]
    if proto.op_type in _FROM_SHAPE:
        shape = probe.shape(proto.input[0])
        if shape is None:
            return False
        _evaluate_shape(probe, node, proto, shape)
        return True
    if proto.op_type == "CastLike":
        return _evaluate_cast_like(probe, proto)
    if not all(name in probe.values for name in names) or (not names and proto.op_type != "Range"):
        return False
    try:
        results = _run(proto, opsets, {name: probe.values[name] for name in names})
    except Exception:  # the reference lacks it, or rejects it: plain inference decides
        return False
    if any(not isinstance(r, np.ndarray | np.generic) or r.size > KNOWN_LIMIT for r in results):
        return False
    origins = frozenset().union(*(probe.origins.get(name, frozenset()) for name in names))
    if proto.op_type in _PICKS and proto.input[0] in probe.axes:
        origins = _picked(probe, proto, opsets)
    if _is_fill(probe, proto):
        probe.fills.update(filter(None, proto.output))
    for name, result in zip(proto.output, results, strict=False):
        if name:
            _remember(probe, name, np.asarray(result), origins)
    return True


def _evaluate_cast_like(probe: Probe, proto: onnx.NodeProto) -> bool:
    """Only the type of the second input matters."""
    name, like = proto.input
    if name not in probe.values or like not in probe.types:
        return False
    element = probe.types[like].tensor_type.elem_type
    if not element or element == onnx.TensorProto.STRING:
        return False
    value = np.asarray(probe.values[name]).astype(ir.DataType(element).numpy())
    if _is_fill(probe, proto):
        probe.fills.add(proto.output[0])
    _remember(probe, proto.output[0], value, probe.origins.get(name, frozenset()))
    return True


def _is_fill(probe: Probe, proto: onnx.NodeProto) -> bool:
    """Whether sizes decide about the shape of the result only, not about its elements."""
    if proto.op_type == "ConstantOfShape":
        return True
    if proto.op_type not in _FILLS:
        return False
    data = proto.input if proto.op_type == "Concat" else proto.input[:1]
    if proto.op_type in _PARTS and len(np.unique(probe.values[data[0]])) > 1:
        return False
    return all(name in probe.fills or name not in probe.origins for name in data)


def _evaluate_shape(
    probe: Probe, node: ir.Node, proto: onnx.NodeProto, shape: tuple[int, ...]
) -> None:
    source = proto.input[0]
    if proto.op_type == "Size":
        axes: range = range(len(shape))
        value = np.array(int(np.prod(shape)), np.int64)
    else:
        start = node.attributes["start"].as_int() if "start" in node.attributes else 0
        stop = node.attributes["end"].as_int() if "end" in node.attributes else len(shape)
        axes = range(len(shape))[start:stop]
        value = np.array(shape[start:stop], np.int64)
        probe.axes[proto.output[0]] = source, np.array(axes, np.int64)
    _remember(probe, proto.output[0], value, frozenset((source, axis) for axis in axes))


def _run(
    proto: onnx.NodeProto, opsets: Mapping[str, int], feeds: dict[str, NDArray[Any]]
) -> list[Any]:
    plain = onnx.NodeProto(op_type=proto.op_type, attribute=proto.attribute)
    plain.input.extend(str(slot) if name else "" for slot, name in enumerate(proto.input))
    plain.output.extend(str(slot) if name else "" for slot, name in enumerate(proto.output))
    evaluator = _evaluator(plain.SerializeToString(), opsets.get("", 1))
    numbered = {str(slot): feeds[name] for slot, name in enumerate(proto.input) if name}
    with np.errstate(all="ignore"):  # a log of 0, say, which a Where behind it leaves out
        return list(evaluator.run(None, numbered))


@lru_cache(maxsize=1024)
def _evaluator(node: bytes, opset: int) -> ReferenceEvaluator:
    """Made once for all nodes that only differ by name: making one takes longer than running it."""
    return ReferenceEvaluator(onnx.NodeProto.FromString(node), opsets={"": opset})


def _picked(
    probe: Probe, proto: onnx.NodeProto, opsets: Mapping[str, int]
) -> frozenset[tuple[str, int]]:
    """The origins that remain when elements are taken out of the result of a Shape."""
    first, *others = (name for name in proto.input if name)
    source, axes = probe.axes[first]
    if proto.op_type != "Cast":
        feeds = {name: probe.values[name] for name in others}
        axes = np.asarray(_run(proto, opsets, feeds | {first: axes})[0])
    probe.axes[proto.output[0]] = source, axes
    picked = frozenset((source, int(axis)) for axis in axes.reshape(-1))
    return picked.union(*(probe.origins.get(name, frozenset()) for name in others))


def _remember(
    probe: Probe, name: str, value: NDArray[Any], origins: frozenset[tuple[str, int]]
) -> None:
    probe.values[name] = value
    if origins:
        probe.origins[name] = origins
    dtype = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    probe.types[name] = tensor_type(dtype, value.shape)


def _infer_types(
    probe: Probe,
    node: ir.Node,
    proto: onnx.NodeProto,
    opsets: Mapping[str, int],
    imports: list[onnx.OperatorSetIdProto],
    constants: Mapping[str, ir.TensorProtocol],
) -> None:
    missing = [name for name in proto.input if name and name not in probe.types]
    if missing:
        _unshaped(probe, proto, f"its input `{missing[0]}` has no known shape")
        return
    try:
        if proto.domain in ("", "ai.onnx") and proto.op_type not in contrib.IN_ONNX_DOMAIN:
            found = _standard_types(probe, node, proto, opsets, imports, constants)
        elif proto.domain == MACHINE_LEARNING:
            found = _machine_learning_types(probe, proto, opsets, imports)
        else:
            found = _contrib_types(probe, node, proto, imports)
    except (
        onnx.defs.SchemaError, onnx.checker.ValidationError, LookupError, ValueError, TypeError
    ) as error:  # fmt: skip
        _unshaped(probe, proto, f"no shape inference for {proto.domain}::{proto.op_type}: {error}")
        return
    except onnx.shape_inference.InferenceError as error:
        raise ShapeError(f"{proto.op_type} `{proto.name or proto.output[0]}`: {error}") from error
    probe.types.update((name, kind) for name, kind in found.items() if name)


def _standard_types(
    probe: Probe,
    node: ir.Node,
    proto: onnx.NodeProto,
    opsets: Mapping[str, int],
    imports: list[onnx.OperatorSetIdProto],
    constants: Mapping[str, ir.TensorProtocol],
) -> Types:
    schema = onnx.defs.get_schema(proto.op_type, opsets[""], "")
    if proto.op_type == "If":
        return branch_types(node, probe.types, probe.values, imports)
    if any(a.type == onnx.AttributeProto.GRAPH for a in proto.attribute):
        raise ValueError("control flow")
    types = {name: probe.types[name] for name in proto.input if name}
    values = {name: probe.values[name] for name in proto.input if name in probe.values}
    if proto.op_type == "SplitToSequence":
        probe.parts[proto.output[0]] = part_types(proto, types[proto.input[0]], values)
    elif proto.op_type == "SequenceAt" and (part := _part(probe, proto)) is not None:
        return {proto.output[0]: part}
    if proto.op_type in _FLOAT_SETTINGS:
        values |= {name: constants[name].numpy() for name in proto.input if name in constants}
    data = {name: onnx.numpy_helper.from_array(np.asarray(v)) for name, v in values.items()}
    found: Types = onnx.shape_inference.infer_node_outputs(
        schema, proto, types, data, None, imports
    )
    if proto.op_type == "Dropout":  # before opset 10, onnx says nothing about the mask's shape
        for name in proto.output[1:]:
            found[name].tensor_type.shape.CopyFrom(types[proto.input[0]].tensor_type.shape)
    return found


def _part(probe: Probe, proto: onnx.NodeProto) -> onnx.TypeProto | None:
    """The type of the part that is taken out of a list, if both are known."""
    name, at = proto.input
    parts, position = probe.parts.get(name, []), probe.values.get(at)
    if position is None or not -len(parts) <= int(position) < len(parts):
        return None
    return parts[int(position)]


def _machine_learning_types(
    probe: Probe,
    proto: onnx.NodeProto,
    opsets: Mapping[str, int],
    imports: list[onnx.OperatorSetIdProto],
) -> Types:
    """Types of the operators that scikit-learn's exporter writes; onnx infers most of them."""
    schema = onnx.defs.get_schema(proto.op_type, opsets[proto.domain], proto.domain)
    types = {name: probe.types[name] for name in proto.input if name}
    if proto.op_type in _SCALING:
        element = _SCALING[proto.op_type] or types[proto.input[0]].tensor_type.elem_type
        return {proto.output[0]: _as_type(types[proto.input[0]], element)}
    found: Types = onnx.shape_inference.infer_node_outputs(schema, proto, types, {}, None, imports)
    return found


def _contrib_types(
    probe: Probe,
    node: ir.Node,
    proto: onnx.NodeProto,
    imports: list[onnx.OperatorSetIdProto],
) -> Types:
    """Types of ONNX Runtime's operators."""
    if proto.domain not in ("", "ai.onnx", "com.microsoft"):
        raise LookupError("an unknown domain")
    if proto.op_type in contrib.TWINS:
        return _twin_types(probe, proto, contrib.TWINS[proto.op_type], imports)
    function = contrib.SHAPES[proto.op_type]
    attributes = {key: attribute.value for key, attribute in node.attributes.items()}
    shapes = function([probe.shape(name) if name else None for name in proto.input], attributes)
    first = next(name for name in proto.input if name and _is_float(probe, name))
    dtype = probe.types[first].tensor_type.elem_type
    found = zip(proto.output, shapes, strict=False)
    return {name: tensor_type(dtype, shape) for name, shape in found if name and shape is not None}


def _twin_types(
    probe: Probe,
    proto: onnx.NodeProto,
    twin: contrib.Twin,
    imports: list[onnx.OperatorSetIdProto],
) -> Types:
    """Types by the inference of the standard operator that has the same shapes."""
    node = twin.node(proto)
    types = {name: probe.types[name] for name in node.input if name}
    element = _twin_element(types, proto, twin, node)
    if element is not None:  # the standard operator may not take integers
        types = {name: _as_type(kind, onnx.TensorProto.FLOAT) for name, kind in types.items()}
    moves_channels = twin.is_channels_last(proto)
    if moves_channels:
        types[node.input[0]] = _moved_axis(types[node.input[0]], -1, 1)
    found: Types = onnx.shape_inference.infer_node_outputs(
        twin.schema(), node, types, {}, None, imports
    )
    for name, kind in found.items():
        kind = _moved_axis(kind, 1, -1) if moves_channels else kind
        found[name] = kind if element is None else _as_type(kind, element)
    return found


def _twin_element(
    types: Types, proto: onnx.NodeProto, twin: contrib.Twin, node: onnx.NodeProto
) -> int | None:
    """The element type of the output, or None if inference tells it."""
    if twin.float_without is not None and not any(proto.input[twin.float_without :]):
        return int(onnx.TensorProto.FLOAT)
    if twin.typed_by is None:
        return None
    return int(types[node.input[twin.typed_by]].tensor_type.elem_type)


def _as_type(kind: onnx.TypeProto, element: int) -> onnx.TypeProto:
    changed = onnx.TypeProto()
    changed.CopyFrom(kind)
    changed.tensor_type.elem_type = element
    return changed


def _moved_axis(kind: onnx.TypeProto, source: int, target: int) -> onnx.TypeProto:
    dims = [dim.dim_value for dim in kind.tensor_type.shape.dim]
    if len(dims) < 3 or not all(dims):
        raise ValueError("an image of unknown shape")
    dims.insert(target % len(dims), dims.pop(source))
    return tensor_type(kind.tensor_type.elem_type, dims)


def _is_float(probe: Probe, name: str) -> bool:
    element = probe.types[name].tensor_type.elem_type
    return ir.DataType(element).is_floating_point()


def _unshaped(probe: Probe, proto: onnx.NodeProto, reason: str) -> None:
    for name in proto.output:
        if name:
            probe.unshaped.setdefault(name, reason)


def _use_declared(
    probe: Probe, proto: onnx.NodeProto, declared: Mapping[str, onnx.TypeProto]
) -> None:
    for name in proto.output:
        if name in declared and probe.shape(name) is None:
            probe.types[name] = declared[name]
            probe.unshaped.pop(name, None)
