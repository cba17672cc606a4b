"""Reductions over and beside channels, and operators that search or accumulate along an axis."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.operators.harness import Row, check, row


def tokens(lines: str, weights: str = "", *, y: str) -> str:
    """x (N, 5, 4) -> h (N, 5, 8) -> lines, which compute y."""
    return f"""
        (float[N,5,4] x) => (float[{y}] y) <float[4,8] w {weights}>
        {{ h = MatMul(x, w) {lines} }}"""


V = ", float[8,2] v"
CUT = ("w:1", "v:0")
LAST, MIDDLE = ", int64[1] axes = {2}", ", int64[1] axes = {1}"

SUMMING = "ReduceSum ReduceL1 ReduceL2 ReduceSumSquare".split()
DEPENDING = "ReduceMean ReduceMax ReduceMin ReduceProd ReduceLogSum ReduceLogSumExp".split()

OVER_CHANNELS = [
    row(f"{name} over channels", tokens(f"p = Abs(h) y = {name}(p, axes)", LAST, y="N,5,1"), "w:1",
        exact=name in SUMMING)
    for name in (*SUMMING, *DEPENDING)
] + [
    row(f"{name} over channels opset 11", tokens(
        f"p = Abs(h) y = {name}<axes=[2], keepdims=0>(p)", y="N,5"), "w:1",
        exact=name in SUMMING, opset=11)
    for name in (*SUMMING, *DEPENDING)
] + [
    row("sum of features that aren't zero", tokens("s = Sigmoid(h) y = ReduceSum(s, axes)", LAST,
        y="N,5,1"), "w:1", exact=False),
    *(
        row(f"{name} over everything", tokens(f"y = {name}<keepdims=0>(h)", y="1").replace(
            "float[1] y", "float y"), "w:1", exact=exact)
        for name, exact in (("ReduceSum", True), ("ReduceMean", False))
    ),
]  # fmt: skip

BESIDE_CHANNELS = [
    row(f"{name} over tokens", tokens(
        f"p = Abs(h) r = {name}<keepdims=0>(p, axes) y = MatMul(r, v)", V + MIDDLE, y="N,2"), *CUT,
        exact=name != "ReduceLogSum")
    for name in (*SUMMING, *DEPENDING)
] + [
    row("mean over tokens by a negative axis", tokens(
        "r = ReduceMean<axes=[-2]>(h) y = MatMul(r, v)", V, y="N,1,2"), *CUT, opset=13),
    row("sum over nothing", tokens("r = ReduceSum<noop_with_empty_axes=1>(h) y = MatMul(r, v)", V,
        y="N,5,2"), *CUT),
]  # fmt: skip

SEARCHING = [
    row("largest channel", tokens("a = ArgMax<axis=2>(h) y = Cast<to=1>(a)", y="N,5,1"),
        frozen={"w:1": "is searched by position"}),
    row("largest token", tokens("a = ArgMin<axis=1, keepdims=0>(h) f = Cast<to=1>(a)"
        " y = MatMul(f, v)", V, y="N,2"), *CUT),
    row("top channels", tokens("t, i = TopK<axis=2>(h, k) y = Identity(t)", ", int64[1] k = {3}",
        y="N,5,3"), frozen={"w:1": "is ordered by position"}),
    row("top tokens", tokens("t, i = TopK<axis=1>(h, k) y = MatMul(t, v)",
        V + ", int64[1] k = {3}", y="N,3,2"), *CUT),
    row("running sum over tokens", tokens("s = CumSum<reverse=1>(h, a) y = MatMul(s, v)",
        V + ", int64 a = {1}", y="N,5,2"), *CUT),
    row("running sum over channels", tokens("s = CumSum(h, a) y = MatMul(s, v)",
        V + ", int64 a = {-1}", y="N,5,2"), frozen={"w:1": "is ordered by position"}),
    row("running product over tokens", tokens("s = CumProd(h, a) y = MatMul(s, v)",
        V + ", int64 a = {1}", y="N,5,2"), *CUT, opset=26, runs=False),
]  # fmt: skip

ROWS = [*OVER_CHANNELS, *BESIDE_CHANNELS, *SEARCHING]


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_row(entry: Row, tmp_path: Path) -> None:
    check(entry, tmp_path)
