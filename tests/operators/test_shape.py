"""Operators that rename, merge, split, repeat, join or pad axes."""

from __future__ import annotations

from pathlib import Path

import pytest

from spa_graph import RewriteError, analyze, prune
from spa_graph.coupling.scope import Scope
from tests.models import network
from tests.operators.harness import Row, check, row


def images(lines: str, weights: str, *, y: str = "N,2,A,B", hidden: int = 8) -> str:
    """x (N, 3, 6, 6) -> h (N, 8, 6, 6) -> lines, which compute y."""
    return f"""
        (float[N,3,6,6] x) => (float[{y}] y) <float[{hidden},3,1,1] w, {weights}>
        {{ h = Conv(x, w) {lines} }}"""


V = "float[2,8,1,1] v"
CUT = ("w:0", "v:1")

RESHAPES = [
    row("flatten", images("f = Flatten(h) y = MatMul(f, v)", "float[288,2] v", y="N,2"),
        "w:0", "v:0"),
    row("flatten in front of the channels", images("f = Flatten<axis=2>(h) g = Transpose(f)"
        " y = MatMul(g, u)", "float[8,2] u", y="36,2").replace("[N,3", "[1,3"), "w:0", "u:0"),
    row("reshape to a matrix, keeps the batch", images(
        "f = Reshape(h, s) y = MatMul(f, v)", "float[288,2] v, int64[2] s = {0, -1}", y="N,2"),
        "w:0", "v:0"),
    row("reshape to stated sizes", images(
        "f = Reshape(h, s) y = MatMul(v, f)", "float[2,8] v, int64[3] s = {-1, 8, 36}", y="N,2,36"),
        "w:0", "v:1"),
    row("reshape by a computed shape", images(
        """
        n = Shape<start=0, end=1>(h) c = Shape<start=1, end=2>(h)
        m = Constant<value=int64[1] {-1}>() s = Concat<axis=0>(n, c, m) f = Reshape(h, s)
        y = MatMul(v, f)""",
        "float[2,8] v", y="N,2,36"), "w:0", "v:1"),
    row("reshape by a shape that names the channels", images(
        """
        n = Shape<start=0, end=1>(h) c = Constant<value=int64[2] {8, 36}>()
        s = Concat<axis=0>(n, c) f = Reshape(h, s) y = MatMul(v, f)""",
        "float[2,8] v", y="N,2,36"), "w:0", "v:1"),
    row("splits channels into heads", images(
        "f = Reshape(h, s) g = Reshape(f, t) y = Conv(g, v)",
        V + ", int64[5] s = {0, 2, 4, 6, 6}, int64[4] t = {0, -1, 6, 6}"), *CUT),
    row("sizes that do not line up", images(
        "f = Reshape(h, s) y = Identity(f)", "int64[2] s = {-1, 5}", y="A,5", hidden=5),
        frozen={"w:0": "do not line up"}),
    row("allows zero", images("f = Reshape<allowzero=1>(h, s) y = MatMul(v, f)",
        "float[2,8] v, int64[3] s = {-1, 8, 36}", y="N,2,36"), "w:0", "v:1"),
    row("squeeze and unsqueeze", images(
        "p = GlobalAveragePool(h) q = Squeeze(p, a) u = Unsqueeze(q, a) y = Conv(u, v)",
        V + ", int64[2] a = {2, 3}"), *CUT),
    row("squeeze and unsqueeze opset 11", images(
        "p = GlobalAveragePool(h) q = Squeeze<axes=[2,3]>(p) u = Unsqueeze<axes=[2,3]>(q)"
        " y = Conv(u, v)", V), *CUT, opset=11),
    row("squeeze of whatever has one element", images(
        "p = GlobalAveragePool(h) q = Squeeze(p) u = Unsqueeze(q, a) y = Conv(u, v)",
        V + ", int64[2] a = {2, 3}", y="4,2,1,1").replace("[N,3", "[4,3"), *CUT),
    row("reshape two axes into two others", """
        (float[N,4] x) => (float[N,3] y) <float[4,24] w, float[24,3] v, int64[3] s = {0, 4, 6},
         int64[3] t = {0, 12, 2}, int64[2] u = {0, -1}>
        { h = MatMul(x, w) a = Reshape(h, s) b = Reshape(a, t) c = Reshape(b, u) y = MatMul(c, v) }
        """, "w:1", "v:0"),
]  # fmt: skip

