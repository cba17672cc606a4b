"""Normalisations: exact where they treat channels one by one, else renormalising."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.operators.harness import Row, check, row


def images(lines: str, weights: str, *, y: str = "N,2,6,6", rank: str = "6,6") -> str:
    """x (N, 3, 6, 6) -> h (N, 8, 6, 6) -> lines, which compute a -> y."""
    ones = ",".join("1" for _ in rank.split(","))
    return f"""
        (float[N,3,{rank}] x) => (float[{y}] y)
        <float[8,3,{ones}] w, float[2,8,{ones}] v, {weights}>
        {{ h = Conv(x, w) {lines} y = Conv(a, v) }}"""


def tokens(lines: str, weights: str = "", *, y: str = "N,5,2") -> str:
    """x (N, 5, 4) -> h (N, 5, 8) -> lines, which compute a -> y."""
    return f"""
        (float[N,5,4] x) => (float[{y}] y) <float[4,8] w, float[8,2] v {weights}>
        {{ h = MatMul(x, w) {lines} y = MatMul(a, v) }}"""


IMAGE, TOKEN = ("w:0", "v:1"), ("w:1", "v:0")
SCALED = ", float[8] scale, float[8] b"
STATISTICS = "float[8] scale, float[8] b, float[8] mean, float[8] var"
ALL = ("scale:0", "b:0", "mean:0", "var:0")

PER_CHANNEL = [
    row("batch norm", images("a = BatchNormalization(h, scale, b, mean, var)", STATISTICS),
        *IMAGE, *ALL),
    row("batch norm opset 9", images("a = BatchNormalization(h, scale, b, mean, var)", STATISTICS),
        *IMAGE, *ALL, opset=9),
    row("batch norm 1d", images("a = BatchNormalization(h, scale, b, mean, var)", STATISTICS,
        rank="6", y="N,2,6"), *IMAGE, *ALL, opset=14),
    row("batch norm of a matrix", """
        (float[N,4] x) => (float[N,2] y)
        <float[4,8] w, float[8,2] v, float[8] scale, float[8] b, float[8] mean, float[8] var>
        { h = MatMul(x, w) a = BatchNormalization(h, scale, b, mean, var) y = MatMul(a, v) }""",
        *TOKEN, *ALL),
    row("batch norm in training", images(
        "a, m, s = BatchNormalization<training_mode=1>(h, scale, b, mean, var)", STATISTICS),
        *IMAGE, *ALL),
    row("weights that are standardised", """
        (float[N,3,6,6] x) => (float[N,2,2,2] y)
        <float[8,3,3,3] w, float[2,8,3,3] v, float[8] scale, float[8] b, float[8] mean,
         float[8] var, int64[3] rows = {1, 8, -1}, int64[4] kernels = {8, -1, 3, 3}>
        { r = Reshape(w, rows)
          s, m, t = BatchNormalization<training_mode=1>(r, scale, b, mean, var)
          k = Reshape(s, kernels) h = Conv(x, k) y = Conv(h, v) }""",
        "w:0", "v:1", *ALL),
    row("instance norm", images("a = InstanceNormalization(h, scale, b)",
        "float[8] scale, float[8] b"), *IMAGE, "scale:0", "b:0"),
    row("instance norm without epsilon", images(
        "a = InstanceNormalization<epsilon=0.0>(h, scale, b)",
        "float[8] scale, float[8] b"), *IMAGE, "scale:0", "b:0", exact=False),
    row("mean and variance per channel", images("a = MeanVarianceNormalization<axes=[2,3]>(h)",
        "float unused"), *IMAGE, exact=False),
]  # fmt: skip

OVER_CHANNELS = [
    row("layer norm", tokens("a = LayerNormalization(h, scale, b)", SCALED),
        *TOKEN, "scale:0", "b:0", exact=False),
    row("layer norm without bias, statistics", tokens(
        "a, m, s = LayerNormalization<axis=2>(h, scale)", ", float[8] scale"),
        *TOKEN, "scale:0", exact=False),
    row("layer norm over two axes", tokens("a = LayerNormalization<axis=1>(h, scale, b)",
        ", float[5,8] scale, float[5,8] b"), *TOKEN, "scale:1", "b:1", exact=False,
        frozen={"scale:0": "is graph"}),
    row("rms norm", tokens("a = RMSNormalization(h, scale)", ", float[8] scale"),
        *TOKEN, "scale:0", exact=False, opset=23, runs=False),
    row("layer norm by hand", tokens(
        """
        m = ReduceMean<keepdims=1>(h, last) d = Sub(h, m) q = Mul(d, d)
        s = ReduceMean<keepdims=1>(q, last) e = Add(s, tiny) r = Sqrt(e) n = Div(d, r)
        t = Mul(n, scale) a = Add(t, b)""",
        SCALED + ", int64[1] last = {-1}, float tiny = {0.001}"),
        *TOKEN, "scale:0", "b:0", exact=False),
    row("lp norm", tokens("a = LpNormalization<axis=-1, p=2>(h)"), *TOKEN, exact=False),
    row("mean and variance over channels", images("a = MeanVarianceNormalization<axes=[1]>(h)",
        "float unused"), *IMAGE, exact=False),
]  # fmt: skip

GROUPS = [
    row("group norm, per channel", images("a = GroupNormalization<num_groups=4>(h, scale, b)",
        "float[8] scale, float[8] b"), *IMAGE, "scale:0", "b:0", exact=None, opset=21),
    row("group norm, per group", images("a = GroupNormalization<num_groups=4>(h, scale, b)",
        "float[4] scale, float[4] b"), *IMAGE, "scale:0", "b:0", exact=None, declared_opset=18),
    row("one group", images("a = GroupNormalization<num_groups=1>(h, scale, b)",
        "float[8] scale, float[8] b"), *IMAGE, "scale:0", "b:0", exact=False, opset=21),
    row("a group per channel", images("a = GroupNormalization<num_groups=8>(h, scale, b)",
        "float[8] scale, float[8] b"), *IMAGE, "scale:0", "b:0", exact=None, opset=21),
    row("group norm of one group by instance norm", images(
        """
        r = Reshape(h, s) i = InstanceNormalization(r, scale, b) g = Shape(h) q = Reshape(i, g)
        m = Mul(q, gain) a = Add(m, shift)""",
        "float[1] scale, float[1] b, int64[3] s = {0, 1, -1}, float[8,1,1] gain,"
        " float[8,1,1] shift"), *IMAGE, "gain:0", "shift:0", exact=False),
    row("group norm by instance norm", images(
        """
        r = Reshape(h, s) i = InstanceNormalization(r, scale, b) g = Shape(h) q = Reshape(i, g)
        m = Mul(q, gain) a = Add(m, shift)""",
        "float[4] scale, float[4] b, int64[3] s = {0, 4, -1}, float[8,1,1] gain,"
        " float[8,1,1] shift"), *IMAGE, "scale:0", "b:0", "gain:0", "shift:0", exact=None),
]  # fmt: skip

SOFTMAX = [
    *(
        row(f"{name} over channels", tokens(f"a = {name}(h)"), frozen={"w:1": "is normalised over"})
        for name in ("Softmax", "LogSoftmax", "Hardmax")
    ),
    row("over tokens", tokens("a = Softmax<axis=1>(h)"), *TOKEN),
    row("opset 11 flattens", tokens("a = Softmax<axis=1>(h)"),
        frozen={"w:1": "is normalised over"}, opset=11),
]  # fmt: skip

ROWS = [*PER_CHANNEL, *OVER_CHANNELS, *GROUPS, *SOFTMAX]


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_row(entry: Row, tmp_path: Path) -> None:
    check(entry, tmp_path)
