"""Canonical form: numbers computed from sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from spa_graph import analyze, prune
from tests.models import assert_pruned, network

SCALED = """
scaled (float[N,6,8] x) => (float[N,6,3] y) <float[8,16] w1, float[16,3] w2>
{{
    h = MatMul(x, w1)
    sizes = Shape(h)
    place = Constant<value_int = {place}>()
    size = Gather(sizes, place)
    number = Cast<to = 1>(size)
    root = Sqrt(number)
    scaled = Div(h, root)
    y = MatMul(scaled, w2)
}}
"""


def test_number_from_a_static_size_becomes_a_constant(tmp_path: Path) -> None:
    model = network(SCALED.format(place=2))
    assert [group.size for group in analyze(model).groups] == [16]
    result = prune(model, ratio=0.5, output=tmp_path / "pruned.onnx")
    assert result.report["canonicalized"] == ["1 numbers computed from sizes became constants"]
    assert [node.op_type for node in result.model.graph.node] == ["MatMul", "Div", "MatMul"]


def test_number_from_a_dynamic_size_is_computed() -> None:
    analysis = analyze(network(SCALED.format(place=0)))
    assert not analysis.changed
    assert [group.size for group in analysis.groups] == [16]


BRANCH = """
branches (float[N,6,8] x) => (float[N,6,3] y) <float[8,16] w1, float[16,3] w2, float[16] b>
{{
    h = MatMul(x, w1)
    sizes = Shape(h)
    place = Constant<value_int = {place}>()
    size = Gather(sizes, place)
    eight = Constant<value_int = {size}>()
    same = Equal(size, eight)
    r = If(same) <
        then_branch = yes () => (t) {{ t = Relu(h) }},
        else_branch = no () => (t) {{ s = Add(h, b)  t = Relu(s) }}
    >
    again = If(same) <
        then_branch = yes () => (t) {{ t = Neg(r) }},
        else_branch = no () => (t) {{ s = Add(r, b)  t = Neg(s) }}
    >
    y = MatMul(again, w2)
}}
"""


@pytest.mark.parametrize(
    ("size", "kinds"), [(6, ["Relu", "Neg"]), (7, ["Add", "Relu", "Add", "Neg"])]
)
def test_a_branch_that_is_always_taken_is_inlined(
    size: int, kinds: list[str], tmp_path: Path
) -> None:
    model = network(BRANCH.format(place=1, size=size))
    result = prune(model, ratio=0.5, output=tmp_path / "pruned.onnx")
    assert result.report["canonicalized"] == ["2 decided branches inlined"]
    found = [node.op_type for node in result.model.graph.node if node.op_type != "Identity"]
    assert found == ["MatMul", *kinds, "MatMul"]
    assert result.report["after"]["channels"] == 8


def test_a_branch_that_depends_on_the_input_stays() -> None:
    analysis = analyze(network(BRANCH.format(place=0, size=2)))
    assert not analysis.changed
    assert analysis.groups == []
    assert any("subgraph" in reason for reason in analysis.coupling.frozen_reasons.values())


def test_only_the_condition_that_is_no_input_decides() -> None:
    """An initializer that is a graph input too is a default: who runs the network may give more."""
    model = network(DEFAULT)
    assert analyze(model).changed == ["1 decided branches inlined"]
    condition = onnx.helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [])
    model.graph.input.append(condition)
    assert not analyze(model).changed


DEFAULT = """
default (float[N,8] x) => (float[N,3] y)
<float[8,16] w1, float[16,3] w2, bool flag = {1}>
{
    h = MatMul(x, w1)
    other = Not(flag)
    r = If(other) <
        then_branch = yes () => (t) { t = Neg(h) },
        else_branch = no () => (t) { t = Abs(h) }
    >
    y = MatMul(r, w2)
}
"""


def test_what_is_inlined_keeps_its_name_where_it_is_free() -> None:
    """Plans name weights: those of the file, not those that clash with a branch that is gone."""
    model = network(TWO_WEIGHTS)
    (decision,) = (node for node in model.graph.node if node.op_type == "If")
    for seed, attribute in enumerate(decision.attribute):
        weight = np.random.default_rng(seed).standard_normal((8, 16)).astype(np.float32)
        attribute.g.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
        attribute.g.node[0].input[1] = "w"
    result = prune(model, ratio=0.5)
    assert set(result.plan.kept) == {"w", "w2"}
    assert isinstance(result.model, onnx.ModelProto)
    assert [node.output[0] for node in result.model.graph.node] == ["h", "t.0", "r", "t", "y"]


TWO_WEIGHTS = """
weights (float[N,8] x) => (float[N,3] y)
<float[8,16] v, float[16,3] w2, bool flag = {1}>
{
    r = If(flag) <
        then_branch = yes () => (t) { h = MatMul(x, v) t = Neg(h) },
        else_branch = no () => (t) { h = MatMul(x, v) t = Abs(h) }
    >
    t = Relu(r)
    y = MatMul(t, w2)
}
"""

REORDERED = """
reordered (float[N,16] x) => (float[N,3] y)
<float[16,8] w1, float[8,3] w2, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64 first = {{0}},
 int64[1] last = {{-1}}, int64[1] before = {{-5}}, int64[1] all = {{2}}>
{{
    h = MatMul(x, w1)
    sizes = Shape(h)
    {reorder}
    size = Gather(turned, first)
    number = Cast<to = 1>(size)
    scaled = Div(h, number)
    y = MatMul(scaled, w2)
}}
"""


@pytest.mark.parametrize(
    "reorder",
    [
        "turned = Slice(sizes, last, before, zero, last)",
        "a = Gather(sizes, one) b = Gather(sizes, zero) turned = Concat<axis = 0>(a, b)",
        "a = Slice(sizes, last, before, zero, last) turned = Mul(a, sizes)",
    ],
)
def test_a_size_is_found_in_a_reordered_shape(reorder: str) -> None:
    """The number of channels divides: pruning must not change it, whatever place it comes from."""
    analysis = analyze(network(REORDERED.format(reorder=reorder)))
    static = analysis.changed == ["1 numbers computed from sizes became constants"]
    assert static or not analysis.groups


def test_a_reordered_shape_stays_apart_by_axes() -> None:
    model = network(REORDERED.format(reorder="turned = Slice(sizes, last, before, zero, last)"))
    assert_pruned(model, prune(model, ratio=0.5))


LIST_IN_BRANCHES = """
branches (float[N,5] x) => (float[M,3] y)
<float[5,16] w1, float[16,3] w2, int64 two = {2}, int64 zero = {0}, int64 one = {1}, bool yes = {1}>
{
    h = MatMul(x, w1)
    sizes = Shape(h)
    n = Gather(sizes, zero)
    half = Div(n, two)
    parts = SplitToSequence<axis = 0>(h, half)
    a = SequenceAt(parts, zero)
    b = If(yes) <
        then_branch = taken () => (t) { t = SequenceAt(parts, one) },
        else_branch = not_taken () => (t) {
            t = If(yes) <
                then_branch = deeper () => (u) { u = SequenceAt(parts, zero) },
                else_branch = deepest () => (u) { u = SequenceAt(parts, one) }
            >
        }
    >
    c = Mul(a, b)
    y = MatMul(c, w2)
}
"""


def test_what_a_dropped_branch_read_is_free_to_go() -> None:
    model = network(LIST_IN_BRANCHES)
    result = prune(model, ratio=0.5, input_shapes={"x": (2, 5)})
    assert_pruned(model, result)
    assert result.report["canonicalized"] == [
        "1 decided branches inlined", "1 lists of parts of a computed size became Slice",
    ]  # fmt: skip
