"""Small networks for tests, and what a plan does to their weights, written without spa_graph.

A network is ONNX text. A weight is declared in the header without a value and gets seeded random
numbers:

    network("net (float[N,4] x) => (float[N,3] y) <float[4,8] w1, float[8,3] w2>"
            "{ h = MatMul(x, w1) y = MatMul(h, w2) }")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnxruntime as ort
from numpy.typing import NDArray

from spa_graph import Plan, Result

Array = NDArray[Any]
Slices = Mapping[int, NDArray[np.int64]]
Change = Callable[[Array, Slices], Array]

CHAIN = """
chain (float[N,3,8,8] x) => (float[N,5] y)
<float[8,3,3,3] w1, float[8] b1, float[12,8,3,3] w2, float[12] b2, float[12,5] w3>
{
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    ra = Relu(a)
    b = Conv<pads=[1,1,1,1]>(ra, w2, b2)
    rb = Relu(b)
    p = GlobalAveragePool(rb)
    f = Flatten(p)
    y = MatMul(f, w3)
}
"""
"""Two convolutions and a classifier: groups w1:0 (8 channels) and w2:0 (12), both exact."""

RESIDUAL = """
residual (float[N,3,8,8] x) => (float[N,5] y)
<float[8,3,1,1] w0, float[6,8,3,3] w1, float[8,6,1,1] w2, float[8,5] w3>
{
    s = Conv(x, w0)
    a = Conv<pads=[1,1,1,1]>(s, w1)
    r = Relu(a)
    b = Conv(r, w2)
    sum = Add(s, b)
    p = GlobalAveragePool(sum)
    f = Flatten(p)
    y = MatMul(f, w3)
}
"""
"""A residual block: w0 and w2 give the same 8 channels, w1 has 6 of its own."""

MLP = """
mlp (float[N,4] x) => (float[N,3] y)
<float[4,16] w1, float[16] b1, float[16,3] w2>
{
    h = Gemm(x, w1, b1)
    r = Relu(h)
    y = MatMul(r, w2)
}
"""

BIG = """
big (float[N,64] x) => (float[N,3] y) <float[64,64] w1, float[64,3] w2>
{ h = MatMul(x, w1) r = Relu(h) y = MatMul(r, w2) }
"""
"""A network whose weights are large enough to be mapped."""


def network(
    text: str,
    *,
    opset: int = 17,
    values: Mapping[str, Array] | None = None,
    seed: int = 0,
    imports: str = "",
) -> onnx.ModelProto:
    """Parse ONNX text; declared weights are filled from `values`, else at random.

    Args:
        imports: more opset imports, such as `, "com.microsoft" : 1`.
    """
    header = f'<ir_version: {_ir_version(opset)}, opset_import: ["" : {opset}{imports}]>'
    model = onnx.parser.parse_model(header + text)
    generator = np.random.default_rng(seed)
    for declared in list(model.graph.value_info):
        given = (values or {}).get(declared.name)
        tensor = _random(declared, generator) if given is None else np.asarray(given)
        model.graph.initializer.append(onnx.numpy_helper.from_array(tensor, declared.name))
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=not imports)
    return model


def _ir_version(opset: int) -> int:
    return onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])


def _random(declared: onnx.ValueInfoProto, generator: np.random.Generator) -> Array:
    kind = declared.type.tensor_type
    shape = [dim.dim_value for dim in kind.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    scale = 1 / np.sqrt(max(np.prod(shape[1:]), 1))
    return np.asarray(generator.uniform(0.5, 1.5, shape) * scale * _sign(generator, shape), dtype)


def _sign(generator: np.random.Generator, shape: list[int]) -> Array:
    return generator.choice([-1.0, 1.0], shape)


def external_model(folder: Path, location: str = "weights.bin") -> Path:
    """BIG with its weights in a file of their own."""
    path = folder / "model.onnx"
    onnx.save(network(BIG), path, save_as_external_data=True, location=location, size_threshold=0)
    return path


# --- running -------------------------------------------------------------------------------------


def random_feeds(model: onnx.ModelProto, seed: int = 0, dynamic: int = 2) -> dict[str, Array]:
    """Standard normal numbers for every input; `dynamic` is the size of symbolic axes."""
    generator = np.random.default_rng(seed)
    stored = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name not in stored:
            kind = value.type.tensor_type
            shape = [dim.dim_value or dynamic for dim in kind.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            feeds[value.name] = generator.standard_normal(shape).astype(dtype)
    return feeds


def outputs(model: onnx.ModelProto | Path, feeds: Mapping[str, Array]) -> list[Array]:
    """What ONNX Runtime computes, without its own optimisations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(None, dict(feeds))]


