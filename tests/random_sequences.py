"""Random networks over sequences: linear layers, attention, gates, reshapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from tests.random_graphs import (
    LENGTH,
    Net,
    Step,
    StepFunction,
    activation,
    build,
)


def sequence_network(steps: Sequence[Step], batch: int | str = 2) -> onnx.ModelProto:
    """A network over (batch, length, 6): `steps`, and 4 numbers per position."""
    net = Net(batch)
    net.add(net.input(LENGTH, 6), 6)
    linear(net, np.random.default_rng(1))
    build(steps, SEQUENCE_STEPS, net)
    x, channels = net.last()
    net.op("MatMul", x, net.weight(channels, 4))
    net.outputs = [gs.Variable("y", np.float32, [batch, LENGTH, 4])]
    net.nodes[-1].outputs = net.outputs
    return net.finish()


def linear(net: Net, pick: np.random.Generator) -> None:
    x, channels = net.last()
    width = 2 * int(pick.integers(1, 7))
    h = net.op("MatMul", x, net.weight(channels, width))
    net.add(net.op("Add", h, net.weight(width)) if pick.integers(2) else h, width)


def norm(net: Net, pick: np.random.Generator) -> None:
    x, channels = net.last()
    fresh = bool(pick.integers(2))
    scale = net.filled(1, channels) if fresh else net.weight(channels, around=1)
    bias = net.filled(0, channels) if fresh else net.weight(channels)
    net.add(net.op("LayerNormalization", x, scale, bias), channels)


def residual(net: Net, pick: np.random.Generator) -> None:
    x, channels = net.last()
    y = net.other(pick, channels)
    net.add(net.op("Add", *([x, y] if pick.integers(2) else [y, x])), channels)


def glu(net: Net, _: np.random.Generator) -> None:
    x, channels = net.last()
    if channels % 2 == 0:
        halves = net.numbers(channels // 2, channels // 2)
        value, gate = net.op("Split", x, halves, outputs=2, axis=-1)
        net.add(net.op("Mul", value, net.op("Sigmoid", gate)), channels // 2)


def concat(net: Net, pick: np.random.Generator) -> None:
    parts = [net.last(), net.features[int(pick.integers(len(net.features)))]]
    width = sum(channels for _, channels in parts)
    if width <= 40:
        net.add(net.op("Concat", *(value for value, _ in parts), axis=-1), width)


def attention(net: Net, pick: np.random.Generator) -> None:
    """Multi-head attention; queries, keys and values apart, or one product cut into three."""
    x, channels = net.last()
    heads, size = int(pick.integers(1, 5)), int(pick.integers(1, 5))
    if pick.integers(2):
        query, key, value = (_projection(net, x, channels, heads, size) for _ in range(3))
    else:
        query, key, value = _fused_projections(net, x, channels, heads, size)
    scores = net.op("MatMul", query, net.op("Transpose", key, perm=[0, 1, 3, 2]))
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), value)
    together = net.op("Transpose", mixed, perm=[0, 2, 1, 3])
    merged = net.op("Reshape", together, net.numbers(0, LENGTH, heads * size))
    net.add(net.op("MatMul", merged, net.weight(heads * size, channels)), channels)


def _projection(net: Net, x: gs.Variable, channels: int, heads: int, size: int) -> gs.Variable:
    h = net.op("MatMul", x, net.weight(channels, heads * size))
    parts = net.op("Reshape", h, net.numbers(0, LENGTH, heads, size))
    return net.op("Transpose", parts, perm=[0, 2, 1, 3])


def _fused_projections(
    net: Net, x: gs.Variable, channels: int, heads: int, size: int
) -> list[gs.Variable]:
    h = net.op("MatMul", x, net.weight(channels, 3 * heads * size))
    parts = net.op("Reshape", h, net.numbers(0, LENGTH, 3, heads, size))
    moved = net.op("Transpose", parts, perm=[2, 0, 3, 1, 4])
    return [
        net.op("Gather", moved, gs.Constant(net.name("i"), np.array(i, np.int64)), axis=0)
        for i in range(3)
    ]


def regroup(net: Net, pick: np.random.Generator) -> None:
    """Cut the channels in two axes, do something there, and merge them again."""
    x, channels = net.last()
    first = int(pick.choice([g for g in range(1, channels + 1) if channels % g == 0]))
    parts = net.op("Reshape", x, net.numbers(0, LENGTH, first, channels // first))
    scaled = net.op("Mul", parts, net.weight(first, 1, around=1))
    net.add(net.op("Reshape", scaled, net.numbers(0, 0, -1)), channels)


def mean_over_time(net: Net, _: np.random.Generator) -> None:
    x, channels = net.last()
    mean = net.op("ReduceMean", x, axes=[1], keepdims=1)
    net.add(net.op("Add", x, mean), channels)


def normalise_by_hand(net: Net, _: np.random.Generator) -> None:
    """x / sqrt(mean(x^2) + eps), as RMSNorm is exported."""
    x, channels = net.last()
    square = net.op("Mul", x, x)
    mean = net.op("ReduceMean", square, axes=[-1], keepdims=1)
    epsilon = gs.Constant(net.name("e"), np.array(0.1, np.float32))
    root = net.op("Sqrt", net.op("Add", mean, epsilon))
    net.add(net.op("Div", x, root), channels)


def experts(net: Net, pick: np.random.Generator) -> None:
    """A router picks some experts for each position: they are looked up, or all of them run."""
    x, channels = net.last()
    count, hidden = int(pick.integers(2, 6)), int(pick.integers(2, 5))
    softmax_first = bool(pick.integers(2))
    scores = net.op("MatMul", x, net.weight(channels, count))
    ranked = net.op("Softmax", scores, axis=-1) if softmax_first else scores
    best = net.numbers(int(pick.integers(1, count + 1)))
    share, which = net.op("TopK", ranked, best, outputs=2)
    which.dtype = np.int64
    share = share if softmax_first else net.op("Softmax", share, axis=-1)
    up, down = net.weight(count, channels, hidden), net.weight(count, hidden, channels)
    if pick.integers(2):
        up, down = (net.op("Gather", part, which) for part in (up, down))
        line = net.op("Unsqueeze", x, net.numbers(2, 3))
        said = net.op("MatMul", net.op("Relu", net.op("MatMul", line, up)), down)
        said = net.op("Squeeze", said, net.numbers(3))
    else:
        share = _spread(net, pick, scores, which, share, count)
        said = net.op("Relu", net.op("Einsum", x, up, equation="ntc,ech->nteh"))
        said = net.op("Einsum", said, down, equation="nteh,ehc->ntec")
    weighed = net.op("Mul", said, net.op("Unsqueeze", share, net.numbers(3)))
    net.add(net.op("ReduceSum", weighed, net.numbers(2), keepdims=0), channels)


def _spread(
    net: Net, pick: np.random.Generator, scores: Any, which: Any, share: Any, count: int
) -> gs.Variable:
    """The shares of those that were picked among zeros for the others."""
    form = int(pick.integers(3))
    if form == 0:
        nothing = net.op("Sub", scores, scores)
        return net.op("ScatterElements", nothing, which, share, axis=-1)
    if form == 1:
        ends = gs.Constant(net.name("e"), np.array([0, 1], np.float32))
        marks = net.op("OneHot", which, net.numbers(count), ends)
    else:
        line = net.op("Unsqueeze", which, net.numbers(3))
        line.dtype = np.int64
        same = net.op("Equal", line, net.numbers(*range(count)))
        same.dtype = np.bool_
        marks = net.op("Cast", same, to=onnx.TensorProto.FLOAT)
    parts = net.op("Mul", marks, net.op("Unsqueeze", share, net.numbers(3)))
    return net.op("ReduceSum", parts, net.numbers(2), keepdims=0)


SEQUENCE_STEPS: dict[str, StepFunction] = {
    step.__name__: step
    for step in (
        linear, norm, residual, glu, concat, attention, regroup, mean_over_time,
        normalise_by_hand, activation, experts,
    )
}  # fmt: skip
