"""Fused attention and rotary embeddings: ONNX (opset 23 on) and ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.operators.harness import Row, check, row


def attention(
    operator: str,
    *,
    kv: int = 4,
    extra: str = "",
    operands: str = "q, k, v",
    outputs: str = "a",
    between: str = "",
    size: int = 8,
) -> str:
    """x (N, 6, 8) -> projections to 4 query heads and `kv` others -> `operator` -> projection."""
    return f"""
        (float[N,6,8] x) => (float[N,6,5] y)
        <float[8,{4 * size}] wq, float[8,{kv * size}] wk, float[8,{kv * size}] wv,
         float[{4 * size},5] wo {extra}>
        {{
            q = MatMul(x, wq)
            k = MatMul(x, wk)
            v = MatMul(x, wv)
            {between}
            {outputs} = {operator}({operands})
            y = MatMul(a, wo)
        }}"""


CUT = ("wq:1", "wk:1", "wv:1", "wo:0")
MHA = "com.microsoft.MultiHeadAttention<num_heads=4>"
GQA = "com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads={}>"
LENGTHS = ", int32[1] last = {5}, int32 total = {6}"

# ONNX Runtime's GroupQueryAttention has one length per sequence: a batch of 1.
ONE = {"[N,": "[1,"}


def single(text: str) -> str:
    return text.replace("[N,", "[1,")


SPLIT = """
    sizes = Constant<value=int64[4] {0, 6, -1, 8}>()
    q4 = Reshape(q, sizes) qs = Transpose<perm=[0,2,1,3]>(q4)
    k4 = Reshape(k, sizes) ks = Transpose<perm=[0,2,1,3]>(k4)
    v4 = Reshape(v, sizes) vs = Transpose<perm=[0,2,1,3]>(v4)
"""
BACK = """
    at = Transpose<perm=[0,2,1,3]>(as)
    flat = Constant<value=int64[3] {0, 6, -1}>()
    a = Reshape(at, flat)