def optimized(model: onnx.ModelProto | Path, folder: Path) -> list[str]:
    """The operators that ONNX Runtime runs of a network, once it has simplified it."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    source = model if isinstance(model, Path) else model.SerializeToString()
    ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


def assert_same_outputs(
    first: onnx.ModelProto | Path,
    second: onnx.ModelProto | Path,
    feeds: Mapping[str, Array],
    *,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    """Both networks compute the same, up to the order of summation."""
    for got, want in zip(outputs(first, feeds), outputs(second, feeds), strict=True):
        scale = max(float(np.abs(want).max(initial=0)), 1e-6)
        np.testing.assert_allclose(got, want, rtol=rtol, atol=atol * max(scale, 1))


# --- what is stored, and what a plan does to it --------------------------------------------------


def stored(model: onnx.ModelProto) -> dict[str, Array]:
    """Initializers and the outputs of Constant nodes, by name."""
    found = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            attribute = node.attribute[0]
            if attribute.name == "value":
                found[node.output[0]] = onnx.numpy_helper.to_array(attribute.t)
            elif attribute.name.startswith("value_"):
                found[node.output[0]] = np.asarray(onnx.helper.get_attribute_value(attribute))
    return found


def shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in stored(model).items()}


def keep(array: Array, kept: Slices) -> Array:
    """Only the kept positions of each axis."""
    for axis, index in kept.items():
        array = np.take(array, index, axis=axis)
    return array


def zero(array: Array, kept: Slices) -> Array:
    """Zero in every position that is not kept."""
    array = array.copy()
    for axis, index in kept.items():
        gone = np.setdiff1d(np.arange(array.shape[axis]), index)
        array[(slice(None),) * axis + (gone,)] = 0
    return array


def changed_by(model: onnx.ModelProto, plan: Plan, change: Change) -> onnx.ModelProto:
    """A copy whose initializers went through `change`, use by use where the plan says so."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    tensors = {tensor.name: tensor for tensor in copy.graph.initializer}
    for name, kept in plan.kept.items():
        _replace(copy, name, change(stored(model)[name], kept))
    for name, uses in plan.kept_per_use.items():
        for number, ((node_output, slot), kept) in enumerate(uses.items()):
            fresh = f"{name}.use{number}"
            array = change(onnx.numpy_helper.to_array(tensors[name]), kept)
            copy.graph.initializer.append(onnx.numpy_helper.from_array(array, fresh))
            node = next(n for n in copy.graph.node if node_output in n.output)
            node.input[slot] = fresh
    return copy


def assert_pruned(model: onnx.ModelProto, result: Result, *, dynamic: int = 2) -> onnx.ModelProto:
    """The result is smaller, and computes what the original does with its channels set to zero."""
    pruned = result.model
    assert isinstance(pruned, onnx.ModelProto)
    onnx.checker.check_model(pruned)
    assert result.report["ratio"]["channels"] < 1
    masked = changed_by(model, result.plan, zero)
    assert_same_outputs(pruned, masked, random_feeds(model, dynamic=dynamic))
    return pruned


def assert_plan_describes(plan: Plan, model: onnx.ModelProto, pruned: onnx.ModelProto) -> None:
    """Slicing by the plan what a node of the input file gets is what it gets in the pruned file."""
    before, after = stored(model), stored(pruned)
    nodes = {name: node for node in pruned.graph.node for name in node.output}
    for node in model.graph.node:
        for slot, name in enumerate(node.input):
            if name in before and before[name].dtype.kind == "f":
                kept = plan.kept.get(name, {})
                if name in plan.kept_per_use:
                    kept = plan.kept_per_use[name][node.output[0], slot]
                got = after[nodes[node.output[0]].input[slot]]
                np.testing.assert_array_equal(got, keep(before[name], kept), err_msg=name)


def _replace(model: onnx.ModelProto, name: str, array: Array) -> None:
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
    for node in model.graph.node:
        if node.op_type == "Constant" and name in node.output:
            del node.attribute[:]
            value = onnx.numpy_helper.from_array(array)
            node.attribute.append(onnx.helper.make_attribute("value", value))


def groups_of(analysis: Any) -> set[frozenset[tuple[str, int]]]:
    """The channel groups as sets of (weight, axis), whatever they are called."""
    return {frozenset((m.parameter, m.axis) for m in group.members) for group in analysis.groups}
