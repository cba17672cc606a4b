"""Networks in which sizes depend on data: what lies behind them is pruned all the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import spa_graph
from spa_graph.frontends.onnx import editor
from spa_graph.plan import AxisIndices
from tests.models import assert_pruned, network, shapes

DETECTOR = """
detector (float[1,3,12,12] x) => (float[K,3] classes, float[K,4] found)
<float[8,3,3,3] w1, float[1,8,1,1] score, float[4,8,1,1] corner, float[6,8,1,1] w2,
 float[24,10] fc1, float[10] b1, float[10,3] fc2, int64[3] rows = {{1, 1, 100}},
 int64[3] boxes = {{1, 4, 100}}, int64[1] many = {{9}}, float[1] overlap = {{0.7}},
 float[1] least = {{{least}}}, int64 first = {{0}}, int64 last = {{2}}, float size = {{9.0}},
 int64[1] all = {{24}}, int64[1] zero = {{0}}>
{{
    a = Conv(x, w1)
    f = Relu(a)
    s = Conv(f, score)
    s1 = Reshape(s, rows)
    p = Sigmoid(s1)
    c = Conv(f, corner)
    c1 = Reshape(c, boxes)
    c2 = Transpose<perm = [0, 2, 1]>(c1)
    c3 = Sigmoid(c2)
    c4 = Mul(c3, size)
    kept = NonMaxSuppression(c4, p, many, overlap, least)
    image = Gather<axis = 1>(kept, first)
    place = Gather<axis = 1>(kept, last)
    every = Squeeze(c4, zero)
    found = Gather<axis = 0>(every, place)
    g = Conv(f, w2)
    rois = RoiAlign<output_height = 2, output_width = 2>(g, found, image)
    sizes = Shape<start = 0, end = 1>(rois)
    target = Concat<axis = 0>(sizes, all)
    flat = Reshape(rois, target)
    h = Gemm(flat, fc1, b1)
    r = Relu(h)
    classes = MatMul(r, fc2)
}}
"""
EVERYTHING, NOTHING = DETECTOR.format(least=0.0), DETECTOR.format(least=2.0)
"""The same detector with two thresholds on its scores, which are at most 1."""

BRANCH = """
branch (float[5,8] x) => (float[K,3] y)
<float[8,16] w1, float[8,1] score, float[16,3] w2, int64[1] none = {0}, int64[1] flat = {-1},
 int64 zero = {0}>
{
    s = MatMul(x, score)
    v = Reshape(s, flat)
    b = Greater(v, v)
    n = Not(b)
    q = Cast<to = 7>(n)
    total = ReduceSum<keepdims = 0>(q)
    any = Greater(total, zero)
    which = If (any) <
        then_branch = yes () => (int64[K] found) {
            two = NonZero(n)
            found = Reshape(two, flat)
        },
        else_branch = no () => (int64[K] empty) {
            empty = ConstantOfShape<value = int64[1] {0}>(none)
        }
    >
    h = MatMul(x, w1)
    r = Relu(h)
    g = Gather<axis = 0>(r, which)
    y = MatMul(g, w2)
}
"""


def test_heads_behind_a_suppression_are_pruned() -> None:
    model = network(EVERYTHING)
    pruned = assert_pruned(model, spa_graph.prune(model, ratio=0.5))
    sizes = shapes(pruned)
    assert sizes["w1"][0] == sizes["score"][1] == sizes["w2"][1] == 4
    assert (sizes["w2"][0], sizes["fc1"], sizes["fc2"]) == (3, (12, 5), (5, 3))


def test_only_the_axis_that_depends_on_data_is_unknown() -> None:
    analysis = spa_graph.analyze(network(EVERYTHING))
    graph = analysis.graph
    assert [extent.nominal for extent in graph.shapes["rois"]] == [1, 6, 2, 2]
    assert [extent.static for extent in graph.shapes["rois"]] == [False, True, True, True]
    assert ("kept", 0) in graph.unsized and ("kept", 1) not in graph.unsized
    assert not graph.unshaped
    relations = analysis.coupling.relations
    for name in ("kept", "found", "rois", "flat", "h"):
        axis = (relations.value(name) or ())[0]
        assert analysis.coupling.channel_of(axis) is None, name


def test_what_both_branches_agree_on_is_known() -> None:
    model = network(BRANCH)
    pruned = assert_pruned(model, spa_graph.prune(model, ratio=0.5))
    assert shapes(pruned)["w2"] == (8, 3)


def test_sizes_that_are_one_although_they_were_chosen_apart() -> None:
    """Inference rejects the sum of both; that is not the fault of the network's inputs."""
    model = network("""
    net (float[5,8] x) => (float[K,16] y) <float[8,16] w1, float[16,16] w2, float zero = {0.0}> {
        a = Abs(x)
        b = Neg(a)
        p = GreaterOrEqual(a, zero)
        q = LessOrEqual(b, zero)
        i = NonZero(p)
        j = NonZero(q)
        k = Add(i, j)
        t = Transpose(k)
        f = Cast<to = 1>(t)
        s = ReduceSum(f)
        h = MatMul(x, w1)
        r = Relu(h)
        m = MatMul(r, w2)
        y = Mul(m, s)
    }
    """)
    analysis = spa_graph.analyze(model)
    assert "at odds" in analysis.graph.unshaped["k"]
    assert_pruned(model, spa_graph.prune(model, ratio=0.5))


def test_a_detector_that_finds_nothing_is_compared_before_it_decides() -> None:
    model = network(NOTHING)
    result = spa_graph.prune(model, ratio=0.5)
    shown = result.report["verification"]
    assert shown["output"] in ("p", "c4")
    assert shown["output_varied"]


@pytest.mark.parametrize("text", [EVERYTHING, NOTHING])
def test_a_wrong_detector_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = editor.sliced

    def wrong(tensor: ir.TensorProtocol, kept: AxisIndices) -> ir.TensorProtocol:
        sizes: tuple[Any, ...] = tuple(tensor.shape)
        return right(tensor, {a: np.sort((i + 1) % sizes[a]) for a, i in kept.items()})

    monkeypatch.setattr(editor, "sliced", wrong)
    with pytest.raises(spa_graph.VerificationError):
        spa_graph.prune(network(text), ratio=0.5)


def test_a_network_that_fails_on_random_input_is_told_apart() -> None:
    """It finds nothing, and there is no size that -1 could stand for."""
    text = EVERYTHING.replace("int64[1] all = {24}", "int64[1] all = {-1}")
    model = network(text.replace("float[1] least = {0.0}", "float[1] least = {2.0}"))
    with pytest.raises(spa_graph.ModelError, match="the network itself fails on random input"):
        spa_graph.prune(model, ratio=0.5)


def test_another_input_is_tried_where_a_network_fails_on_the_first() -> None:
    """No score reaches the threshold unless the input is large."""
    text = EVERYTHING.replace("int64[1] all = {24}", "int64[1] all = {-1}")
    model = network(text.replace("float[1] least = {0.0}", "float[1] least = {0.999}"))
    shown = spa_graph.prune(model, ratio=0.5).report["verification"]
    assert shown["output_varied"]
