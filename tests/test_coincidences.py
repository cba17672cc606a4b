"""Sizes that are the same at the sizes of the analysis, and only there.

What a stride, a window or a crop leaves of a dynamic axis is often one size for many inputs. Taken
for a constant, it would give a network that is wrong at other sizes.
"""

from __future__ import annotations

from typing import Any

import pytest

import spa_graph
from spa_graph import SpaError
from tests.models import assert_same_outputs, changed_by, network, random_feeds, zero

STRIDE = """
strided (float[N,16,L] x) => (float[N,8] y) <float[32,16,1] w, float[32,8] v, int64[1] last = {2}>
{
    h = Conv(x, w)
    m = MaxPool<kernel_shape = [64], strides = [64]>(h)
    frames = Shape<start = 2, end = 3>(m)
    count = Cast<to = 1>(frames)
    total = ReduceSum<keepdims = 0>(m, last)
    mean = Div(total, count)
    y = MatMul(mean, v)
}
"""
BRANCH = """
branch (float[N,16,L] x) => (float[N,8] y) <float[32,16,1] w, float[32,8] v>
{
    h = Conv(x, w)
    m = MaxPool<kernel_shape = [64], strides = [64]>(h)
    frames = Shape<start = 2, end = 3>(m)
    size = Squeeze(frames)
    one = Constant<value_int = 1>()
    single = Equal(size, one)
    r = If(single) <
        then_branch = yes () => (a) { axis = Constant<value_ints = [2]>()  a = Squeeze(m, axis) },
        else_branch = no () => (b) { b = ReduceMax<axes = [2], keepdims = 0>(m) }
    >
    y = MatMul(r, v)
}
"""
CROP = """
crop (float[N,L,16] x) => (float[N,8] y)
<float[16,32] w, float[32,8] v, int64[1] zero = {0}, int64[1] eight = {8}, int64[1] one = {1}>
{
    h = MatMul(x, w)
    c = Slice(h, zero, eight, one)
    length = Shape<start = 1, end = 2>(c)
    count = Cast<to = 1>(length)
    total = ReduceSum<keepdims = 0>(c, one)
    mean = Div(total, count)
    y = MatMul(mean, v)
}
"""
MERGED = """
merged (float[N,16,L] x) => (float[N,F,8] y)
<float[32,16,1] w, float[32,8] v, int64[1] width = {32}>
{
    h = Conv(x, w)
    m = MaxPool<kernel_shape = [64], strides = [64]>(h)
    t = Transpose<perm = [0, 2, 1]>(m)
    n = Shape<start = 0, end = 1>(t)
    frames = Shape<start = 1, end = 2>(t)
    all = Mul(frames, width)
    flat_size = Concat<axis = 0>(n, all)
    flat = Reshape(t, flat_size)
    size = Concat<axis = 0>(n, frames, width)
    back = Reshape(flat, size)
    y = MatMul(back, v)
}
"""
FIRST = """
first (float[N,16] x, bool[N] chosen) => (float[M,8] y)
<float[16,32] w, float[32,8] v, int64[1] zero = {0}, int64[1] one = {1}>
{
    h = MatMul(x, w)
    found = Compress<axis = 0>(h, chosen)
    top = Slice(found, zero, one, zero)
    y = MatMul(top, v)
}
"""


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        (STRIDE, (64, 96, 500)),
        (BRANCH, (96, 128, 500)),
        (CROP, (16, 5, 3, 40)),
        (MERGED, (96, 128, 500)),
    ],
    ids=["stride", "branch", "crop", "merged"],
)
def test_right_at_every_size_or_refused(text: str, lengths: tuple[int, ...]) -> None:
    model = network(text)
    try:
        result = spa_graph.prune(model, ratio=0.5)
    except SpaError:  # nothing was written
        return
    assert result.report["canonicalized"] == []
    masked = changed_by(model, result.plan, zero)
    for length in lengths:
        feeds: dict[str, Any] = random_feeds(model, dynamic=length)
        feeds["x"] = feeds["x"][:2]
        assert_same_outputs(result.model, masked, feeds)


def test_a_number_found_may_be_none() -> None:
    analysis = spa_graph.analyze(network(FIRST))
    axes = {axis for name, axis in analysis.graph.unsized if name == "top"}
    assert axes == {0}


def test_what_stays_the_same_is_constant_still() -> None:
    """A dynamic length beside a static width: the width's size is a number like any other."""
    graph = spa_graph.analyze(network(STRIDE)).graph
    assert ("m", 2) in graph.unsized
    assert ("m", 1) not in graph.unsized
