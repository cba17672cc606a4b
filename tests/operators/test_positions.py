"""Positions that a ranking makes: experts behind top-k routing, and what else indexes with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.operators.harness import Row, check, row

SOFTMAX_FIRST = "p = Softmax(l) v, i = TopK(p, k) s = ReduceSum(v, last) c = Div(v, s)"
SOFTMAX_LAST = "v, i = TopK(l, k) c = Softmax(v)"
LOOK_UP = "up = Gather(w, i) down = Gather(u, i)"
MIX = """
    xe = Unsqueeze(x, inner) h = MatMul(xe, up) a = Relu(h) o = MatMul(a, down)
    q = Squeeze(o, two) ce = Unsqueeze(c, two) m = Mul(q, ce) y = ReduceSum<keepdims=0>(m, one)"""
MOVED = "f = Reshape(i, flat) j = Cast<to=7>(f) g = Unsqueeze(j, last)"
EXPERTS = ("r:1", "w:0", "u:0")


def routed(
    route: str, look_up: str = LOOK_UP, mix: str = MIX, *, k: int = 2, dtype: str = "float",
    extra: str = "", y: str = "N,3", router: str = "l = MatMul(x, r)",
) -> str:  # fmt: skip
    """x (N, 4) -> logits l of 6 experts -> `route`: shares c, positions i -> looked up -> mixed."""
    return f"""
        ({dtype}[N,4] x) => ({dtype}[{y}] y) <{dtype}[4,6] r, {dtype}[6,4,8] w, {dtype}[6,8,3] u,
         int64[1] k = {{{k}}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] last = {{-1}},
         int64[2] inner = {{1, 2}}, int64[1] flat = {{-1}}{extra and ", " + extra}>
        {{ {router} {route} {look_up} {mix} }}"""


def mixed(name: str, text: str, *prunes: str, **options: object) -> Row:
    """Experts may leave; their hidden width too."""
    return row(name, text, *EXPERTS, "w:2", "u:1", *prunes, **{"exact": None, **options})


def kept(name: str, text: str, reason: str) -> Row:
    """The number of experts stays, and their hidden width is pruned."""
    frozen = dict.fromkeys(EXPERTS, reason)
    return row(name, text, "w:2", "u:1", frozen=frozen, exact=None)


DENSE = """
    xu = Unsqueeze(x, one) all = Einsum<equation="nd,edf->enf">(x, w) ra = Relu(all)
    each = MatMul(ra, u) moved = Transpose<perm=[1,0,2]>(each)"""  # (n, experts, 3)
WEIGH = f"""{DENSE} t = Unsqueeze(full, two) z = Mul(moved, t) y = ReduceSum<keepdims=0>(z, one)"""
BACK = ' back = Einsum<equation="nke,nk->ne">(hot, c) full = Identity(back)'
NUMBERS = "int64[6] numbers = {0, 1, 2, 3, 4, 5}"

ROUTED = [
    mixed(f"{order}, {k} of 6{', fp16' * (dtype == 'float16')}", routed(route, k=k, dtype=dtype))
    for order, route in (("softmax first", SOFTMAX_FIRST), ("softmax last", SOFTMAX_LAST))
    for k, dtype in ((1, "float"), (2, "float"), (5, "float"), (2, "float16"))
] + [
    mixed("moved positions", routed(
        "v, i = TopK(l, k) d = Softmax(v) c = Reshape(d, flat)",
        f"{MOVED} up = GatherND(w, g) down = GatherND(u, g)",
        """
        e = Unsqueeze(x, one) rep = Expand(e, copies) b = Reshape(rep, lines) xe = Unsqueeze(b, one)
        h = MatMul(xe, up) a = Relu(h) o = MatMul(a, down) q = Squeeze(o, one)
        ce = Unsqueeze(c, one) m = Mul(q, ce) t = Reshape(m, apart)
        y = ReduceSum<keepdims=0>(t, one)""",
        extra="int64[3] copies = {1,2,1}, int64[2] lines = {-1,4}, int64[3] apart = {-1,2,3}")),
    mixed("a bias for each expert", routed(
        SOFTMAX_LAST, LOOK_UP + " shift = Gather(b, i) rise = Unsqueeze(shift, two)",
        MIX.replace("a = Relu(h)", "hb = Add(h, rise) a = Relu(hb)"), extra="float[6,8] b"),
        "b:0", "b:1"),
    mixed("weights that are computed", routed(
        SOFTMAX_LAST, "wg = Mul(w, gain) ug = Mul(u, gain) up = Gather(wg, i) down = Gather(ug, i)",
        extra="float gain = {0.5}")),
    mixed("scores apart from what is ranked", routed(
        "p = Sigmoid(l) pb = Add(p, b) v, i = TopK(pb, k) c = GatherElements<axis=1>(p, i)",
        extra="float[6] b"), "b:0"),
    mixed("a Max of nothing else", routed(
        f"{SOFTMAX_LAST} same = Max(i)", "up = Gather(w, same) down = Gather(u, same)")),
    mixed("the smallest", routed("v, i = TopK<largest=0>(l, k) c = Softmax(v)")),
    mixed("two routers, one behind the other", routed(
        SOFTMAX_LAST, router="a0 = MatMul(x, r1) b0 = MatMul(x, r2) l0 = Concat<axis=1>(a0, b0)"
        " d0 = MatMul(x, r) l = Add(l0, d0)", extra="float[4,2] r1, float[4,4] r2"),
        "r1:1", "r2:1"),
    mixed("the best one", routed(
        "i = ArgMax<axis=1>(l) c = ReduceMax(l, one)", mix=MIX)),
    mixed("ranked twice, the better of the best", routed(
        "v1, i1 = TopK(l, four) v, i2 = TopK(v1, k) i = GatherElements<axis=1>(i1, i2)"
        " c = Softmax(v)", extra="int64[1] four = {4}")),
    mixed("one that all share besides", routed(SOFTMAX_LAST, mix=MIX.replace("y =", "z =") + """
        ws = Gather(w, third) us = Gather(u, third) hs = MatMul(x, ws) s0 = MatMul(hs, us)
        y = Add(z, s0)""", extra="int64 third = {2}")),
    mixed("positions cut and joined", routed(
        "v, i0 = TopK(l, k) c = Softmax(v) i1, i2 = Split<axis=1, num_outputs=2>(i0)"
        " i3 = Slice(i0, none, one, one) i = Concat<axis=1>(i3, i2)",
        extra="int64[1] none = {0}")),
]  # fmt: skip

DENSELY = [
    mixed("dense, what all say, picked", routed(SOFTMAX_LAST, DENSE, """
        iu = Unsqueeze(i, two) ie = Expand(iu, copies) q = GatherElements<axis=1>(moved, ie)
        ce = Unsqueeze(c, two) m = Mul(q, ce) y = ReduceSum<keepdims=0>(m, one)""",
        extra="int64[3] copies = {1,1,3}")),
    mixed("dense, one-hot", routed(
        SOFTMAX_LAST, f"hot = OneHot(i, depth, ends) {BACK}", WEIGH,
        extra="int64 depth = {6}, float[2] ends = {0, 1}")),
    mixed("dense, one-hot, softmax first", routed(
        SOFTMAX_FIRST, f"hot = OneHot(i, depth, ends) {BACK}", WEIGH,
        extra="int64[1] depth = {6}, float[2] ends = {0, 1}")),
    mixed("dense, one-hot on an axis in front, of computed depth", routed(
        SOFTMAX_LAST,
        "depth = Shape<start=1>(l) cold = OneHot<axis=0>(i, depth, ends)"
        f" hot = Transpose<perm=[1,2,0]>(cold) {BACK}", WEIGH, extra="float[2] ends = {0, 1}")),
    mixed("dense, compared with all numbers", routed(
        SOFTMAX_LAST, f"iu = Unsqueeze(i, two) eq = Equal(iu, numbers) hot = Cast<to=1>(eq) {BACK}",
        WEIGH, extra=NUMBERS)),
    mixed("dense, compared with all numbers, by a constant of three axes", routed(
        SOFTMAX_LAST, f"iu = Unsqueeze(i, two) eq = Equal(numbers, iu) hot = Cast<to=1>(eq) {BACK}",
        WEIGH, extra=NUMBERS.replace("[6]", "[1,1,6]"))),
    mixed("dense, scattered", routed(
        SOFTMAX_LAST, "none = Sub(l, l) full = ScatterElements<axis=1>(none, i, c)", WEIGH)),
    mixed("dense, masked before the softmax", routed(
        "v, i = TopK(l, k) nothing = Mul(v, zero)",
        """
        least = Sub(l, l) low = Sub(least, far) up0 = ScatterElements<axis=1>(low, i, nothing)
        sum0 = Add(l, up0) full = Softmax(sum0)""", WEIGH,
        extra="float zero = {0}, float far = {10000}")),
]  # fmt: skip

COMPUTED = "computes with positions in this axis"
KEPT = [
    kept("as many as there are", routed(SOFTMAX_LAST, k=6), "position"),
    kept("with a number added", routed(SOFTMAX_LAST + " j = Add(i, none)",
        LOOK_UP.replace(", i)", ", j)"), extra="int64 none = {0}"), ""),
    kept("a number beside the look-up", routed(
        SOFTMAX_LAST + " f = Cast<to=1>(i) n = ReduceMean(f, one)", mix=MIX.replace(
            "y = ReduceSum<keepdims=0>(m, one)", "d = ReduceSum<keepdims=0>(m, one) y = Add(d, n)"),
    ), COMPUTED),
    kept("positions that are an output", routed(SOFTMAX_LAST).replace(
        "[N,3] y)", "[N,3] y, int64[N,2] i)"), "positions in this axis: is graph output `i`"),
    kept("compared with one number", routed(
        SOFTMAX_LAST + " eq = Equal(i, three) f = Cast<to=1>(eq) g = Add(c, f)",
        mix=MIX.replace("Unsqueeze(c", "Unsqueeze(g"), extra="int64 three = {3}"), COMPUTED),
    kept("narrow positions", routed(SOFTMAX_LAST + " n8 = Cast<to=3>(i) j = Cast<to=7>(n8)",
        LOOK_UP.replace(", i)", ", j)")), ""),
    kept("joined with other positions", routed(
        "v, i0 = TopK(l, one) i = Concat<axis=1>(i0, shared) c = Gather<axis=1>(l, pair)",
        extra="int64[1,1] shared = {5}, int64[2] pair = {0, 1}").replace("[N,4] x", "[1,4] x")
        .replace("[N,3] y", "[1,3] y"), ""),
    row("a table of vectors", """
        (float[N,4] x) => (float[N,3] y) <float[4,6] r, float[6,8] w, float[8,3] u>
        { l = MatMul(x, r) i = ArgMax<axis=1, keepdims=0>(l) h = Gather(w, i) y = MatMul(h, u) }""",
        "w:1", "u:0", frozen={"r:1": "is searched by position", "w:0": "is searched by position"}),
    row("places that are stored and picked, as detectors do", """
        (float[1,4] x) => (float[1,2,3] y) <float[4,6] r, float[1,6,4] w, float[4,3] u,
         int64[1] k = {2}, int64[1] last = {-1}, int64[3] copies = {1,1,4}>
        { l = MatMul(x, r) v, i = TopK(l, k) j = Unsqueeze(i, last) e = Expand(j, copies)
          h = GatherElements<axis=1>(w, e) y = MatMul(h, u) }""",
        "w:2", "u:0", frozen=dict.fromkeys(("r:1", "w:1"), "is ordered by position"), exact=None),
    kept("sought in a list", routed(
        SOFTMAX_LAST + " nz = NonZero(i) f = Cast<to=1>(nz) n = ReduceSum<keepdims=0>(f)",
        mix=MIX.replace("y = ReduceSum<keepdims=0>(m, one)",
                        "d = ReduceSum<keepdims=0>(m, one) y = Add(d, n)")), COMPUTED),
    row("k that is data", """
        (float[N,4] x, int64[1] k) => (float[N,A] y) <float[4,6] r, float[6,4,8] w>
        { l = MatMul(x, r) y, i = TopK(l, k) }""", frozen={"r:1": "is ordered by position"}),
]  # fmt: skip

ROWS = [*ROUTED, *DENSELY, *KEPT]


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_row(entry: Row, tmp_path: Path) -> None:
    check(entry, tmp_path)