"""


def split(operator: str, kv: int = 4) -> str:
    """The same with operands (batch, heads, sequence, head size)."""
    text = attention(operator, kv=kv, operands="qs, ks, vs", outputs="as", between=SPLIT)
    return text.replace("y = MatMul", BACK + "y = MatMul")


ONNX = [
    row(
        "flat",
        attention("Attention<q_num_heads=4, kv_num_heads=4>"), *CUT,
        opset=23,
    ),
    row(
        "flat, grouped queries",
        attention("Attention<q_num_heads=4, kv_num_heads=2, is_causal=1>", kv=2), *CUT,
        opset=23,
    ),
    row(
        "flat, one head of keys: query heads go alone",
        attention("Attention<q_num_heads=4, kv_num_heads=1>", kv=1), "wq:1", "wo:0",
        frozen={"wk:1": "scales by the head size", "wv:1": "merged axis"},
        opset=23,
    ),
    row("split", split("Attention"), *CUT, opset=23),
    row("split, grouped queries", split("Attention", kv=2), *CUT, opset=24),
    row(
        "mask per head",
        attention(
            "Attention<q_num_heads=4, kv_num_heads=4, softcap=2.0>", operands="q, k, v, mask",
            extra=", float[4,6,6] mask",
        ),
        *CUT, "mask:0",
        frozen={"mask:2": "attends along this axis"},
        opset=23,
    ),
    row(
        "stored cache",
        single(attention(
            "Attention<q_num_heads=4, kv_num_heads=2>", kv=2, operands="q, k, v, , pk, pv",
            outputs="a, ck, cv", extra=", float[1,2,3,8] pk, float[1,2,3,8] pv",
        )),
        *CUT, "pk:1", "pv:1",
        opset=23,
    ),
    row(
        "cache is a graph output",
        single(attention(
            "Attention<q_num_heads=4, kv_num_heads=4>", operands="q, k, v, , pk, pv",
            outputs="a, ck, cv", extra=", float[1,4,3,8] pk, float[1,4,3,8] pv",
        )).replace("5] y)", "5] y, float[1,4,9,8] ck)"),
        "wv:1", "wo:0",
        frozen={"wk:1": "is graph output `ck`", "wq:1": "is graph output `ck`"},
        opset=23,
    ),
    row(
        "one head, explicit scale: its elements can go",
        attention("Attention<q_num_heads=1, kv_num_heads=1, scale=0.5>"), *CUT,
        opset=23,
    ),
    row(
        "one head: its size scales the scores",
        attention("Attention<q_num_heads=1, kv_num_heads=1>"), "wv:1", "wo:0",
        frozen={"wq:1": "scales by the head size", "wk:1": "scales by the head size"},
        opset=23,
    ),
    row(
        "heads are frozen, explicit scale: within heads",
        attention(
            "Attention<q_num_heads=4, kv_num_heads=2, scale=0.5>", kv=2, operands="q, k, v, mask",
        ).replace("[N,6,8] x", "[2,6,8] x, float[2,4,6,6] mask"),
        *CUT,
        exact=None, opset=23,
    ),
    row(
        "linear",
        attention(
            'LinearAttention<q_num_heads=4, kv_num_heads=2, update_rule="gated_delta">', kv=2,
            operands="q, k, v, , decay, beta", outputs="a, state",
            between="decay = MatMul(x, wd) b = MatMul(x, wb) beta = Sigmoid(b)",
            extra=", float[8,2] wd, float[8,2] wb",
        ),
        *CUT, "wd:1", "wb:1",
        opset=27, runs=False,
    ),
]  # fmt: skip

ROTARY = "cos = Gather(c, place) sin = Gather(s, place)"
ANGLES = ", float[6,4] c, float[6,4] s, int64[1,6] place = {0, 1, 2, 3, 4, 5}"

ROTATED = [
    row(
        "rotary, flat",
        single(attention(
            "Attention<q_num_heads=4, kv_num_heads=4>", operands="qr, kr, v", extra=ANGLES,
            between="""
                qr = RotaryEmbedding<num_heads=4>(q, c, s, place)
                kr = RotaryEmbedding<num_heads=4, interleaved=1>(k, c, s, place)""",
        )),
        *CUT,
        frozen={"c:1": "needs it at this size"},
        opset=23,
    ),
    row(
        "rotary, split",
        single(split("Attention").replace("(qs, ks", "(qr, ks").replace(
            "as = ", "qr = RotaryEmbedding(qs, c, s, place)\n as = "
        ).replace("5] wo", "5] wo" + ANGLES)),
        *CUT,
        opset=23,
    ),
    row(
        "rotary of ONNX Runtime",
        single(attention(
            MHA, operands="qr, kr, v", extra=ANGLES,
            between="""
                qr = com.microsoft.RotaryEmbedding(q, place, c, s)
                kr = com.microsoft.RotaryEmbedding<num_heads=4, rotary_embedding_dim=8>(
                    k, place, c, s)""",
        )),
        *CUT,
    ),
]  # fmt: skip

PACKED = """
    (float[N,6,8] x) => (float[N,6,5] y)
    <float[8,{width}] w, float[{width}] b, float[32,5] wo {extra}>
    {{
        {outputs} = com.microsoft.Attention<num_heads=4 {attributes}>({operands})
        y = MatMul(a, wo)
    }}"""


def packed(
    attributes: str = "",
    operands: str = "x, w, b",
    width: int = 96,
    extra: str = "",
    outputs: str = "a",
) -> str:
    return PACKED.format(
        attributes=attributes, operands=operands, width=width, extra=extra, outputs=outputs
    )


RUNTIME = [
    row("packed weights", packed(), "w:1", "b:0", "wo:0", frozen={"w:0": "is graph input"}),
    # ONNX Runtime 1.31 crashes without a bias on the CPU
    row("packed weights, no bias", packed(operands="x, w"), "w:1", "wo:0", runs=False),
    row(
        "packed weights, sizes listed",
        packed(attributes=", qkv_hidden_sizes=[16, 16, 32]", width=64),
        "w:1", "b:0", "wo:0",
    ),
    row(
        "packed weights, score bias per head",
        packed(operands="x, w, b, , , s", extra=", float[1,4,6,6] s"),
        "w:1", "b:0", "wo:0", "s:1",
    ),
    row(
        "packed weights, heads are frozen, explicit scale: within heads",
        packed(attributes=", scale=0.3", operands="x, w, b, , , s").replace(
            "[N,6,8] x", "[N,6,8] x, float[1,4,6,6] s"),
        "w:1", "b:0", "wo:0",
        exact=None,
    ),
    row(
        "packed weights, heads are frozen, sizes listed: within heads of values",
        packed(
            attributes=", qkv_hidden_sizes=[32, 32, 32]", operands="x, w, b, , , s"
        ).replace("[N,6,8] x", "[N,6,8] x, float[1,4,6,6] s"),
        "w:1", "b:0", "wo:0",
    ),
    row(
        "packed weights, cache is a graph output",
        packed(outputs="a, c").replace("5] y)", "5] y, float[2,N,4,6,8] c)"),
        frozen={"w:1": "is graph output `c`"},
    ),
    row("multi-head", attention(MHA), *CUT),
    row(
        "multi-head, bias",
        attention(MHA, operands="q, k, v, b", extra=", float[96] b"), *CUT, "b:0",
    ),
    row(
        "multi-head, mask and score bias",
        single(attention(
            MHA, operands="q, k, v, , m, s",
            extra=", int32[1,6] m = {1,1,1,1,1,0}, float[1,4,6,6] s",
        )),
        *CUT, "s:1",
        frozen={"m:1": "positions"},
    ),
    row(
        "multi-head, split keys and values",
        attention(MHA, operands="q, ks, vs", between=SPLIT), *CUT,
    ),
    row(
        "multi-head, packed queries, keys and values",
        """
        (float[N,6,8] x) => (float[N,6,5] y)
        <float[8,96] w, float[32,5] wo, int64[5] sizes = {0, 6, 4, 3, 8}>
        {
            p = MatMul(x, w)
            q = Reshape(p, sizes)
            a = com.microsoft.MultiHeadAttention<num_heads=4>(q)
            y = MatMul(a, wo)
        }""",
        "w:1", "wo:0",
        runs=False,
    ),
    row(
        "multi-head, packed in an unknown way",
        """
        (float[N,6,8] x) => (float[N,6,5] y)
        <float[8,96] w, float[96,5] wo>
        {
            q = MatMul(x, w)
            a = com.microsoft.MultiHeadAttention<num_heads=4>(q)
            y = MatMul(a, wo)
        }""",
        frozen={"w:1": "packed in an unknown way"},
        runs=False,
    ),
    row(
        "grouped queries",
        single(attention(
            GQA.format(2), kv=2, operands="q, k, v, , , last, total", outputs="a, ck, cv",
            extra=LENGTHS,
        )),
        *CUT,
    ),
    row(
        "grouped queries, joined",
        """
        (float[1,6,8] x) => (float[1,6,5] y)
        <float[8,64] w, float[32,5] wo, int32[1] last = {5}, int32 total = {6}>
        {
            q = MatMul(x, w)
            a = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(
                q, , , , , last, total)
            y = MatMul(a, wo)
        }""",
        "w:1", "wo:0",
    ),
    row(
        "grouped queries, cached keys are graph inputs: queries per head go",
        single(attention(
            GQA.format(2), kv=2, operands="q, k, v, pk, pv, last, total", outputs="a, ck, cv",
            extra=", int32[1] last = {8}, int32 total = {9}",
        )).replace("] x)", "] x, float[1,2,3,8] pk, float[1,2,3,8] pv)").replace(
            "5] y)", "5] y, float[1,2,9,8] ck, float[1,2,9,8] cv)"),
        "wq:1", "wo:0",
        frozen={"wk:1": "is graph input `pk`"},
    ),
]  # fmt: skip

ROWS = [*ONNX, *ROTATED, *RUNTIME]


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_row(entry: Row, tmp_path: Path) -> None:
    check(entry, tmp_path)
