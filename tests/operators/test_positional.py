"""Operators that sample, generate, or work by position: what passes, and what freezes and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.operators.harness import Row, check, row

MS = "com.microsoft."


def images(lines: str, weights: str = "", *, y: str = "N,2,A,B", inputs: str = "") -> str:
    """x (N, 3, 6, 6) -> h (N, 8, 6, 6) -> lines, which compute a -> v -> y."""
    return f"""
        (float[N,3,6,6] x {inputs}) => (float[{y}] y) <float[8,3,1,1] w, float[2,8,1,1] v {weights}>
        {{ h = Conv(x, w) {lines} y = Conv(a, v) }}"""


def tokens(lines: str, weights: str = "", *, y: str, opset_one: str = "N") -> str:
    """x (N, 6, 4) -> h (N, 6, 8) -> lines, which compute y."""
    return f"""
        (float[{opset_one},6,4] x) => (float[{y}] y) <float[4,8] w {weights}>
        {{ h = MatMul(x, w) {lines} }}"""


IMAGE, TOKEN = ("w:0", "v:1"), ("w:1", "v:0")
V = ", float[8,2] v"

SAMPLED = [
    *(
        row(f"grid sample{name}", images(f"a = {domain}GridSample<{attributes}>(h, grid)",
            inputs=", float[N,4,5,2] grid"), *IMAGE, opset=opset)
        for name, domain, attributes, opset in (
            ("", "", 'padding_mode="border"', 21),
            (" opset 16", "", 'mode="bilinear"', 16),
            (" of ONNX Runtime", MS, "align_corners=1", 21),
        )
    ),
    row("roi align", images(
        "a = RoiAlign<output_height=2, output_width=2>(h, boxes, which)",
        ", float[3,4] boxes, int64[3] which = {0, 0, 0}", y="3,2,2,2"), *IMAGE),
    row("max roi pool", images("a = MaxRoiPool<pooled_shape=[2,2]>(h, boxes)",
        ", float[2,5] boxes = {0.0, 0.0, 0.0, 3.0, 3.0, 0.0, 1.0, 1.0, 4.0, 5.0}",
        y="2,2,2,2").replace("[N,3", "[1,3"), *IMAGE),
    row("deformable convolution", images(
        "o = Conv(x, u) a = DeformConv<pads=[1,1,1,1]>(h, d, o, b)",
        ", float[18,3,1,1] u, float[8,8,3,3] d, float[8] b"), *IMAGE, "d:0", "d:1", "b:0",
        frozen={"u:0": "holds places to sample at"}),
    row("deformable convolution, groups of offsets, mask", images(
        "o = Conv(x, u) m = Conv(x, n)"
        " a = DeformConv<pads=[1,1,1,1], offset_group=2>(h, d, o, , m)",
        ", float[36,3,1,1] u, float[18,3,1,1] n, float[8,8,3,3] d"), *IMAGE, "d:0", "d:1",
        frozen={"u:0": "holds places to sample at", "n:0": "holds places to sample at"}),
    row("columns to images", """
        (float[N,3,9] x) => (float[N,2,4,4] y)
        <float[32,3,1] w, float[2,8,1,1] v, int64[2] size = {4, 4}, int64[2] block = {2, 2}>
        { h = Conv(x, w) a = Col2Im(h, size, block) y = Conv(a, v) }""", *IMAGE),
    row("causal convolution with a state", """
        (float[N,3,9] x) => (float[N,2,9] y)
        <float[8,3,1] w, float[8,1,3] u, float[8] b, float[2,8,1] v>
        { h = Conv(x, w) a, s = CausalConvWithState<activation="silu">(h, u, b) y = Conv(a, v) }""",
        *IMAGE, "u:0", "b:0", opset=27, runs=False),
]  # fmt: skip

PASSING = [
    row("triangle of tokens and channels", tokens("y = Trilu(h)", y="N,6,8"),
        frozen={"w:1": "keeps a triangle"}),
    row("triangle of an image", images("a = Trilu<upper=0>(h)"), *IMAGE),
    row("triangle, ONNX Runtime", images(f"a = {MS}Trilu<upper=0>(h)"), *IMAGE),
    row("reversed sequences", tokens(
        "r = ReverseSequence<batch_axis=0, time_axis=1>(h, n) y = MatMul(r, v)",
        V + ", int64[2] n = {3, 6}", y="2,6,2", opset_one="2"), *TOKEN),
    row("Fourier transform over tokens", """
        (float[N,6,4] x) => (float[N,4,2,2] y)
        <float[4,8] w, float[8,2] v, int64[1] three = {3}, int64 one = {1}>
        {
            h = MatMul(x, w) u = Unsqueeze(h, three) f = DFT<onesided=1>(u, , one)
            t = Transpose<perm=[0,1,3,2]>(f) y = MatMul(t, v)
        }""", *TOKEN),
    row("Fourier transform over tokens opset 17", """
        (float[N,6,4] x) => (float[N,6,2,2] y) <float[4,8] w, float[8,2] v, int64[1] three = {3}>
        {
            h = MatMul(x, w) u = Unsqueeze(h, three) f = DFT<axis=1>(u)
            t = Transpose<perm=[0,1,3,2]>(f) y = MatMul(t, v)
        }""", *TOKEN, opset=17),
    row("Fourier transform over channels", """
        (float[N,6,4] x) => (float[N,6,8,2] y) <float[4,8] w, int64[1] three = {3}>
        { h = MatMul(x, w) u = Unsqueeze(h, three) y = DFT(u) }""",
        frozen={"w:1": "is transformed along this axis"}),
    row("written into a cache", tokens(
        "s = TensorScatter<axis=1>(c, h, n) y = MatMul(s, v)",
        V + ", float[2,9,8] c, int64[2] n = {0, 3}", y="2,9,2", opset_one="2"), *TOKEN, "c:2",
        opset=24),
    row("cropped to its middle", images("a = CenterCropPad<axes=[2,3]>(h, s)",
        ", int64[2] s = {4, 8}", y="N,2,4,8"), *IMAGE),
    row("channels cropped to their middle", images("y1 = CenterCropPad<axes=[1]>(h, s)"
        " a = Concat<axis=1>(y1, y1)", ", int64[1] s = {4}"),
        frozen={"w:0": "is cut or padded around its middle"}),
    row("determinants", """
        (float[N,3,5,5] x) => (float[N,2,1] y)
        <float[8,3,1,1] w, float[2,8,1] v, int64[1] two = {2}>
        { h = Conv(x, w) d = Det(h) u = Unsqueeze(d, two) y = Conv(u, v) }""", *IMAGE),
    row("one hot", """
        (float[N,6,4] x) => (float[N,6,5] y)
        <float[4,8] w, int64 depth = {5}, float[2] values = {0.0, 1.0}>
        { h = MatMul(x, w) i = ArgMax<axis=2, keepdims=0>(h) y = OneHot(i, depth, values) }""",
        frozen={"w:1": "is searched by position", "values:0": "needs it at this size"}),
]  # fmt: skip


def frozen(name: str, lines: str, reason: str, **options: object) -> Row:
    """h (2, 8) meets an operator that freezes it."""
    extra = str(options.pop("weights", ""))
    text = f"""
        (float[2,4] x) => (float[{options.pop("y", "A,B")}] y) <float[4,8] w {extra}>
        {{ h = MatMul(x, w) {lines} }}"""
    return row(name, text, frozen={"w:1": reason}, **options)


SEQUENCE = "works on a list of tensors"
SUBGRAPH = "{ r = Relu(h) }"
FREEZING = [
    *(
        frozen(name, line, "draws a random number")
        for name, line in (
            ("Bernoulli", "y = Bernoulli(h)"),
            ("RandomNormalLike", "y = RandomNormalLike(h)"),
            ("RandomUniformLike", "y = RandomUniformLike(h)"),
            ("Multinomial", "m = Multinomial<sample_size=3>(h) y = Cast<to=1>(m)"),
        )
    ),
    row("RandomNormal", "(float[8] x) => (float[8] y) <float[8] w>"
        "{ r = RandomNormal<shape=[8]>() s = Mul(r, w) y = Add(s, x) }",
        frozen={"w:0": "draws a random number"}),
    row("RandomUniform", "(float[8] x) => (float[8,8] y) <float[8] w, float[8,8] v>"
        "{ r = RandomUniform<shape=[8,8]>() s = MatMul(r, v) t = Mul(s, w) y = Add(t, x) }",
        frozen={"v:0": "draws a random number"}),
    frozen("EyeLike", "y = EyeLike(h)", "generates values by position"),
    row("AffineGrid", "(float[N,4] x) => (float[N,2,2,2] y)"
        "<float[4,6] w, int64[3] s = {-1, 2, 3}, int64[4] size = {1, 1, 2, 2}>"
        "{ h = MatMul(x, w) r = Reshape(h, s) y = AffineGrid(r, size) }".replace("[N", "[1"),
        frozen={"w:1": "generates values by position"}),
    *(
        row(name, f"(float[8] x) => (float[8] y) <float[8] w, int64 n = {{8}}>"
            f"{{ r = {name}(n) s = Mul(r, w) y = Mul(s, x) }}",
            frozen={"w:0": "is computed from sizes"})
        for name in ("BlackmanWindow", "HammingWindow", "HannWindow")
    ),
    row("MelWeightMatrix", """
        (float[N,4] x) => (float[N,A] y) <float[4,9] w, int64 mels = {3}, int64 bins = {16},
         int64 rate = {8000}, float low = {0.0}, float high = {4000.0}>
        { h = MatMul(x, w) m = MelWeightMatrix(mels, bins, rate, low, high) y = MatMul(h, m) }""",
        frozen={"w:1": ""}),
    row("Range", """
        (float[N,4] x, float start, float end) => (float[N,8] y) <float[4,8] w, float step = {1.0}>
        { h = MatMul(x, w) r = Range(start, end, step) y = Mul(h, r) }""",
        frozen={"w:1": ""}, runs=False),
    row("NonMaxSuppression", """
        (float[1,6,4] x) => (float[A,3] y) <float[4,4] w, float[1,1,6] scores, int64 most = {3}>
        { h = MatMul(x, w) k = NonMaxSuppression(h, scores, most) y = Cast<to=1>(k) }""",
        frozen={"w:1": "finds elements by position"}),
    frozen("NonZero", "n = NonZero(h) y = Cast<to=1>(n)", "finds elements by position"),
    frozen("Unique", "y = Unique<axis=0>(h)", "finds elements by position"),
    row("NegativeLogLikelihoodLoss", """
        (float[2,4] x) => (float y) <float[4,8] w, int64[2] t = {1, 3}>
        { h = MatMul(x, w) y = NegativeLogLikelihoodLoss(h, t) }""",
        frozen={"w:1": "is a loss"}, runs=False),
    row("SoftmaxCrossEntropyLoss", """
        (float[2,4] x) => (float y) <float[4,8] w, int64[2] t = {1, 3}>
        { h = MatMul(x, w) y = SoftmaxCrossEntropyLoss(h, t) }""",
        frozen={"w:1": "is a loss"}, runs=False),
    row("STFT", """
        (float[2,4] x) => (float[2,A,B,2] y) <float[4,8] w, int64 step = {2}, int64 length = {4}>
        { h = MatMul(x, w) y = STFT(h, step, , length) }""",
        frozen={"w:1": "transforms a whole signal"}),
]  # fmt: skip

LISTS = [
    frozen("ConcatFromSequence", "s = SequenceConstruct(h, h) y = ConcatFromSequence<axis=0>(s)",
           SEQUENCE, y="4,8"),
    frozen("SequenceAt", "e = SequenceEmpty() s = SequenceInsert(e, h) y = SequenceAt(s, zero)",
           SEQUENCE, weights=", int64 zero = {0}"),
    frozen("SequenceErase", "s = SequenceConstruct(h, h) e = SequenceErase(s, zero)"
           " y = ConcatFromSequence<axis=0>(e)", SEQUENCE, weights=", int64 zero = {0}"),
    frozen("SequenceLength", "s = SplitToSequence<axis=0>(h) n = SequenceLength(s)"
           " f = Cast<to=1>(n) y = Mul(h, f)", "", runs=False),
    frozen("SequenceMap", "s = SequenceConstruct(h, h) m = SequenceMap<body = g (float[2,8] i) =>"
           " (float[2,8] o) { o = Relu(i) }>(s) y = ConcatFromSequence<axis=0>(m)", SEQUENCE,
           runs=False),
    frozen("Optional", "o = Optional(h) g = OptionalGetElement(o) k = OptionalHasElement(o)"
           " f = Cast<to=1>(k) y = Mul(g, f)", "works on an optional value", runs=False),
]  # fmt: skip

SUBGRAPHS = [
    row("If", """
        (float[2,4] x, bool c) => (float[2,8] y) <float[4,8] w>
        {
            h = MatMul(x, w)
            y = If(c) <then_branch = g1 () => (float[2,8] a) { a = Relu(h) },
                       else_branch = g2 () => (float[2,8] b) { b = Neg(h) }>
        }""", frozen={"w:1": "is used inside a subgraph"}),
    row("Loop", """
        (float[2,4] x, int64 n) => (float[2,8] y) <float[4,8] w>
        {
            h = MatMul(x, w)
            y = Loop(n, , h) <body = g (int64 i, bool c, float[2,8] s) => (bool k, float[2,8] t)
                { k = Identity(c) t = Relu(s) }>
        }""", frozen={"w:1": "runs a subgraph"}, runs=False),
    row("Scan", """
        (float[2,4] x) => (float[8] y, float[2,8] z) <float[4,8] w, float[8] s>
        {
            h = MatMul(x, w)
            y, z = Scan<num_scan_inputs=1, body = g (float[8] a, float[8] b) => (float[8] c,
                float[8] d) { c = Add(a, b) d = Identity(c) }>(s, h)
        }""", frozen={"w:1": "runs a subgraph", "s:0": "runs a subgraph"}),
]  # fmt: skip

# Their operands are text or pictures, which weights never meet: analysed beside a small network.
BESIDE = [
    row(name, f"""
        (float[N,4] x {inputs}) => (float[N,2] y, {output}) <float[4,8] w, float[8,2] v>
        {{ h = MatMul(x, w) y = MatMul(h, v) {line} }}""", "w:1", "v:0", opset=21, runs=False)
    for name, inputs, output, line in (
        ("StringConcat", ", string[2] t", "string[2] z", "z = StringConcat(t, t)"),
        ("StringNormalizer", ", string[2] t", "string[2] z", "z = StringNormalizer(t)"),
        ("StringSplit", ", string[2] t", "string[2,A] z, int64[2] n", "z, n = StringSplit(t)"),
        ("RegexFullMatch", ", string[2] t", "bool[2] z", 'z = RegexFullMatch<pattern="a">(t)'),
        ("TfIdfVectorizer", ", string[2] t", "float[A] z",
         'z = TfIdfVectorizer<max_gram_length=1, max_skip_count=0, min_gram_length=1, mode="TF",'
         ' ngram_counts=[0], ngram_indexes=[0, 1], pool_strings=["a", "b"]>(t)'),
        ("ImageDecoder", ", uint8[99] t", "uint8[A,B,3] z", "z = ImageDecoder(t)"),
        ("Constant", "", "string z", 'z = Constant<value_string="a">()'),
    )
]  # fmt: skip

ROWS = [*SAMPLED, *PASSING, *FREEZING, *LISTS, *SUBGRAPHS, *BESIDE]


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_row(entry: Row, tmp_path: Path) -> None:
    check(entry, tmp_path)
