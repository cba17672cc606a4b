"""Integer kernels: ONNX's, and ONNX Runtime's QLinear operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.operators.harness import Row, check, row

MS = "com.microsoft."

CUT = ("w:0", "b:0", "v:1")


def integer_conv(
    *, domain: str = "", weight_zero: str = "int8 wz = {0}", out_zero: str = "uint8 yz = {0}",
    scale: str = "float ws = {0.1}", bias: str = ", b",
) -> str:  # fmt: skip
    return f"""
        (float[N,3,8,8] x) => (float[N,2,6,6] y)
        <int8[6,3,3,3] w, int8[2,6,1,1] v, int32[6] b, float s = {{0.1}}, float ys = {{0.2}},
         uint8 xz = {{100}}, int8 vz = {{0}}, {weight_zero}, {out_zero}, {scale}>
        {{
            q = QuantizeLinear(x, s, xz)
            h = {domain}QLinearConv(q, s, xz, w, ws, wz, ys, yz {bias})
            g = {domain}QLinearConv(h, ys, yz, v, s, vz, ys, yz)
            y = DequantizeLinear(g, ys, yz)
        }}"""


CONVOLUTIONS = [
    row("conv", integer_conv(), *CUT),
    row("conv, no bias", integer_conv(bias=""), "w:0", "v:1"),
    row("conv, features around 128", integer_conv(out_zero="uint8 yz = {128}"), *CUT),
    row(
        "conv, per channel",
        integer_conv(scale="float[6] ws", weight_zero="int8[6] wz = {0,0,0,0,0,0}"),
        *CUT, "ws:0", "wz:0",
    ),
    row("conv of ONNX Runtime", integer_conv(domain=MS), *CUT),
    row(
        "conv, channels last",
        f"""
        (uint8[N,8,8,3] x) => (uint8[N,6,6,2] y)
        <int8[6,3,3,3] w, int8[2,6,1,1] v, float s = {{0.1}}, float ys = {{3.0}}, uint8 xz = {{0}},
         int8 wz = {{0}}>
        {{
            h = {MS}QLinearConv<channels_last=1>(x, s, xz, w, s, wz, ys, xz)
            y = {MS}QLinearConv<channels_last=1>(h, ys, xz, v, s, wz, ys, xz)
        }}""",
        "w:0", "v:1",
    ),
    row(
        "conv, groups",
        """
        (uint8[N,3,8,8] x) => (uint8[N,2,6,6] y)
        <int8[6,3,1,1] u, int8[6,1,3,3] w, int8[2,6,1,1] v, float s = {0.1}, float ys = {3.0},
         uint8 xz = {0}, int8 wz = {0}>
        {
            a = QLinearConv(x, s, xz, u, s, wz, s, xz)
            h = QLinearConv<group=6>(a, s, xz, w, s, wz, ys, xz)
            y = QLinearConv(h, ys, xz, v, s, wz, ys, xz)
        }""",
        "u:0", "w:0", "v:1",
    ),
    row(
        "dynamically quantised features",
        """
        (float[N,3,8,8] x) => (float[N,2,6,6] y)
        <int8[6,3,3,3] w, int8[2,6,1,1] v, int8 wz = {0}, float s = {0.01}, float[1,6,1,1] b>
        {
            q, qs, qz = DynamicQuantizeLinear(x)
            i = ConvInteger(q, w, qz, wz)
            f = Cast<to=1>(i)
            h = Mul(f, s)
            hb = Add(h, b)
            r = Relu(hb)
            q2, qs2, qz2 = DynamicQuantizeLinear(r)
            i2 = ConvInteger(q2, v, qz2, wz)
            f2 = Cast<to=1>(i2)
            y = Mul(f2, qs2)
        }""",
        "w:0", "b:1", "v:1",
    ),
    row(
        "dynamically quantised, features that aren't zero",
        """
        (float[N,4] x) => (float[N,2] y) <float[4,6] w, int8[6,2] v>
        {
            h = MatMul(x, w)
            s = Sigmoid(h)
            q, qs, qz = DynamicQuantizeLinear(s)
            i = MatMulInteger(q, v, qz)
            f = Cast<to=1>(i)
            y = Mul(f, qs)
        }""",
        "w:1", "v:0",
        exact=False,
    ),
]  # fmt: skip

PRODUCTS = [
    row(
        "matmul, integers",
        """
        (uint8[N,4] x) => (int32[N,2] y)
        <int8[4,6] w, int8[6,2] v, uint8 xz = {100}, int8[6] wz = {0,0,0,0,0,0}>
        {
            h = MatMulInteger(x, w, xz, wz)
            c = Cast<to=3>(h)
            y = MatMulInteger(c, v)
        }""",
        "w:1", "wz:0", "v:0",
    ),
    row(
        "matmul, per column",
        """
        (uint8[N,4] x) => (uint8[N,2] y)
        <int8[4,6] w, int8[6,2] v, uint8 xz = {100}, int8[6] wz = {0,0,0,0,0,0}, float[6] ws,
         float s = {0.2}, int8 vz = {0}, float ys = {2.0}>
        {
            h = QLinearMatMul(x, s, xz, w, ws, wz, ys, xz)
            y = QLinearMatMul(h, s, xz, v, s, vz, ys, xz)
        }""",
        "w:1", "ws:0", "wz:0", "v:0",
    ),
    row(
        "matmul, integers to float",
        f"""
        (uint8[N,4] x) => (float[N,2] y)
        <int8[4,6] w, float[6,2] v, uint8 xz = {{100}}, int8[6] wz = {{0,0,0,0,0,0}}, float[6] ws,
         float[6] b, float s = {{0.2}}>
        {{
            h = {MS}MatMulIntegerToFloat(x, w, s, ws, xz, wz, b)
            y = MatMul(h, v)
        }}""",
        "w:1", "ws:0", "wz:0", "b:0", "v:0",
    ),
    row(
        "matmul, dynamically quantised",
        f"""
        (float[N,4] x) => (float[N,2] y)
        <int8[4,6] w, int8[6,2] v, int8[6] wz = {{0,0,0,0,0,0}}, float[6] ws, float[6] b,
         float s = {{0.2}}>
        {{
            h = {MS}DynamicQuantizeMatMul(x, w, ws, wz, b)
            r = Relu(h)
            y = {MS}DynamicQuantizeMatMul(r, v, s)
        }}""",
        "w:1", "ws:0", "wz:0", "b:0", "v:0",
    ),
    row(
        "matmul, dynamically quantised features that aren't zero",
        f"""
        (float[N,4] x) => (float[N,2] y)
        <int8[4,6] w, int8[6,2] v, float ws = {{0.1}}>
        {{
            h = {MS}DynamicQuantizeMatMul(x, w, ws)
            r = Sigmoid(h)
            y = {MS}DynamicQuantizeMatMul(r, v, ws)
        }}""",
        "w:1", "v:0",
        exact=False,
    ),
    row(
        "gemm",
        f"""
        (uint8[N,4] x) => (float[N,2] y)
        <int8[4,6] w, int8[2,6] v, int32[6] b, uint8 xz = {{100}}, int8[6] wz = {{0,0,0,0,0,0}},
         float[6] ws, float s = {{0.2}}, int8 vz = {{0}}, float ys = {{2.0}}>
        {{
            h = {MS}QGemm(x, s, xz, w, ws, wz, b, ys, xz)
            y = {MS}QGemm<transB=1>(h, ys, xz, v, s, vz)
        }}""",
        "w:1", "ws:0", "wz:0", "b:0", "v:1",
    ),
    row(
        "attention",
        f"""
        (uint8[N,6,8] x) => (float[N,6,5] y)
        <int8[8,48] w, float[48] b, float s = {{0.1}}, float ws = {{0.1}}, uint8 xz = {{128}},
         int8 wz = {{0}}, float[16,5] v>
        {{
            a = {MS}QAttention<num_heads=4>(x, w, b, s, ws, , xz, wz)
            y = MatMul(a, v)
        }}""",
        "w:1", "b:0", "v:0",
    ),
]  # fmt: skip


def lstm(settings: str, *, between: str = "", features: str = "x") -> str:
    """A dynamically quantised LSTM of 4 units, read by a linear layer."""
    return f"""
        (float[5,N,3] x) => (float[5,N,2] y)
        <float[3,3] u, int8[1,3,16] w, int8[1,4,16] r, float[1,32] b, {settings}, float[4,2] v,
         int64[1] one = {{1}}>
        {{
            {between}
            h = {MS}DynamicQuantizeLSTM<hidden_size=4>(
                {features}, w, r, b, , , , , scale_w, zw, scale_r, zr)
            s = Squeeze(h, one)
            y = MatMul(s, v)
        }}"""


TENSOR = "float[1] scale_w, float[1] scale_r, int8[1] zw = {0}, int8[1] zr = {0}"
CHANNEL = "float[1,16] scale_w, float[1,16] scale_r, int8[1,16] zw, int8[1,16] zr"
NO_OFFSETS = {name: np.zeros((1, 16), np.int8) for name in ("zw", "zr")}
CELL = ("w:2", "r:1", "r:2", "b:1", "v:0")

RECURRENT = [
    row("lstm", lstm(TENSOR), *CELL),
    row("lstm, per channel", lstm(CHANNEL), *CELL, "scale_w:1", "scale_r:1", "zw:1", "zr:1",
        values=NO_OFFSETS),
    row("lstm, zero points per channel", lstm(CHANNEL), *CELL, "zw:1", "zr:1", exact=False,
        runs=False),
    row("lstm of features that aren't zero", lstm(
        TENSOR, between="f = MatMul(x, u) g = Sigmoid(f)", features="g"), *CELL, "w:1", "u:1",
        exact=None),
]  # fmt: skip

# --- element by element ----------------------------------------------------------------------


def between(operator: str, *, zero: int = 0, last: str = "v, s, wz, s, z", extra: str = "") -> str:
    """x -> h (N, 6, 5, 5), k (the same) -> operator -> a (N, c, *) -> 1 x 1 convolution."""
    return f"""
        (uint8[N,3,5,5] x) => (uint8[N,2,H,W] y)
        <int8[6,3,1,1] w, int8[6,3,1,1] u, int8[2,6,1,1] v, float s = {{0.2}}, uint8 z = {{{zero}}},
         int8 wz = {{0}} {extra}>
        {{
            h = QLinearConv(x, s, z, w, s, wz, s, z)
            k = QLinearConv(x, s, z, u, s, wz, s, z)
            {operator}
            y = QLinearConv(a, s, z, {last})
        }}"""


BOTH = ("w:0", "u:0", "v:1")

ELEMENTWISE = [
    *(
        row(f"{name}, zero point {zero}", between(line, zero=zero), *cut)
        for zero in (0, 128)
        for name, line, cut in (
            ("add", f"a = {MS}QLinearAdd(h, s, z, k, s, z, s, z)", BOTH),
            ("mul", f"a = {MS}QLinearMul(h, s, z, k, s, z, s, z)", BOTH),
            ("leaky relu", f"a = {MS}QLinearLeakyRelu<alpha=0.1>(h, s, z, s, z)", ("w:0", "v:1")),
            ("sigmoid", f"a = {MS}QLinearSigmoid(h, s, z, s, z)", ("w:0", "v:1")),
            (
                "average",
                f"a = {MS}QLinearAveragePool<kernel_shape=[2,2]>(h, s, z, s, z)",
                ("w:0", "v:1"),
            ),
            ("global average", f"a = {MS}QLinearGlobalAveragePool(h, s, z, s, z)", ("w:0", "v:1")),
        )
    ),
    row(
        "mean over the image",
        between(f"a = {MS}QLinearReduceMean<axes=[2,3], keepdims=1>(h, s, z, s, z)"),
        "w:0", "v:1",
        runs=False,
    ),
    row(
        "where",
        between(
            f"a = {MS}QLinearWhere(c, h, s, z, k, s, z, s, z)",
            extra=", bool[5,5] c",
        ),
        *BOTH,
    ),
    row(
        "concat",
        between(
            f"a = {MS}QLinearConcat<axis=1>(s, z, h, s, z, k, s, z)", extra=""
        ).replace("int8[2,6,1,1] v", "int8[2,12,1,1] v"),
        *BOTH,
    ),
    row(
        "global average, channels last",
        f"""
        (uint8[N,3,5,5] x) => (uint8[N,1,1,6] y)
        <int8[7,3,1,1] w, int8[6,7,1,1] v, float s = {{0.2}}, uint8 z = {{0}}, int8 wz = {{0}}>
        {{
            h = QLinearConv(x, s, z, w, s, wz, s, z)
            k = QLinearConv(h, s, z, v, s, wz, s, z)
            t = Transpose<perm=[0,2,3,1]>(k)
            y = {MS}QLinearGlobalAveragePool<channels_last=1>(t, s, z, s, z)
        }}""",
        "w:0", "v:1",
        frozen={"v:0": "is graph output"},
    ),
    row(
        "mean over channels",
        f"""
        (uint8[N,3,5,5] x) => (uint8[N,1,5,5] y)
        <int8[6,3,1,1] w, float s = {{0.2}}, uint8 z = {{0}}, int8 wz = {{0}}>
        {{
            h = QLinearConv(x, s, z, w, s, wz, s, z)
            y = {MS}QLinearReduceMean<axes=[1], keepdims=1>(h, s, z, s, z)
        }}""",
        "w:0",
        exact=False, runs=False,
    ),
    row(
        "softmax over channels",
        between(f"a = {MS}QLinearSoftmax<axis=1, opset=13>(h, s, z, s, z)"),
        "u:0",
        frozen={"w:0": "is normalised over"},
    ),
]  # fmt: skip

ROWS = [*CONVOLUTIONS, *PRODUCTS, *RECURRENT, *ELEMENTWISE]


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_row(entry: Row, tmp_path: Path) -> None:
    check(entry, tmp_path)
