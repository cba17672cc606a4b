"""Operators that pick elements: slices, look-ups, and what freezes because data decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.operators.harness import Row, check, row


def tokens(lines: str, weights: str, *, y: str = "N,5,2", hidden: int = 8) -> str:
    """x (N, 5, 4) -> h (N, 5, 8) -> lines, which compute y."""
    return f"""
        (float[N,5,4] x) => (float[{y}] y) <float[4,{hidden}] w, {weights}>
        {{ h = MatMul(x, w) {lines} }}"""


CUT = ("w:1", "v:0")
ENDS = "int64[1] two = {2}, int64[1] three = {3}, int64[1] last = {2}, int64[1] end = {9999}"

SLICES = [
    row("contiguous", tokens("s = Slice(h, two, end, last) y = MatMul(s, v)",
        f"float[6,2] v, {ENDS}"), *CUT),
    row("two halves", tokens(
        """
        a = Slice(h, none, half, last) b = Slice(h, half, end, last)
        g = Sigmoid(b) m = Mul(a, g) y = MatMul(m, v)""",
        f"float[4,2] v, int64[1] none = {{0}}, int64[1] half = {{4}}, {ENDS}"), *CUT),
    row("negative bounds and axis", tokens("s = Slice(h, a, b, c) y = MatMul(s, v)",
        "float[3,2] v, int64[1] a = {-4}, int64[1] b = {-1}, int64[1] c = {-1}"), *CUT),
    row("strided", tokens("s = Slice(h, two, end, last, two) y = MatMul(s, v)",
        f"float[3,2] v, {ENDS}"), *CUT),
    row("reversed", tokens("s = Slice(h, a, b, last, a) y = MatMul(s, v)",
        f"float[8,2] v, int64[1] a = {{-1}}, int64[1] b = {{-9999}}, {ENDS}"), *CUT),
    row("strided along two axes", tokens("s = Slice(h, a, b, c, d) y = MatMul(s, v)",
        "float[4,2] v, int64[2] a = {0, 0}, int64[2] b = {99, 99}, int64[2] c = {1, 2},"
        " int64[2] d = {2, 2}", y="N,3,2"), frozen={"w:1": "several axes at once"}),
    row("reversed along two axes", tokens("s = Slice(h, a, b, c, a) y = MatMul(s, v)",
        "float[8,2] v, int64[2] a = {-1, -1}, int64[2] b = {-9999, -9999}, int64[2] c = {1, 2}"),
        frozen={"w:1": "several axes at once"}),
    row("strided and reversed", tokens("s = Slice(h, a, b, c, d) y = MatMul(s, v)",
        "float[4,2] v, int64[2] a = {-1, 0}, int64[2] b = {-9999, 99}, int64[2] c = {1, 2},"
        " int64[2] d = {-1, 2}"), frozen={"w:1": "several axes at once"}),
    row("halves of a weight, interleaved", f"""
        (float[N,5,4] x) => (float[N,5,2] y) <float[4,16] w, float[8,2] v, float[16] b,
         int64[1] none = {{0}}, int64[1] one = {{1}}, {ENDS}>
        {{
            even = Slice(w, none, end, one, two) odd = Slice(w, one, end, one, two)
            bias = Slice(b, none, end, none, two)
            h = MatMul(x, even) g = MatMul(x, odd) hb = Add(h, bias) m = Mul(hb, g)
            y = MatMul(m, v)
        }}""", "w:1", "b:0", "v:0"),
    row("channels and tokens", tokens("s = Slice(h, a, b, c) y = MatMul(s, v)",
        "float[4,2] v, int64[2] a = {1, 0}, int64[2] b = {3, 4}, int64[2] c = {1, 2}", y="N,2,2"),
        *CUT),
    row("tokens only", tokens("s = Slice(h, none, two, one) y = MatMul(s, v)",
        "float[8,2] v, int64[1] none = {0}, int64[1] one = {1}, int64[1] two = {2}", y="N,2,2"),
        *CUT),
    row("opset 9", tokens("s = Slice<axes=[2], starts=[2], ends=[7]>(h) y = MatMul(s, v)",
        "float[5,2] v"), *CUT, opset=9),
    row("opset 9, every axis", tokens(
        "s = Slice<starts=[0,0,2], ends=[9999,9999,9999]>(h) y = MatMul(s, v)",
        "float[6,2] v"), *CUT, opset=9),
    row("a half by a computed bound", tokens(
        """
        c = Shape<start=2, end=3>(h) n = Div(c, two) s = Slice(h, none, n, last)
        y = MatMul(s, v)""",
        f"float[4,2] v, int64[1] none = {{0}}, {ENDS}"), *CUT),
    row("bounds that are data", """
        (float[N,5,4] x, int64[1] n) => (float[N,5,A] y) <float[4,8] w, int64[1] none = {0},
         int64[1] last = {2}>
        { h = MatMul(x, w) y = Slice(h, none, n, last) }""",
        frozen={"w:1": "not constant"}),
]  # fmt: skip

GATHERS = [
    row("chosen channels", tokens("g = Gather<axis=2>(h, i) y = MatMul(g, v)",
        "float[5,2] v, int64[5] i = {7, 0, 3, -2, 3}"), *CUT),
    row("shuffled channels", tokens("g = Gather<axis=-1>(h, i) y = MatMul(g, v)",
        "float[8,2] v, int64[8] i = {7, 0, 3, 1, 2, 4, 6, 5}"), *CUT),
    row("int32 positions", tokens("g = Gather<axis=2>(h, i) y = MatMul(g, v)",
        "float[3,2] v, int32[3] i = {7, 0, 3}"), *CUT),
    row("one channel", tokens("g = Gather<axis=2>(h, i) y = Identity(g)", "int64 i = {3}", y="N,5"),
        "w:1"),
    row("the last channel beside all", tokens(
        "g = Gather<axis=-1>(h, i) u = Unsqueeze(g, t) m = Mul(h, u) y = MatMul(m, v)",
        "float[8,2] v, int64 i = {-1}, int64[1] t = {2}"), *CUT),
    row("one token", tokens("g = Gather<axis=1>(h, i) y = MatMul(g, v)",
        "float[8,2] v, int64 i = {3}", y="N,2"), *CUT),
    row("embedding", """
        (int64[N,5] x) => (float[N,5,2] y) <float[9,8] table, float[8,2] v>
        { h = Gather(table, x) y = MatMul(h, v) }""", "table:1", "v:0",
        frozen={"table:0": "looked up by position"}),
    row("embedding, quantised", """
        (int64[N,5] x) => (float[N,5,2] y) <uint8[9,8] table, float scale = {0.1}, float[8,2] v>
        { q = Gather(table, x) h = DequantizeLinear(q, scale) y = MatMul(h, v) }""",
        "table:1", "v:0"),
    row("embedding, tied to the output", """
        (int64[N,5] x) => (float[N,5,9] y) <float[9,8] table>
        { h = Gather(table, x) t = Transpose(table) y = MatMul(h, t) }""", "table:1"),
    row("relative positions", tokens(
        "b = Gather(t, i) s = Transpose<perm=[2,0,1]>(b) a = MatMul(s, h) y = MatMul(a, v)",
        "float[3,1] t, float[8,2] v, int64[5,5] i = {0,1,2,0,1,2,0,1,2,0,1,2,0,1,2,0,1,2,0,1,2,0,1,"
        "2,0}"), *CUT),
]  # fmt: skip

BY_DATA = [
    row("gather elements", tokens("y = GatherElements<axis=2>(h, i)",
        "int64[1,5,2] i = {0,1,2,3,4,5,6,7,0,1}", y="1,5,2").replace("[N,5,4]", "[1,5,4]"),
        frozen={"w:1": "picks elements by position"}),
    row("gather elements, each channel its own", tokens(
        "w_, i = TopK<axis=1>(h, two) g = GatherElements<axis=1>(h, i) y = MatMul(g, v)",
        "float[8,2] v, int64[1] two = {2}", y="N,2,2"), *CUT),
    row("gather elements, all channels alike", tokens(
        """
        r = MatMul(x, q) w_, i = TopK<axis=1>(r, two) e = Expand(i, s)
        g = GatherElements<axis=-2>(h, e) y = MatMul(g, v)""",
        "float[4,1] q, float[8,2] v, int64[1] two = {2}, int64[3] s = {1, 1, 8}", y="N,2,2"), *CUT),
    row("gather elements of some channels", tokens(
        """
        r = MatMul(x, q) w_, i = TopK<axis=1>(r, two) g = GatherElements<axis=1>(h, i)
        y = Identity(g)""", "float[4,6] q, int64[1] two = {2}", y="N,2,6"),
        frozen={"w:1": "picks elements by position", "q:1": "picks elements by position"}),
    row("gather elements, every head at the same positions", tokens(
        """
        a = Reshape(h, heads) b = Transpose<perm=[0,2,1,3]>(a) c = Reshape(b, merged)
        n = Shape<end=1>(x) m = Mul(n, four) s = Concat<axis=0>(m, five, two) e = Expand(i, s)
        g = GatherElements<axis=1>(c, e) d = Reshape(g, apart) f = Transpose<perm=[0,2,1,3]>(d)
        j = Reshape(f, flat) y = MatMul(j, v)""",
        "float[8,2] v, int64[4] heads = {0, 5, 4, 2}, int64[3] merged = {-1, 5, 2},"
        " int64[4] apart = {-1, 4, 5, 2}, int64[3] flat = {0, 5, 8}, int64[1] four = {4},"
        " int64[1] five = {5}, int64[1] two = {2}, int64[1,5,2] i = {4,3,2,1,0,0,1,1,2,2}"), *CUT),
    row("scatter elements, each channel its own", tokens(
        """
        w_, i = TopK<axis=1>(h, five) g = Relu(h) t = ScatterElements<axis=1>(h, i, g)
        y = MatMul(t, v)""", "float[8,2] v, int64[1] five = {5}"), *CUT),
    row("gather nd", tokens("y = GatherND(h, i)", "int64[2,3] i = {0,1,2,0,3,7}", y="2"),
        frozen={"w:1": "picks elements by position"}),
    row("scatter elements", tokens("y = ScatterElements<axis=2>(h, i, u)",
        "int64[1,1,2] i = {0, 3}, float[1,1,2] u", y="N,5,8"),
        frozen={"w:1": "picks elements by position", "u:2": "picks elements by position"}),
    row("scatter nd", tokens("y = ScatterND(h, i, u)",
        "int64[2,2] i = {0,3,0,1}, float[2,8] u", y="N,5,8"),
        frozen={"w:1": "is graph output", "u:0": "picks elements by position"}),
    row("scatter opset 9", tokens("y = Scatter<axis=2>(h, i, u)",
        "int64[1,1,2] i = {0, 3}, float[1,1,2] u", y="N,5,8"),
        frozen={"w:1": "picks elements by position"}, opset=9),
    row("gather nd of tokens", tokens("g = GatherND(h, i) y = MatMul(g, v)",
        "int64[3,2] i = {0,1,0,3,0,0}, float[8,2] v", y="3,2"), *CUT),
    row("gather nd of tokens, per batch entry", tokens(
        "g = GatherND<batch_dims=1>(h, i) y = MatMul(g, v)",
        "int64[1,3,1] i = {1,3,0}, float[8,2] v", y="1,3,2").replace("[N,5,4]", "[1,5,4]"), *CUT),
    row("scatter nd of tokens", tokens("g = ScatterND(h, i, u) y = MatMul(g, v)",
        "int64[2,2] i = {0,1,0,3}, float[2,8] u, float[8,2] v"), *CUT, "u:1"),
    row("compress tokens", tokens("g = Compress<axis=1>(h, b) y = MatMul(g, v)",
        "bool[5] b, float[8,2] v", y="N,T,2"), *CUT),
    row("compress the flat tensor", tokens("y = Compress(h, b)", "bool[40] b", y="T"),
        frozen={"w:1": ""}),
    row("compress", tokens("c = Compress<axis=2>(h, b) y = Identity(c)",
        "bool[8] b", y="N,5,C"), frozen={"w:1": ""}),
]  # fmt: skip

ROWS = [*SLICES, *GATHERS, *BY_DATA]


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_row(entry: Row, tmp_path: Path) -> None:
    check(entry, tmp_path)
