"""The analysis takes time in proportion to the network: no rule looks at all relations."""

from __future__ import annotations

import onnx
import pytest

from spa_graph import analyze
from spa_graph.coupling.relations import Axis, Relations
from spa_graph.models_zoo.builder import Builder

CHANNELS, GROUPS, SIZE = 8, 4, 4


def normalised(blocks: int) -> onnx.ModelProto:
    """A chain of convolutions, each with a group normalisation as exporters write it."""
    net = Builder("normalised")
    x = net.input("x", ("batch", CHANNELS, SIZE, SIZE))
    for block in range(blocks):
        x = net.conv(f"conv{block}", x, CHANNELS, CHANNELS, 1)
        x = net.reshape(x, 0, GROUPS, -1)
        scale, bias = (net.vector(f"norm{block}.{v}", GROUPS, 0.5, 1.5) for v in ("scale", "bias"))
        x = net.op("InstanceNormalization", x, scale, bias)
        x = net.relu(net.reshape(x, 0, CHANNELS, SIZE, SIZE))
    return net.finish(net.linear("head", net.pool(x), CHANNELS, 2), ("batch", 2))


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[Axis]:
    """Every axis whose Dim was asked for."""
    found: list[Axis] = []
    dim = Relations.dim

    def counting(self: Relations, axis: Axis) -> Axis:
        found.append(axis)
        return dim(self, axis)

    monkeypatch.setattr(Relations, "dim", counting)
    return found


def test_normalisations_do_not_search_each_other(looked_up: list[Axis]) -> None:
    def steps(blocks: int) -> int:
        looked_up.clear()
        assert len(analyze(normalised(blocks)).groups) == blocks
        return len(looked_up)

    few, many = steps(10), steps(80)
    assert many < 8.5 * few
