"""Operators that ONNX Runtime's optimiser fuses: convolutions, products, normalisations."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.operators.harness import Row, check, row

MS = "com.microsoft."


def images(operator: str, *, weights: str = "float[6,3,3,3] w", last: str = "h") -> str:
    """x (N, 3, 8, 8) -> operator -> a (N, 6, 6, 6) -> 1 x 1 convolution `v`."""
    return f"""
        (float[N,3,8,8] x) => (float[N,2,6,6] y) <{weights}, float[2,6,1,1] v>
        {{
            {operator}
            y = Conv({last}, v)
        }}"""


def dense(operator: str, *, weights: str, before: str = "h = MatMul(x, w)") -> str:
    """x (N, 5, 4) -> w -> h (N, 5, 8) -> operator -> a -> v."""
    return f"""
        (float[N,5,4] x) => (float[N,5,2] y) <float[4,8] w, {weights}>
        {{
            {before}
            {operator}
            y = MatMul(a, v)
        }}"""


CONV = [
    row(
        f"conv, {name or 'nothing'}",
        images(f"h = {MS}FusedConv<{attributes}>(x, w, b)", weights="float[6,3,3,3] w, float[6] b"),
        "w:0", "b:0", "v:1",
    )
    for name, attributes in {
        "": "group=1",
        "relu": 'activation="Relu"',
        "leaky relu": 'activation="LeakyRelu", activation_params=[0.1]',
        "tanh": 'activation="Tanh"',
        "sigmoid": 'activation="Sigmoid"',
        "hard sigmoid": 'activation="HardSigmoid", activation_params=[0.2, 0.5]',
        "clip": 'activation="Clip", activation_params=[0.0, 6.0]',
        "clip above zero": 'activation="Clip", activation_params=[1.0, 6.0]',
    }.items()
] + [
    row(
        "conv, residual",
        images(
            f'r = Conv(x, w2) h = {MS}FusedConv<activation="Relu">(x, w, b, r)',
            weights="float[6,3,3,3] w, float[6,3,3,3] w2, float[6] b",
        ),
        "w:0", "w2:0", "b:0", "v:1",
    ),
    row(
        "conv, groups",
        images(
            f'g = Conv(x, w2) h = {MS}FusedConv<activation="Relu", group=3>(g, w)',
            weights="float[6,2,1,1] w, float[6,3,3,3] w2",
        ),
        "w:0", "w2:0", "v:1",
    ),
    row(
        "conv, a sigmoid and then a sum over channels",
        f"""
        (float[N,3,8,8] x) => (float[N,1,6,6] y) <float[6,3,3,3] w, int64[1] one = {{1}}>
        {{
            h = {MS}FusedConv<activation="Sigmoid">(x, w)
            y = ReduceSum(h, one)
        }}""",
        "w:0",
        exact=False,
    ),
] + [
    row(
        f"{operator}, channels last",
        f"""
        (float[N,8,8,3] x) => (float[N,6,6,2] y)
        <float[6,3,3,3] w, float[6] b, float[2,6,1,1] v, float[6,6,1,1] u>
        {{
            h = {MS}{operator}(x, w, b)
            {second}
            y = {MS}NhwcConv(h2, v)
        }}""",
        "w:0", "b:0", "v:1",
        runs=False,
    )
    for operator, second in {
        "NhwcConv": "h2 = Relu(h)",
        "NhwcFusedConv": f'h2 = {MS}NhwcFusedConv<activation="Relu">(h, u, , h)',
    }.items()
] + [
    row(
        "pooling, channels last",
        f"""
        (int8[N,8,8,3] x) => (int32[N,2,7,7] y) <int8[6,3,1,1] w, int8[2,6,1,1] v,
         float scale = {{0.1}}, int8 zero = {{0}}>
        {{
            t = Transpose<perm=[0,3,1,2]>(x)
            h = QLinearConv(t, scale, zero, w, scale, zero, scale, zero)
            n = Transpose<perm=[0,2,3,1]>(h)
            p = {MS}NhwcMaxPool<kernel_shape=[2,2]>(n)
            a = Transpose<perm=[0,3,1,2]>(p)
            y = ConvInteger(a, v)
        }}""",
        "w:0", "v:1",
    ),
]  # fmt: skip

PRODUCTS = [
    row(
        "gemm, relu",
        f"""
        (float[N,4] x) => (float[N,3] y) <float[4,8] w, float[8] b, float[3,8] v>
        {{
            h = {MS}FusedGemm<activation="Relu">(x, w, b)
            y = {MS}FusedGemm<activation="Tanh", transB=1, alpha=0.5>(h, v)
        }}""",
        "w:1", "b:0", "v:1",
    ),
    row(
        "matmul, transposed weights",
        f"""
        (float[N,5,4] x) => (float[N,5,2] y) <float[8,4] w, float[2,8] v>
        {{
            h = {MS}FusedMatMul<transB=1, alpha=0.5>(x, w)
            y = {MS}TransposeMatMul<transB=1>(h, v)
        }}""",
        "w:0", "v:1",
    ),
    row(
        "matmul, transposed features",
        f"""
        (float[2,4,4] x) => (float[2,8,8] y) <float[4,8] w, float[4,6] u>
        {{
            h = MatMul(x, w)
            k = MatMul(x, u)
            y = {MS}FusedMatMul<transA=1>(h, h)
        }}""",
        "u:1",
        frozen={"w:1": "is graph output `y`"},
    ),
    row(
        "matmul, transposed features of several tokens",
        f"""
        (float[2,4,4] x) => (float[2,4,4] y) <float[4,8] w, float[4,8] u>
        {{
            q = MatMul(x, w)
            k = MatMul(x, u)
            y = {MS}FusedMatMul<transB=1, alpha=0.3>(q, k)
        }}""",
        "w:1", "u:1",
    ),
    row(
        "matmul, transposed batch",
        f"""
        (float[2,4,4] x) => (float[4,2,2] y) <float[4,8] w, float[8,2] v>
        {{
            h = MatMul(x, w)
            y = {MS}FusedMatMul<transBatchA=1>(h, v)
        }}""",
        frozen={"w:1": "transposes batch axes"},
        runs=False,
    ),
    row(
        "matmul, activation",
        f"""
        (float[N,5,4] x) => (float[N,5,2] y) <float[4,8] w, float[8,2] v>
        {{
            h = {MS}FusedMatMulActivation<activation="Relu">(x, w)
            y = MatMul(h, v)
        }}""",
        "w:1", "v:0",
        runs=False,
    ),
    row(
        "matmul, fast gelu",
        f"""
        (float[N,5,4] x) => (float[N,5,2] y) <float[4,8] w, float[8] b, float[8,2] v>
        {{
            h = {MS}GemmFastGelu(x, w, b)
            y = MatMul(h, v)
        }}""",
        "w:1", "b:0", "v:0",
        runs=False,
    ),
    row(
        "bias and split gelu",
        dense(f"a = {MS}BiasSplitGelu(h, b)", weights="float[8] b, float[4,2] v"),
        "w:1", "b:0", "v:0",
        runs=False,
    ),
]  # fmt: skip

NORMS = [
    row(
        "skip layer norm, bias, sum as an output",
        dense(
            f"n, , , s = {MS}SkipLayerNormalization(h, k, scale, shift, b) a = Add(n, s)",
            weights="float[4,8] u, float[8] scale, float[8] shift, float[8] b, float[8,2] v",
            before="h = MatMul(x, w) k = MatMul(x, u)",
        ),
        "w:1", "u:1", "scale:0", "shift:0", "b:0", "v:0",
        exact=False,
    ),
    row(
        "skip layer norm, skip without batch",
        dense(
            f"a = {MS}SkipLayerNormalization(h, k, scale)",
            weights="float[5,8] k, float[8] scale, float[8,2] v",
        ),
        "w:1", "k:1", "scale:0", "v:0",
        exact=False,
    ),
    row(
        "skip rms norm, bias",
        dense(
            f"a = {MS}SkipSimplifiedLayerNormalization(h, h, scale, b)",
            weights="float[8] scale, float[8] b, float[8,2] v",
        ),
        "w:1", "scale:0", "b:0", "v:0",
        exact=False,
    ),
    row(
        "rms norm of ONNX Runtime, in ONNX's own domain",
        dense(
            "a = LayerNormalization<epsilon=0.001>(h, scale)",
            weights="float[8] scale, float[8,2] v",
        ),
        "w:1", "scale:0", "v:0",
        exact=False, renamed={"LayerNormalization": "SimplifiedLayerNormalization"},
    ),
    row(
        "embeddings",
        f"""
        (int32[N,6] ids, int32[N,6] kinds) => (float[N,6,3] y)
        <float[9,8] words, float[6,8] places, float[2,8] segments, float[8] scale, float[8] shift,
         float[8,3] v>
        {{
            h, m = {MS}EmbedLayerNormalization(ids, kinds, words, places, segments, scale, shift)
            y = MatMul(h, v)
        }}""",
        "words:1", "places:1", "segments:1", "scale:0", "shift:0", "v:0",
        frozen={"words:0": "is looked up by position"},
        exact=False,
    ),
    row(
        "group norm, channels last",
        """
        (float[N,8,8,3] x) => (float[N,8,8,2] y)
        <float[3,8] w, float[8] scale, float[8] shift, float[8,2] v>
        {
            h = MatMul(x, w)
            a = com.microsoft.GroupNorm<groups=4, activation=1>(h, scale, shift)
            y = MatMul(a, v)
        }""",
        "w:1", "scale:0", "shift:0", "v:0",
        runs=False,
    ),
]  # fmt: skip

ACTIVATIONS = [
    row(f"{name}", dense(line, weights="float[8] b, float[8,2] v"), "w:1", "v:0", runs=runs)
    for name, line, runs in (
        ("Gelu", f"a = {MS}Gelu(h)", True),
        ("FastGelu", f"a = {MS}FastGelu(h, b)", True),
        ("BiasGelu", f"a = {MS}BiasGelu(h, b)", True),
        ("QuickGelu", f"a = {MS}QuickGelu<alpha=1.0>(h)", True),
        ("BiasAdd", f"a = {MS}BiasAdd(h, b, h)", False),
    )
]

EXPERTS = [
    row(
        f"mixture of experts, {name}",
        dense(
            f"""
            t = Reshape(h, lines) l = MatMul(t, r)
            a = {MS}MoE<k=2, activation_type="{activation}", {options}>(h, l, w1, {biases})""",
            weights=f"float[8,6] r, float[6,{width},8] w1, float[6,8,5] w2, float[8,2] v,"
            f" int64[2] lines = {{-1, 8}}{more}",
        ),
        "w:1", "r:0", "r:1", "w1:0", "w1:2", "w2:0", "w2:1", "v:0", *pruned,
        exact=None, runs=runs,
    )
    for name, activation, options, width, biases, more, pruned, runs in (
        ("relu", "relu", "normalize_routing_weights=0", 5, "b1, w2, b2",
         ", float[6,5] b1, float[6,8] b2", ("b1:0", "b1:1", "b2:0", "b2:1", "w1:1", "w2:2"), True),
        ("normalised", "silu", "normalize_routing_weights=1", 5, ", w2", "", ("w1:1",), True),
        ("gates and values in one", "swiglu", "swiglu_fusion=1", 10, "b1, w2",
         ", float[6,10] b1", ("b1:0", "b1:1", "w1:1", "w2:2"), True),
        ("gates and values in halves", "swiglu", "swiglu_fusion=2", 10, ", w2", "", (), False),
        ("values apart", "silu", "use_sparse_mixer=0", 5, ", w2, , w3", ", float[6,5,8] w3",
         ("w1:1", "w3:0", "w3:1", "w3:2"), False),
    )
]  # fmt: skip

ROWS = [*CONV, *PRODUCTS, *NORMS, *ACTIVATIONS, *EXPERTS]


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_row(entry: Row, tmp_path: Path) -> None:
    check(entry, tmp_path)
