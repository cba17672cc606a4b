"""What pruned operators compute, against their formulas in numpy over the kept channels.

The other rows are compared with a masked network that the program builds; these aren't.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph import Plan, apply_plan
from tests.models import outputs, stored
from tests.operators.harness import row

Array = NDArray[Any]
Kept = dict[str, dict[int, list[int]]]


def pruned(folder: Path, text: str, kept: Kept, feed: Array, opset: int = 21) -> tuple[Any, Array]:
    """The weights of a network, and what is computed once only `kept` is left of them."""
    model = row("by hand", text, opset=opset).model()
    axes = {
        name: {axis: np.array(index) for axis, index in own.items()} for name, own in kept.items()
    }
    apply_plan(model, Plan({}, axes), output=folder / "pruned.onnx")
    return stored(model), outputs(folder / "pruned.onnx", {"x": feed})[0]


def random(*shape: int) -> Array:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_layer_norm_normalises_over_what_is_left(tmp_path: Path) -> None:
    x, left = random(2, 5, 4), [0, 3, 4, 7]
    weights, got = pruned(
        tmp_path,
        """(float[N,5,4] x) => (float[N,5,2] y)
           <float[4,8] w, float[8] scale, float[8] b, float[8,2] v>
           { h = MatMul(x, w) a = LayerNormalization<epsilon=0.0>(h, scale, b) y = MatMul(a, v) }
        """,
        {"w": {1: left}, "scale": {0: left}, "b": {0: left}, "v": {0: left}},
        x,
    )
    h = x @ weights["w"][:, left]
    h = (h - h.mean(-1, keepdims=True)) / h.std(-1, keepdims=True)
    want = (h * weights["scale"][left] + weights["b"][left]) @ weights["v"][left]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_group_norm_loses_whole_groups(tmp_path: Path) -> None:
    x, left = random(2, 3, 4, 4), [2, 3, 6, 7]
    weights, got = pruned(
        tmp_path,
        """(float[N,3,4,4] x) => (float[N,2,4,4] y)
           <float[8,3,1,1] w, float[8] scale, float[8] b, float[2,8,1,1] v>
           {
               h = Conv(x, w)
               a = GroupNormalization<num_groups=4, epsilon=0.01>(h, scale, b)
               y = Conv(a, v)
           }""",
        {"w": {0: left}, "scale": {0: left}, "b": {0: left}, "v": {1: left}},
        x,
    )
    h = np.einsum("nchw,oc->nohw", x, weights["w"][left, :, 0, 0])
    g = h.reshape(2, 2, 2, 4, 4)
    g = (g - g.mean((2, 3, 4), keepdims=True)) / np.sqrt(g.var((2, 3, 4), keepdims=True) + 0.01)
    shape = (1, -1, 1, 1)
    a = g.reshape(h.shape) * weights["scale"][left].reshape(shape) + weights["b"][left].reshape(
        shape
    )
    want = np.einsum("nchw,oc->nohw", a, weights["v"][:, left, 0, 0])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_mean_over_channels_divides_by_what_is_left(tmp_path: Path) -> None:
    x, left = random(2, 4), [1, 2, 5]
    weights, got = pruned(
        tmp_path,
        """(float[N,4] x) => (float[N,1] y) <float[4,8] w, int64[1] last = {1}>
           { h = MatMul(x, w) s = Sigmoid(h) y = ReduceMean(s, last) }""",
        {"w": {1: left}},
        x,
    )
    want = sigmoid(x @ weights["w"][:, left]).mean(-1, keepdims=True)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_lstm_runs_over_the_units_that_are_left(tmp_path: Path) -> None:
    x, left = random(5, 2, 3), [0, 2]
    gates = [gate * 4 + unit for gate in range(4) for unit in left]
    biases = [gate * 4 + unit for gate in range(8) for unit in left]
    weights, got = pruned(
        tmp_path,
        """(float[5,2,3] x) => (float[5,1,2,2] y)
           <float[1,16,3] w, float[1,16,4] r, float[1,32] b, float[4,2] v>
           { h = LSTM<hidden_size=4>(x, w, r, b) y = MatMul(h, v) }""",
        {"w": {1: gates}, "r": {1: gates, 2: left}, "b": {1: biases}, "v": {0: left}},
        x,
    )
    w, r = weights["w"][0][gates], weights["r"][0][gates][:, left]
    shift = weights["b"][0][biases].reshape(2, -1).sum(0)
    h = c = np.zeros((2, 2), np.float32)
    for step, want in zip(x, got[:, 0], strict=True):
        i, o, f, g = np.split(step @ w.T + h @ r.T + shift, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        np.testing.assert_allclose(h @ weights["v"][left], want, rtol=1e-4, atol=1e-5)


def test_attention_loses_heads_with_the_queries_that_share_them(tmp_path: Path) -> None:
    x, heads, shared, size = random(1, 6, 8), 4, 2, 8
    left = [1]  # the second head of keys and values, and the two queries that share it
    queries = [(2 * head + i) * size + j for head in left for i in range(2) for j in range(size)]
    keys = [head * size + j for head in left for j in range(size)]
    weights, got = pruned(
        tmp_path,
        f"""(float[1,6,8] x) => (float[1,6,5] y)
            <float[8,{heads * size}] wq, float[8,{shared * size}] wk, float[8,{shared * size}] wv,
             float[{heads * size},5] wo>
            {{
                q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
                a = Attention<q_num_heads={heads}, kv_num_heads={shared}>(q, k, v)
                y = MatMul(a, wo)
            }}""",
        {"wq": {1: queries}, "wk": {1: keys}, "wv": {1: keys}, "wo": {0: queries}},
        x,
        opset=23,
    )
    q = (x[0] @ weights["wq"][:, queries]).reshape(6, 2, size)
    k, v = (x[0] @ weights[name][:, keys] for name in ("wk", "wv"))
    scores = softmax(np.einsum("qhd,kd->hqk", q, k) / np.sqrt(size))
    want = np.einsum("hqk,kd->qhd", scores, v).reshape(6, -1) @ weights["wo"][queries]
    np.testing.assert_allclose(got[0], want, rtol=1e-3, atol=1e-4)


def test_quantised_convolution_loses_scales_and_zero_points(tmp_path: Path) -> None:
    x, left = np.arange(36, dtype=np.uint8).reshape(1, 4, 3, 3), [1, 4]
    weights, got = pruned(
        tmp_path,
        """(uint8[1,4,3,3] x) => (float[1,2,3,3] y)
           <int8[6,4,1,1] w, float[6] scale, int8[6] zero = {0,0,0,0,0,0}, int32[6] b,
            float[2,6,1,1] v, float xs = {0.5}, uint8 xz = {10}, float ys = {0.25},
            uint8 yz = {128}>
           {
               h = QLinearConv(x, xs, xz, w, scale, zero, ys, yz, b)
               d = DequantizeLinear(h, ys, yz)
               y = Conv(d, v)
           }""",
        {"w": {0: left}, "scale": {0: left}, "zero": {0: left}, "b": {0: left}, "v": {1: left}},
        x,
    )
    sums = np.einsum("nchw,oc->nohw", x.astype(int) - 10, weights["w"][left, :, 0, 0].astype(int))
    real = (sums + weights["b"][left].reshape(1, -1, 1, 1)) * 0.5
    real = real * weights["scale"][left].reshape(1, -1, 1, 1)
    h = np.clip(np.rint(real / 0.25) + 128, 0, 255)
    want = np.einsum("nchw,oc->nohw", (h - 128) * 0.25, weights["v"][:, left, 0, 0])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