MOVES = [
    row("transpose", images("t = Transpose<perm=[0,2,3,1]>(h) y = MatMul(t, v)", "float[8,2] v",
        y="N,6,6,2"), "w:0", "v:0"),
    row("transpose, reversed", images("t = Transpose(h) y = Identity(t)", "float[2] u",
        y="6,6,8,N"), frozen={"w:0": "is graph output"}),
    row("expand over the batch", """
        (float[N,4] x) => (float[N,3] y) <float[1,8] b, float[4,8] w, float[8,3] v>
        { h = MatMul(x, w) s = Shape(h) e = Expand(b, s) a = Add(h, e) y = MatMul(a, v) }
        """, "b:1", "w:1", "v:0"),
    row("expand repeats one element", """
        (float[N,4] x) => (float[N,3] y) <float[4,1] w, float[8,3] v, int64[2] s = {1, 8}>
        { h = MatMul(x, w) e = Expand(h, s) y = MatMul(e, v) }
        """, "v:0"),
    row("expand repeats beside other channels", """
        (float[N,5,4] x) => (float[N,5,3] y)
        <float[4,8] w, float[7,8] v, float[8,3] z, int64[1] two = {2}, int64[4] s = {1, 1, 7, 1}>
        {
            h = MatMul(x, w) u = Unsqueeze(h, two) e = Expand(u, s) m = Mul(e, v)
            t = ReduceSum<keepdims=0>(m, two) y = MatMul(t, z)
        }""", "w:1", "v:0", "v:1", "z:0"),
    row("expand repeats over the batch", """
        (float[N,4] x) => (float[N,8] y) <float[1,8] b>
        { one = Constant<value=int64[1] {1}>() n = Shape<end=1>(x) s = Concat<axis=0>(n, one)
          e = Expand(b, s) y = Identity(e) }
        """, frozen={"b:1": "is graph output"}),
    row("one shared head, repeated", """
        (float[N,5,4] x) => (float[N,5,3] y)
        <float[4,8] wq, float[4,2] wk, float[8,3] v, int64[4] s = {0, 5, 4, 2},
         int64[4] r = {1, 4, 5, 2}, int64[1] one = {1}, int64[3] f = {0, 5, 8}>
        {
            q = MatMul(x, wq) qs = Reshape(q, s) qt = Transpose<perm=[0,2,1,3]>(qs)
            k = MatMul(x, wk) ku = Unsqueeze(k, one) ke = Expand(ku, r)
            kt = Transpose<perm=[0,1,3,2]>(ke) a = MatMul(qt, kt) p = Softmax(a)
            o = MatMul(p, ke) ot = Transpose<perm=[0,2,1,3]>(o) c = Reshape(ot, f)
            y = MatMul(c, v)
        }""", "wq:1", "v:0"),
    row("tile channels", images("t = Tile(h, r) y = Conv(t, v)",
        "float[2,16,1,1] v, int64[4] r = {1, 2, 1, 1}"), *CUT),
    row("tile over the batch", """
        (float[N,5,4] x) => (float[N,5,2] y)
        <float[4,8] w, float[4,5,2] b, float[8,2] v, int64[4] heads = {0, 5, 4, 2},
         int64[3] merged = {-1, 5, 2}, int64[4] apart = {-1, 4, 5, 2}, int64[3] flat = {0, 5, 8},
         int64[2] ones = {1, 1}>
        {
            h = MatMul(x, w) a = Reshape(h, heads) p = Transpose<perm=[0,2,1,3]>(a)
            c = Reshape(p, merged) n = Shape<end=1>(x) r = Concat<axis=0>(n, ones) t = Tile(b, r)
            s = Add(c, t) d = Reshape(s, apart) f = Transpose<perm=[0,2,1,3]>(d)
            j = Reshape(f, flat) y = MatMul(j, v)
        }""", "w:1", "b:0", "v:0"),
    row("tile the image", images("t = Tile(h, r) y = Conv(t, v)",
        V + ", int64[4] r = {1, 1, 2, 1}"), *CUT),
    row("shuffle", images(
        "a = Reshape(h, s) b = Transpose<perm=[0,2,1,3,4]>(a) c = Reshape(b, t) y = Conv(c, v)",
        V + ", int64[5] s = {0, 2, 4, 6, 6}, int64[4] t = {0, 8, 6, 6}"), *CUT),
    row("shuffle before groups", images(
        "a = Reshape(h, s) b = Transpose<perm=[0,2,1,3,4]>(a) c = Reshape(b, t)"
        " d = Conv<group=8>(c, u) y = Conv(d, v)",
        V + ", float[8,1,1,1] u, int64[5] s = {0, 4, 2, 6, 6}, int64[4] t = {0, 8, 6, 6}"),
        *CUT, "u:0"),
]  # fmt: skip

