"""Single operators in tiles compute what they compute at once, for every axis that is offered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spa_graph.coupling.rules.elementwise import ELEMENTWISE
from spa_graph.frontends.onnx import tiles
from spa_graph.frontends.onnx.tiles import tilings
from spa_graph.passes.statistics import store as store_module
from spa_graph.passes.statistics.runner import Runner
from spa_graph.passes.statistics.store import Store
from tests.models import network, outputs, random_feeds

CASES = {
    "add": ("float[2,6,4] x, float[6,1] y", "z = Add(x, y)", {0, 1, 2}),
    "a bias isn't cut": ("float[2,6,4] x", "z = Add(x, w)", {0, 1}),
    "squared": ("float[2,6,4] x", "z = Mul(x, x)", {0, 1, 2}),
    "where": ("float[2,6,4] x, float[4] y", "c = Less(x, y) z = Where(c, x, y)", {0, 1, 2}),
    "matmul": ("float[1,3,5,4] x, float[2,1,4,6] y", "z = MatMul(x, y)", {0, 1, 2}),
    "gram": ("float[2,3,4,4] x", "z = MatMul(x, x)", {0, 1}),
    "rows": ("float[5,4] x, float[2,4,6] y", "z = MatMul(x, y)", {0, 1}),
    "dot": ("float[4] x, float[2,4,6] y", "z = MatMul(x, y)", set()),
    "transpose": ("float[2,6,4] x", "z = Transpose<perm=[2,0,1]>(x)", {0, 1, 2}),
    "reverse": ("float[2,6,4] x", "z = Transpose(x)", {0, 1, 2}),
    "heads": ("float[2,6,4] x", "z = Reshape(x, free)", {0}),
    "batch": ("float[2,6,4] x", "z = Reshape(x, same)", {0}),
    "merged": ("float[2,6,4] x", "z = Reshape(x, other)", set()),
    "flat": ("float[2,6,4] x", "z = Reshape(x, all)", set()),
    "softmax": ("float[2,6,4] x", "z = Softmax<axis=-1>(x)", {0, 1}),
    "softmax, unsaid": ("float[2,6,4] x", "z = Softmax(x)", {0}),
    "softmax, first": ("float[2,6,4] x", "z = Softmax<axis=0>(x)", set()),
    "slice": ("float[2,6,4] x", "z = Slice(x, one, two, minus)", {0, 1}),
    "concat": ("float[2,6,4] x, float[2,3,4] y", "z = Concat<axis=1>(x, y)", {0, 2}),
    "scatter": ("float[6,2,4] x, float[2,2,4] y", "z = ScatterND(x, rows, y)", {1, 2}),
    "conv": ("float[3,2,5,5] x", "z = Conv(x, k)", {0}),
    "pool": ("float[3,2,4,4] x", "z = MaxPool<kernel_shape=[2,2]>(x)", {0}),
    "sum": ("float[2,6,4] x", "z = ReduceSum(x)", set()),
    "normalised": ("float[2,6,4] x", "z = LayerNormalization(x, w)", set()),
}
"""Inputs, what is computed, and the axes along which the last operator may be cut."""


RANKS = {"conv": 4, "dot": 2, "flat": 1, "heads": 4, "gram": 4, "matmul": 4, "pool": 4}
"""Axes of the output, where they aren't three."""


def case(name: str) -> onnx.ModelProto:
    given, text, _ = CASES[name]
    shape = ",".join("ABCD"[: RANKS.get(name, 3)])
    return network(
        f"net ({given}) => (float[{shape}] z) <float[4] w, float[3,2,2,2] k, int64[1] one = {{1}}, "
        f"int64[1] two = {{3}}, int64[1] minus = {{-1}}, int64[2,1] rows = {{4, 1}}, "
        "int64[4] free = {-1, 3, 2, 4}, int64[3] same = {0, 4, 6}, int64[3] other = {-1, 3, 4}, "
        f"int64[1] all = {{-1}}> {{ {text} }}"
    )


@pytest.mark.parametrize("number", [2, 3, 100])
@pytest.mark.parametrize("name", CASES)
def test_tiles_compute_what_the_operator_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    _, text, axes = CASES[name]
    model = case(name)
    feeds = random_feeds(model)
    (want,) = outputs(model, feeds)
    monkeypatch.setattr(store_module, "CHUNK", 64)
    offered = tiles.tilings
    seen = set()
    for axis in axes:
        walk = Runner(ir.from_proto(model), [feeds], 0, tmp_path)
        if text.startswith("c ="):
            walk.advance(["c"])

        def only(node: ir.Node, shapes: list[tuple[int, ...]], axis: int = axis) -> list[object]:
            found = [each for each in offered(node, shapes) if each.axis == axis]
            seen.update(each.axis for each in found)
            return found

        monkeypatch.setattr("spa_graph.passes.statistics.runner.tilings", only)
        walk.advance(["z"], tiles=number)
        np.testing.assert_allclose(walk.value("z", 0), want, rtol=1e-6, atol=1e-6)
    assert seen == axes


