"""Multiply-accumulates that the rules state, against counts by hand."""

from __future__ import annotations

import pytest

from spa_graph import analyze
from tests.operators.harness import Row, row

MS = "com.microsoft."


def only(text: str, **options: object) -> Row:
    return row("only", text, **options)


COUNTS = {
    "conv": (
        only(
            "(float[2,4,9,9] x) => (float[2,6,A,B] y) <float[6,2,3,3] w>"
            "{ y = Conv<group=2, strides=[2,2]>(x, w) }"
        ),
        2 * 6 * 4 * 4 * (2 * 3 * 3),
    ),
    "transposed conv": (
        only(
            "(float[2,4,5,5] x) => (float[2,6,A,B] y) <float[4,3,3,3] w>"
            "{ y = ConvTranspose<group=2, strides=[2,2]>(x, w) }"
        ),
        2 * 4 * 5 * 5 * (3 * 3 * 3),
    ),
    "deformable conv": (
        only(
            "(float[1,4,5,5] x, float[1,18,3,3] o) => (float[1,6,3,3] y) <float[6,4,3,3] w>"
            "{ y = DeformConv(x, w, o) }"
        ),
        6 * 3 * 3 * (4 * 3 * 3),
    ),
    "gemm": (
        only(
            "(float[4,5] x) => (float[5,3] y) <float[3,4] w> { y = Gemm<transA=1, transB=1>(x, w) }"
        ),
        5 * 4 * 3,
    ),
    "batched matmul": (
        only("(float[2,7,5,4] x) => (float[2,7,5,3] y) <float[7,4,3] w> { y = MatMul(x, w) }"),
        2 * 7 * 5 * 4 * 3,
    ),
    "einsum": (
        only(
            "(float[2,5,4] x) => (float[2,3] y) <float[4,3] w>"
            '{ y = Einsum<equation="bsk,ko->bo">(x, w) }'
        ),
        2 * 5 * 4 * 3,
    ),
    "lstm, both directions": (
        only(
            "(float[5,2,3] x) => (float[5,2,2,4] y) <float[2,16,3] w, float[2,16,4] r>"
            '{ y = LSTM<hidden_size=4, direction="bidirectional">(x, w, r) }'
        ),
        2 * 5 * 2 * 16 * (3 + 4),
    ),
    "gru": (
        only(
            "(float[5,2,3] x) => (float[5,1,2,4] y) <float[1,12,3] w, float[1,12,4] r>"
            "{ y = GRU<hidden_size=4>(x, w, r) }"
        ),
        5 * 2 * 12 * (3 + 4),
    ),
    "attention": (
        only(
            "(float[2,6,32] q, float[2,9,16] k, float[2,9,8] v) => (float[2,6,16] y)"
            "{ y = Attention<q_num_heads=4, kv_num_heads=2>(q, k, v) }",
            opset=23,
        ),
        2 * 4 * 6 * 9 * (8 + 4),
    ),
    "attention with its projection": (
        only(
            "(float[2,6,8] x) => (float[2,6,32] y) <float[8,96] w, float[96] b>"
            f"{{ y = {MS}Attention<num_heads=4>(x, w, b) }}"
        ),
        2 * 6 * 8 * 96 + 2 * 4 * 6 * 6 * (8 + 8),
    ),
    "multi-head attention": (
        only(
            "(float[2,6,32] q, float[2,9,32] k, float[2,9,16] v) => (float[2,6,16] y)"
            f"{{ y = {MS}MultiHeadAttention<num_heads=4>(q, k, v) }}"
        ),
        2 * 4 * 6 * 9 * (8 + 4),
    ),
    "quantised conv": (
        only(
            "(uint8[2,4,9,9] x) => (uint8[2,6,A,B] y)"
            "<int8[6,4,3,3] w, float s = {0.1}, uint8 z = {0}, int8 n = {0}>"
            "{ y = QLinearConv(x, s, z, w, s, n, s, z) }"
        ),
        2 * 6 * 7 * 7 * (4 * 3 * 3),
    ),
    "quantised matmul": (
        only("(uint8[5,4] x) => (int32[5,3] y) <int8[4,3] w> { y = MatMulInteger(x, w) }"),
        5 * 4 * 3,
    ),
    "fused matmul": (
        only(
            "(float[2,4,5] x) => (float[2,5,3] y) <float[3,4] w>"
            f"{{ y = {MS}FusedMatMul<transA=1, transB=1>(x, w) }}"
        ),
        2 * 5 * 4 * 3,
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_count(name: str) -> None:
    entry, expected = COUNTS[name]
    cost = analyze(entry.model()).cost
    assert cost.cost("flops", cost.full) == 2 * expected
