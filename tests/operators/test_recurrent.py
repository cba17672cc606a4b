"""LSTM, GRU, RNN: directions, biases, states, peepholes, layouts, activations."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.operators.harness import Row, check, row


def cell(
    kind: str,
    *,
    attributes: str = "",
    operands: str = "x, w, r",
    weights: str = "",
    directions: int = 1,
    outputs: str = "h",
    shape: str = "5,N,2",
    read: str = "t = Transpose<perm=[0,2,1,3]>(h) f = Reshape(t, shape)",
) -> str:
    """x (5, N, 3) -> a cell of 4 hidden units -> a linear layer over its outputs."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    width = 4 * directions
    return f"""
        (float[5,N,3] x) => (float[{shape}] y)
        <float[{directions},{4 * gates},3] w, float[{directions},{4 * gates},4] r,
         float[{width},2] v, int64[3] shape = {{0, 0, -1}} {weights}>
        {{
            {outputs} = {kind}<hidden_size=4 {attributes}>({operands})
            {read}
            y = MatMul(f, v)
        }}"""


CUT = ("w:1", "r:1", "r:2", "v:0")
BIASED = (*CUT, "b:1")
LAST = "f = Squeeze(h, zero)"
ZERO = ", int64[1] zero = {0}"

ROWS = [
    row("lstm", cell("LSTM"), *CUT),
    row("gru", cell("GRU"), *CUT),
    row("rnn", cell("RNN"), *CUT),
    row("lstm opset 9", cell("LSTM"), *CUT, opset=9),
    row("gru opset 14", cell("GRU"), *CUT, opset=14),
    row("lstm reverse", cell("LSTM", attributes=', direction="reverse"'), *CUT),
    row(
        "lstm bidirectional, bias",
        cell(
            "LSTM", attributes=', direction="bidirectional"', directions=2,
            operands="x, w, r, b", weights=", float[2,32] b",
        ),
        *BIASED,
        frozen={"w:0": "counts the directions", "w:2": "is graph input `x`"},
    ),
    row(
        "gru bidirectional, bias, linear before reset",
        cell(
            "GRU", attributes=', direction="bidirectional", linear_before_reset=1', directions=2,
            operands="x, w, r, b", weights=", float[2,24] b",
        ),
        *BIASED,
    ),
    row(
        "rnn bidirectional, relu",
        cell(
            "RNN", attributes=', direction="bidirectional", activations=["Relu", "Tanh"]',
            directions=2, operands="x, w, r, b", weights=", float[2,8] b",
        ),
        *BIASED,
    ),
    row(
        "lstm peepholes, clip",
        cell(
            "LSTM", attributes=", clip=0.5", operands="x, w, r, b, , , , p",
            weights=", float[1,32] b, float[1,12] p",
        ),
        *BIASED, "p:1",
    ),
    row(
        "lstm last state only",
        cell("LSTM", outputs=", h", shape="N,2", read=LAST, weights=ZERO),
        *CUT,
    ),
    row(
        "lstm cell state only",
        cell("LSTM", outputs=", , h", shape="N,2", read=LAST, weights=ZERO),
        *CUT,
    ),
    row(
        "lstm layout 1",
        """
        (float[N,5,3] x) => (float[N,5,2] y)
        <float[1,16,3] w, float[1,16,4] r, float[4,2] v, int64[1] two = {2}>
        {
            h = LSTM<hidden_size=4, layout=1>(x, w, r)
            f = Squeeze(h, two)
            y = MatMul(f, v)
        }""",
        *CUT,
        runs=False,  # ONNX Runtime's CPU kernel wants layout 0
    ),
    row(
        "lstm learned states",
        """
        (float[5,1,3] x) => (float[5,1,2] y)
        <float[1,16,3] w, float[1,16,4] r, float[1,1,4] h0, float[1,1,4] c0, float[4,2] v,
         int64[1] one = {1}>
        {
            h = LSTM<hidden_size=4>(x, w, r, , , h0, c0)
            f = Squeeze(h, one)
            y = MatMul(f, v)
        }""",
        *CUT, "h0:2", "c0:2",
    ),
    row(
        "gru zero state of dynamic batch",
        """
        (float[5,N,3] x) => (float[5,N,2] y)
        <float[1,12,3] w, float[1,12,4] r, float[4,2] v, int64[1] one = {1}, int64[1] four = {4}>
        {
            n = Shape<start=1, end=2>(x)
            sizes = Concat<axis=0>(one, n, four)
            h0 = ConstantOfShape(sizes)
            h = GRU<hidden_size=4>(x, w, r, , , h0)
            f = Squeeze(h, one)
            y = MatMul(f, v)
        }""",
        *CUT,
    ),
    row(
        "lstm states are graph inputs",
        """
        (float[5,1,3] x, float[1,1,4] h0, float[1,1,4] c0) => (float[5,1,2] y)
        <float[1,16,3] w, float[1,16,4] r, float[4,2] v, int64[1] one = {1}>
        {
            h = LSTM<hidden_size=4>(x, w, r, , , h0, c0)
            f = Squeeze(h, one)
            y = MatMul(f, v)
        }""",
        frozen={"w:1": "is graph input `h0`", "r:2": "is graph input `h0`"},
    ),
    row(
        "lstm sequence lengths",
        """
        (float[5,2,3] x) => (float[5,2,2] y)
        <float[1,16,3] w, float[1,16,4] r, float[4,2] v, int64[1] one = {1}, int32[2] n = {3, 5}>
        {
            h = LSTM<hidden_size=4>(x, w, r, , n)
            f = Squeeze(h, one)
            y = MatMul(f, v)
        }""",
        *CUT,
        frozen={"n:0": "runs over sequences"},
    ),
    row(
        "gru whose activation loses zero, then a sum over features",
        """
        (float[5,N,3] x) => (float[5,1,N] y)
        <float[1,12,3] w, float[1,12,4] r, int64[1] last = {3}>
        {
            h = GRU<hidden_size=4, activations=["Sigmoid", "Sigmoid"]>(x, w, r)
            s = ReduceSum<keepdims=0>(h, last)
            y = Identity(s)
        }""",
        "w:1", "r:2",
        exact=False,
    ),
    row(
        "lstm whose gates are put in order inside the network",
        """
        (float[5,N,3] x) => (float[5,N,2] y)
        <float[16,3] w, float[16,4] r, float[4,2] v, int64[1] one = {1}, int64[1] none = {0},
         int64[1] four = {4}, int64[1] eight = {8}, int64[1] twelve = {12}, int64[1] all = {16}>
        {
            wi = Slice(w, none, four) wf = Slice(w, four, eight)
            wc = Slice(w, eight, twelve) wo = Slice(w, twelve, all)
            ws = Concat<axis=0>(wi, wo, wf, wc) wd = Unsqueeze(ws, none)
            rd = Unsqueeze(r, none)
            h = LSTM<hidden_size=4>(x, wd, rd)
            f = Squeeze(h, one)
            y = MatMul(f, v)
        }""",
        "w:0", "r:0", "r:1", "v:0",
    ),
    row(
        "two stacked layers",
        """
        (float[5,N,3] x) => (float[5,N,2] y)
        <float[1,16,3] w, float[1,16,4] r, float[1,32] b, float[1,18,4] w2, float[1,18,6] r2,
         float[6,2] v, int64[1] one = {1}>
        {
            h = LSTM<hidden_size=4>(x, w, r, b)
            s = Squeeze(h, one)
            h2 = GRU<hidden_size=6>(s, w2, r2)
            s2 = Squeeze(h2, one)
            y = MatMul(s2, v)
        }""",
        "w:1", "r:2", "b:1", "w2:2", "w2:1", "r2:2", "v:0",
    ),
]  # fmt: skip


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_row(entry: Row, tmp_path: Path) -> None:
    check(entry, tmp_path)