JOINS = [
    row("concat", images("k = Conv(x, u) c = Concat<axis=1>(h, k) y = Conv(c, v)",
        "float[4,3,1,1] u, float[2,12,1,1] v"), "w:0", "u:0", "v:1"),
    row("concat with the input", images("c = Concat<axis=-3>(x, h) y = Conv(c, v)",
        "float[2,11,1,1] v"), "w:0", "v:1"),
    row("concat twice of one", images("c = Concat<axis=1>(h, h) y = Conv(c, v)",
        "float[2,16,1,1] v"), "w:0", "v:1"),
    row("concat along the image", images("k = Conv(x, u) c = Concat<axis=2>(h, k) y = Conv(c, v)",
        V + ", float[8,3,1,1] u"), *CUT, "u:0"),
    row("split in equal parts", images("a, b = Split<axis=1, num_outputs=2>(h) c = Mul(a, b)"
        " y = Conv(c, v)", "float[2,4,1,1] v"), *CUT),
    row("split by sizes", images("a, b = Split<axis=1>(h, s) y1 = Conv(a, v) y2 = Conv(b, u)"
        " y = Add(y1, y2)", "float[2,3,1,1] v, float[2,5,1,1] u, int64[2] s = {3, 5}"),
        *CUT, "u:1", opset=13),
    row("split by sizes opset 11", images("a, b = Split<axis=1, split=[3, 5]>(h) y1 = Conv(a, v)"
        " y2 = Conv(b, u) y = Add(y1, y2)", "float[2,3,1,1] v, float[2,5,1,1] u"),
        *CUT, "u:1", opset=11),
    row("split opset 13 without sizes", images("a, b = Split<axis=1>(h) y1 = Conv(a, v)"
        " y2 = Conv(b, u) y = Add(y1, y2)", "float[2,4,1,1] v, float[2,4,1,1] u"),
        *CUT, "u:1", opset=13),
    row("split into unequal parts by count", images(
        "a, b, d = Split<axis=1, num_outputs=3>(h) y1 = Conv(a, v) y2 = Conv(d, u) y = Add(y1, y2)",
        "float[2,3,1,1] v, float[2,2,1,1] u"), *CUT, "u:1"),
    row("residual of a part", images("a, b = Split<axis=1>(h, s) c = Conv(a, u)"
        " d = Concat<axis=1>(c, b) y = Conv(d, v)",
        V + ", float[3,3,1,1] u, int64[2] s = {3, 5}"), *CUT, "u:0", "u:1"),
]  # fmt: skip

IMAGES = [
    row(f"depth to space {mode}", images(
        f'd = DepthToSpace<blocksize=2, mode="{mode}">(h) y = Conv(d, v)', "float[2,2,1,1] v"),
        *CUT)
    for mode in ("DCR", "CRD")
] + [
    row("space to depth", images("d = SpaceToDepth<blocksize=2>(h) y = Conv(d, v)",
        "float[2,32,1,1] v"), *CUT),
    *(
        row(f"pad the image, {mode}", images(f'p = Pad<mode="{mode}">(h, s) y = Conv(p, v)',
            V + ", int64[8] s = {0,0,1,2,0,0,2,1}"), *CUT)
        for mode in ("constant", "reflect", "edge", "wrap")
    ),
    row("pad the image with a number", images("p = Pad(h, s, n) y = Conv(p, v)",
        V + ", int64[8] s = {0,0,1,2,0,0,2,1}, float n = {0.5}"), *CUT),
    *(
        row(f"pad the image with {number}, then a sum", f"""
            (float[N,3,4,6] x) => (float[N,1,6,8] y) <float[8,3,1,1] w, int64[1] one = {{1}},
             int64[8] s = {{0,0,1,1,0,0,1,1}}, float n = {{{number}}}>
            {{ h = Conv(x, w) p = Pad(h, s, n) y = ReduceSum(p, one) }}""", "w:0", exact=exact)
        for number, exact in (("0.0", True), ("5.0", False))
    ),
    row("pad opset 9 with a number, then a sum", """
        (float[N,3,4,6] x) => (float[N,1,6,8] y) <float[8,3,1,1] w>
        {
            h = Conv(x, w) p = Pad<pads=[0,0,1,1,0,0,1,1], value=5.0>(h)
            y = ReduceSum<axes=[1]>(p)
        }""", "w:0", exact=False, opset=9),
    row("pad channels", images("p = Pad(h, s) y = Conv(p, v)",
        "float[2,11,1,1] v, int64[8] s = {0,1,0,0,0,2,0,0}"), *CUT),
    row("pad listed axes", images("p = Pad(h, s, , a) y = Conv(p, v)",
        "float[2,11,1,1] v, int64[2] s = {1, 2}, int64[1] a = {1}"), *CUT),
    row("pad opset 9", images("p = Pad<pads=[0,0,1,2,0,0,2,1]>(h) y = Conv(p, v)", V), *CUT,
        opset=9),
    row("cut by a negative pad", images("p = Pad(h, s) y = Conv(p, v)",
        "float[2,7,1,1] v, int64[8] s = {0,-1,0,0,0,0,0,0}"), frozen={"w:0": "pads this axis"}),
    row("resize by scales", images("r = Resize(h, , s) y = Conv(r, v)",
        V + ", float[4] s = {1.0, 1.0, 2.0, 2.0}"), *CUT),
    row("resize to sizes", images(
        "n = Shape<start=0, end=2>(h) t = Concat<axis=0>(n, s) r = Resize(h, , , t) y = Conv(r, v)",
        V + ", int64[2] s = {12, 9}"), *CUT),
    row("resize to stated sizes", images("r = Resize(h, , , s) y = Conv(r, v)",
        V + ", int64[4] s = {1, 8, 12, 9}", y="1,2,12,9").replace("[N,3", "[1,3"), *CUT),
    row("upsample opset 9", images("r = Upsample(h, s) y = Conv(r, v)",
        V + ", float[4] s = {1.0, 1.0, 2.0, 2.0}"), *CUT, opset=9),
]  # fmt: skip

