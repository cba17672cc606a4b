"""Canonical form: numbers computed from sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from spa_graph import analyze, prune
from tests.models import network

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
