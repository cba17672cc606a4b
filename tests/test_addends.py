"""What a result is added to, and that it makes up for what that lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from spa_graph import analyze, prune
from spa_graph.passes.reconstruct import sites
from spa_graph.passes.reconstruct.addends import Addend, find_addend
from tests.models import network, stored
from tests.test_reconstruct import error, samples

STREAM = """net (float[N,3,4,4] x) => (float[N,4,4,4] y)
<float[4,3,1,1] w1, float[4,3,1,1] w2, float[4] g, float[4] s, float[4] m, float[4] v,
 float[4,1,1] k, float one>
{ z = Conv(x, w1) a = Conv(x, w2) """


def stream(body: str) -> onnx.ModelProto:
    return network(STREAM + body + "}", values={"v": np.full(4, 0.25, np.float32)})


def found(body: str, result: str = "a") -> Addend | None:
    graph = analyze(stream(body)).graph
    return find_addend(result, -3, graph, graph.uses())


def test_a_result_that_is_added_at_once() -> None:
    addend = found("y = Add(z, a)")
    assert addend is not None and addend.value == "z"
    np.testing.assert_array_equal(addend.factor, np.ones(4))


def test_constants_on_the_way_are_a_factor() -> None:
    normalised = "n = BatchNormalization<epsilon=0.0>(a, g, s, m, v)"
    body = f"{normalised} c = Mul(k, n) b = Add(c, k) y = Add(b, z)"
    addend = found(body)
    values = stored(stream(body))
    assert addend is not None and addend.value == "z"
    want = values["g"] / 0.5 * values["k"].reshape(-1)
    np.testing.assert_allclose(addend.factor, want, rtol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        "r = Relu(a) y = Add(r, z)",
        "n = Neg(a) o = Add(a, n) y = Add(o, z)",
        "y = Mul(a, z)",
        "r = ReduceMean<axes=[2,3]>(z) y = Add(a, r)",
    ],
    ids=["activation", "read twice", "product", "broadcast"],
)
def test_anything_else_is_no_addend(body: str) -> None:
    assert found(body) is None


def test_what_is_lost_is_divided_by_the_factor_but_where_it_is_faint() -> None:
    dense = np.arange(24, dtype=np.float32).reshape(2, 3, 4)  # (samples, channels, positions)
    addend = Addend("z", np.array([2.0, 1e-4]), -2)
    lost = addend.lost(dense, np.zeros((2, 2, 4)), np.array([True, False, True]), np.array([0, 5]))
    np.testing.assert_allclose(lost, [[0 / 2, 0], [13 / 2, 0]])


def residual() -> onnx.ModelProto:
    """The stream goes through a layer that loses channels, the branch does not."""
    text = """net (float[N,12] x) => (float[N,6] y)
    <float[12,32] w1, float[32,6] w2, float[12,12] w3, float[12,12] w4, float[12,6] w5>
    { a = MatMul(x, w1) r = Relu(a) z = MatMul(r, w2)
      b = MatMul(x, w3) c = MatMul(b, w4) d = MatMul(c, w5) y = Add(d, z) }"""
    return network(text)


def test_a_branch_makes_up_for_what_the_stream_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    model = residual()
    options: dict[str, Any] = {
        "ratio": 0.75,
        "exclude": ("w3", "w4"),
        "calibrate": samples(model, 512),
    }
    with_addend = error(model, prune(model, **options).model)
    monkeypatch.setattr(sites, "find_addend", lambda *_: None)
    without = error(model, prune(model, **options).model)
    assert with_addend < 0.8 * without
