"""Weights and features that are stored as integers: QDQ pairs, and packed weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.operators.harness import Row, check, row

MS = "com.microsoft."

# --- quantise and dequantise -----------------------------------------------------------------


def qdq(
    *, scale: str = "float scale = {0.1}", zero: str = "int8 zero = {0}",
    attributes: str = "axis=0", features: str = "int8 fz = {0}", operands: str = "w, scale, zero",
) -> str:  # fmt: skip
    """A quantised convolution weight, and features quantised after a Relu."""
    return f"""
        (float[N,3,8,8] x) => (float[N,2,6,6] y)
        <int8[6,3,3,3] w, int32[6] b, int8[2,6,1,1] v, {scale}, {zero},
         float fs = {{0.3}}, float bs = {{0.01}}, {features}>
        {{
            wf = DequantizeLinear<{attributes}>({operands})
            bf = DequantizeLinear(b, bs)
            c = Conv(x, wf, bf)
            r = Relu(c)
            q = QuantizeLinear(r, fs, fz)
            h = DequantizeLinear(q, fs, fz)
            vf = DequantizeLinear(v, fs)
            y = Conv(h, vf)
        }}"""


CUT = ("w:0", "b:0", "v:1")

PAIRS = [
    row("per tensor", qdq(), *CUT),
    row("per tensor, unsigned features", qdq(features="uint8 fz = {128}"), *CUT),
    row(
        "per channel",
        qdq(scale="float[6] scale", zero="int8[6] zero = {0,0,0,0,0,0}"), *CUT, "scale:0", "zero:0",
    ),
    row(
        "per channel, zero points",
        qdq(scale="float[6] scale", zero="int8[6] zero"), *CUT, "scale:0", "zero:0",
    ),
    row("no zero point", qdq(operands="w, scale"), *CUT),
    row("opset 10", qdq(attributes="").replace("<>", ""), *CUT, opset=10),
    row("opset 13", qdq(), *CUT, opset=13),
    row(
        "weight with a zero point",
        qdq(zero="int8 zero = {3}"), *CUT,
    ),
    row(
        "next weight with a zero point",
        """
        (float[N,4] x) => (float[N,2] y)
        <float[4,6] w, int8[6,2] v, float scale = {0.1}, int8 zero = {3}>
        {
            h = MatMul(x, w)
            s = Sigmoid(h)
            vf = DequantizeLinear(v, scale, zero)
            y = MatMul(s, vf)
        }""",
        "w:1", "v:0",
        exact=False,
    ),
    row(
        "features per channel",
        """
        (float[N,4,5] x) => (float[N,2,5] y)
        <float[6,4,1] w, float[2,6,1] v, float[6] scale, uint8[6] zero>
        {
            h = Conv(x, w)
            q = QuantizeLinear<axis=1>(h, scale, zero)
            d = DequantizeLinear<axis=1>(q, scale, zero)
            y = Conv(d, v)
        }""",
        "w:0", "v:1", "scale:0", "zero:0",
        exact=False,  # a zeroed scale divides by zero
    ),
    row(
        "in blocks along the input features",
        """
        (float[N,4] x) => (float[N,3] y)
        <float[4,8] w, int8[8,6] v, float[2,6] scale, int8[2,6] zero, float[6,3] u>
        {
            h = MatMul(x, w)
            vf = DequantizeLinear<axis=0, block_size=4>(v, scale, zero)
            g = MatMul(h, vf)
            y = MatMul(g, u)
        }""",
        "v:1", "scale:1", "zero:1", "u:0",
        frozen={"v:0": "quantised in blocks", "w:1": "quantised in blocks"},
    ),
    row(
        "4 bits",
        """
        (float[N,4] x) => (float[N,3] y)
        <float[4,8] w, float[3] b, float scale = {0.1}, int4[8,3] v>
        {
            h = MatMul(x, w)
            vf = DequantizeLinear(v, scale)
            m = MatMul(h, vf)
            y = Add(m, b)
        }""",
        "w:1", "v:0",
    ),
    row(
        "ONNX Runtime's own",
        f"""
        (float[N,4] x) => (float[N,3] y)
        <uint8[4,8] w, float[8] scale, uint8[8] zero, float[8,3] v, float fs = {{0.1}},
         uint16 fz = {{9}}>
        {{
            wf = {MS}DequantizeLinear<axis=1>(w, scale, zero)
            h = MatMul(x, wf)
            q = {MS}QuantizeLinear(h, fs, fz)
            d = {MS}DequantizeLinear(q, fs, fz)
            y = MatMul(d, v)
        }}""",
        "w:1", "scale:0", "zero:0", "v:0",
    ),
    row(
        "recurrent weights",
        """
        (float[5,N,3] x) => (float[5,N,2] y)
        <int8[1,16,3] w, float[1,16,4] r, float[4,2] v, float scale = {0.1}, int64[1] one = {1}>
        {
            wf = DequantizeLinear(w, scale)
            h = LSTM<hidden_size=4>(x, wf, r)
            s = Squeeze(h, one)
            y = MatMul(s, v)
        }""",
        "w:1", "r:1", "r:2", "v:0",
    ),
]  # fmt: skip

# --- packed weights --------------------------------------------------------------------------

PACKED = [
    row(
        "blocks of 4 bits",
        f"""
        (float[N,4] x) => (float[N,3] y)
        <float[4,32] w, uint8[3,1,16] v, float[3] scale>
        {{
            h = MatMul(x, w)
            y = {MS}MatMulNBits<K=32, N=3, bits=4, block_size=32>(h, v, scale)
        }}""",
        frozen={"w:1": "packed in blocks", "v:0": "packed in blocks"},
    ),
    *(
        row(
            operator,
            f"""
            (float[N,4] x) => (float[N,3] y) <float[4,32] w, uint8[48] v, float[3] scale>
            {{
                h = MatMul(x, w)
                y = {MS}{operator}<{attributes}>(h, v, scale)
            }}""",
            frozen={"w:1": reason},
            runs=False,
        )
        for operator, attributes, reason in (
            ("MatMulBnb4", "K=32, N=3, block_size=32, quant_type=1", "packed in blocks"),
            ("MatMulFpQ4", "blk_quant_type=1", "packed in blocks"),
            ("GatherBlockQuantized", "block_size=32", "packed in blocks"),
            ("QEmbedLayerNormalization", "epsilon=0.1", "layout of its own"),
            ("QMoE", "k=1", "layout of its own"),
        )
    ),
]  # fmt: skip

ROWS = [*PAIRS, *PACKED]


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_row(entry: Row, tmp_path: Path) -> None:
    check(entry, tmp_path)