SIZES = [
    row("zeros of a computed shape", images("s = Shape(h) z = ConstantOfShape(s) a = Add(h, z)"
        " y = Conv(a, v)", V), *CUT),
    row("ones of a computed shape", images(
        "s = Shape(h) z = ConstantOfShape<value=float[1] {1.0}>(s) a = Add(h, z)"
        " y = Conv(a, v)", V), *CUT),
    row("ones of a stated shape", images(
        "z = ConstantOfShape<value=float[1] {1.0}>(s) a = Mul(h, z) y = Conv(a, v)",
        V + ", int64[4] s = {1, 8, 1, 1}"), *CUT),
    row("repeats that are computed from the channels", images(
        "c = Shape<start=1, end=2>(h) n = Div(c, four) t = Concat<axis=0>(one, n, ones)"
        " r = Tile(k, t) a = Mul(h, r) y = Conv(a, v)",
        V + ", float[1,4,1,1] k, int64[1] four = {4}, int64[1] one = {1}, int64[2] ones = {1, 1}"),
        *CUT, "k:1"),
    row("the number of elements", images("n = Size(h) f = Cast<to=1>(n) a = Div(h, f)"
        " y = Conv(a, v)", V), frozen={"w:0": "computes with the size"}),
]  # fmt: skip

ROWS = [*RESHAPES, *MOVES, *JOINS, *IMAGES, *SIZES]


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_row(entry: Row, tmp_path: Path) -> None:
    check(entry, tmp_path)


SQUEEZED = images(
    "p = GlobalAveragePool(h) q = Squeeze(p) y = Gemm<transB=1>(q, v)", "float[2,8] v", y="4,2"
).replace("[N,3", "[4,3")


def test_an_axis_that_would_be_squeezed_keeps_two_elements() -> None:
    """With one channel, Squeeze without axes would remove the channels too."""
    model = network("squeezed" + SQUEEZED)
    (group,) = analyze(model).groups
    assert group.least == 2
    assert prune(model, ratio=0.9).report["groups"][0]["kept"] == 2


def test_copies_that_are_an_output_keep_their_number() -> None:
    """A size that comes to 1 is not the 1 that leaves an axis of an Expand as it is."""
    model = network("""
        copies (float[N,6] x) => (float[N,3] y, int64[8,3] e)
        <float[6,8] w1, int64[1,3] values = {1, 2, 3}, int64[1] three = {3}, float[8,3] w2>
        {
            h = MatMul(x, w1) c = Shape<start=1>(h) s = Concat<axis=0>(c, three)
            e = Expand(values, s) y = MatMul(h, w2)
        }""")
    for kept in (4, 1):
        result = prune(model, ratio=1 - kept / 8, round_to=1)
        assert result.report["groups"][0]["kept"] == kept


def test_what_an_operator_rejects_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scope, "keeps", lambda *_: None)
    with pytest.raises(RewriteError, match=r"Gemm `.*of the smaller network; nothing was written"):
        prune(network("squeezed" + SQUEEZED), ratio=0.9)