@pytest.mark.parametrize("name", CASES)
def test_no_other_axis_is_offered(name: str) -> None:
    model = case(name)
    feeds = random_feeds(model)
    node = list(ir.from_proto(model).graph)[-1]
    stored = {each.name: tuple(each.dims) for each in model.graph.initializer}
    known = stored | {n: a.shape for n, a in feeds.items()} | {"c": (2, 6, 4)}
    shapes = [known[str(value.name)] for value in node.inputs if value is not None]
    assert {each.axis for each in tilings(node, shapes)} == CASES[name][2]


KINDS = {
    **dict.fromkeys(["And", "Not", "Or", "Xor"], (bool, bool, bool)),
    **dict.fromkeys(["BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"], (np.int32,) * 3),
    "Where": (bool, np.float32, np.float32),
}
"""Types of the inputs of operators that don't take numbers."""
MISSING = {"BitCast", "Mish", "Swish", "Asinh"}
"""Operators that ONNX Runtime may not have yet, or not for these types."""


@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_elements_of_an_elementwise_operator_need_no_others(name: str) -> None:
    """What the list claims is seen in ONNX Runtime, not in the rules that it is made of."""
    opset = onnx.defs.onnx_opset_version() if name in MISSING else 20
    schema = onnx.defs.get_schema(name, opset)
    assert schema.max_output == 1
    kinds = KINDS.get(name, (np.float32,) * 3)[: max(schema.min_input, 1)]
    make = onnx.helper
    inputs = [
        make.make_tensor_value_info(str(i), make.np_dtype_to_tensor_dtype(np.dtype(kind)), ["n", 5])
        for i, kind in enumerate(kinds)
    ]
    attributes = {"Cast": {"to": 7}, "Mod": {"fmod": 1}, "BitCast": {"to": 6}}.get(name, {})
    graph = make.make_graph(
        [make.make_node(name, [each.name for each in inputs], ["y"], **attributes)], "g", inputs,
        [onnx.ValueInfoProto(name="y")],
    )  # fmt: skip
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", opset)], ir_version=10)
    rng = np.random.default_rng(0)
    feeds = {each.name: (4 * rng.random((6, 5)) - 1).astype(kind)
             for each, kind in zip(inputs, kinds, strict=True)}  # fmt: skip
    try:
        (want,) = outputs(model, feeds)
    except Exception:
        assert name in MISSING
        return
    for part in (slice(0, 2), slice(2, 6)):
        (got,) = outputs(model, {each: array[part] for each, array in feeds.items()})
        np.testing.assert_allclose(got, want[part], rtol=1e-6)


def test_strings_are_not_cut_nor_kept_in_files(tmp_path: Path) -> None:
    model = network("net (string[4,3] x) => (string[3,4] y) { z = Identity(x) y = Transpose(z) }")
    feeds = {"x": np.array([["a", "b", "c"]] * 4, object)}
    walk = Runner(ir.from_proto(model), [feeds], 0, tmp_path)
    walk.advance(["z"], tiles=3)
    walk.advance(["y"], tiles=3)
    np.testing.assert_array_equal(walk.value("y", 0), feeds["x"].T)


def test_the_outermost_axis_that_suffices_is_cut(tmp_path: Path) -> None:
    feeds = {"x": np.zeros((2, 8, 4), np.float32)}
    model = network("net (float[2,8,4] x) => (float[2,8,4] y) { y = Relu(x) }")
    walk = Runner(ir.from_proto(model), [feeds], 0, tmp_path)
    cut = {tiles: walk._tiling(walk._todo[0], 0, tiles) for tiles in (2, 3, 100)}
    assert {tiles: each and each.axis for tiles, each in cut.items()} == {2: 0, 3: 1, 100: 1}


def test_what_comes_part_by_part_is_the_same_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "CHUNK", 100)
    array = np.random.default_rng(0).normal(size=(7, 5, 3))
    for axis in range(3):
        store = Store(0, tmp_path)
        store.create("a", 0, array.shape, array.dtype)
        for start in range(0, array.shape[axis], 2):
            part = slice(start, start + 2)
            own = array.take(range(array.shape[axis])[part], axis)
            store.write("a", 0, axis, part, own)
            np.testing.assert_array_equal(store.read("a", 0, axis, part), own)
        np.testing.assert_array_equal(store.get("a", 0), array)
