"""Operators that work element by element: what they do to zeroed channels, and broadcasting."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.operators.harness import Row, check, row


def chain(line: str, *, weights: str = "", before: str = "") -> str:
    """h (N, 6, 4), and k like it where it is used -> a -> a sum weighted by `v`."""
    twice = re.search(r"\bk\b", before + line)
    return f"""
        (float[N,3,4] x) => (float[N,2,4] y)
        <float[6,3,1] w, float[2,6,1] v {", float[6,3,1] u" if twice else ""} {weights}>
        {{
            h = Conv(x, w)
            {"k = Conv(x, u)" if twice else ""}
            {before}
            {line}
            f = Cast<to=1>(a)
            y = Conv(f, v)
        }}"""


ONE = ("w:0", "v:1")
TWO = ("w:0", "u:0", "v:1")
POSITIVE = "p = Abs(h)"
UNIT = "p = Tanh(h)"
INTEGERS = """
    four = Constant<value=float {4.0}>()
    hs = Mul(h, four) i = Cast<to=7>(hs) ks = Mul(k, four) j = Cast<to=7>(ks)
"""
NATURALS = "ha = Abs(h) i = Cast<to=12>(ha) ka = Abs(k) j = Cast<to=12>(ka)"
FLAGS = "z = Constant<value=float {0.1}>() i = Greater(h, z) j = Greater(k, z)"

UNARY = [
    row(name, chain(f"a = {name}(h)"), *ONE, opset=opset)
    for name, opset in (
        *((n, 21) for n in (
            "Abs Asinh Atan Ceil Cos Elu Erf Exp Floor HardSigmoid HardSwish Identity IsInf IsNaN "
            "LeakyRelu Mish Neg Relu Round Selu Sigmoid Sign Sin Sinh Cosh Softplus Softsign Tan "
            "Tanh ThresholdedRelu Celu Shrink Dropout"
        ).split()),
        ("Gelu", 20),
    )
] + [
    row(f"Dropout with a mask, opset {opset}", chain("a, m = Dropout(h)"), *ONE, opset=opset)
    for opset in (9, 11, 17)
]  # fmt: skip

NARROW = [
    row(name, chain(f"a = {name}(p)", before=before), *ONE, opset=21)
    for name, before in (
        ("Sqrt", POSITIVE), ("Acos", UNIT), ("Asin", UNIT), ("Atanh", "t = Tanh(h) q = Constant<"
         "value=float {0.5}>() p = Mul(t, q)"), ("Acosh", "e = Abs(h) o = Constant<value=float "
         "{1.0}>() p = Add(e, o)"), 
    )
]  # fmt: skip

LISTS = [
    row(name, chain(f"a = {name}(h, k)"), *TWO, opset=21)
    for name in "Add Sub Mul Max Min Sum Mean".split()
] + [
    row(name, chain(f"a = {name}(h, k)"), *TWO)
    for name in "Equal Greater GreaterOrEqual Less LessOrEqual".split()
] + [
    row("Div", chain("a = Div(h, p)", before="p = Exp(k)"), *TWO, exact=False),
    row("Pow", chain("a = Pow(p, k)", before="p = Exp(h)"), *TWO, exact=False),
    row("Mod", chain("a = Mod<fmod=1>(h, p)", before="p = Exp(k)"), *TWO, exact=False),
    row("Reciprocal", chain("a = Reciprocal(p)", before="p = Exp(h)"), *ONE, exact=False),
    row("PRelu", chain("a = PRelu(h, s)", weights=", float[6,1] s"), *ONE, "s:0"),
    row("CastLike another shape", chain("a = CastLike(h, x)"), *ONE),
    row("Where", chain("a = Where(c, h, k)", weights=", bool[6,1] c"),
        frozen={"w:0": "positions", "c:0": "positions"}),
    row("Where, per position", chain("a = Where(c, h, k)", weights=", bool[4] c"), *TWO),
    row("Where, by features", chain("a = Where(i, h, k)", before=FLAGS), *TWO),
    row("Div by zeroed weights", chain("a = Div(h, s)", weights=", float[6,1] s"), *ONE, "s:0",
        exact=False),
    row("Log", chain("a = Log(p)", before=POSITIVE), *ONE, exact=False),
    row("Log of zeroed features, then a sum", """
        (float[N,3,4] x) => (float[N,1,4] y) <float[6,3,1] w, int64[1] one = {1}>
        {
            h = Conv(x, w)
            e = Abs(h)
            l = Log(e)
            y = ReduceSum(l, one)
        }""", "w:0", exact=False),
]  # fmt: skip

TYPED = [
    row(name, chain(f"a = {name}(i, j)", before=INTEGERS), *TWO)
    for name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
] + [
    row(name, chain(f"a = {name}(i, j)", before=FLAGS), *TWO) for name in ("And", "Or", "Xor")
] + [
    row("Not", chain("a = Not(i)", before=FLAGS), *TWO[::2]),
    row("BitwiseNot", chain("a = BitwiseNot(i)", before=INTEGERS), *ONE),
    row("BitShift", chain('a = BitShift<direction="LEFT">(i, j)', before=NATURALS), *TWO),
    row("Cast", chain("a = Cast<to=7>(h)"), *ONE),
    row("BitCast", chain("a = BitCast<to=6>(h)"), *ONE, opset=26, runs=False),
    row("Swish", chain("a = Swish<alpha=1.5>(h)"), *ONE, opset=24, runs=False),
    row("SwiGLU", chain("a = SwiGLU(h, k)"), *TWO, opset=28, runs=False),
]  # fmt: skip

CLIPS = [
    row("Clip around zero", chain("a = Clip(h, l, m)",
        weights=", float l = {-1.0}, float m = {6.0}"), *ONE),
    row("Clip above zero", chain("a = Clip(h, l)", weights=", float l = {0.5}"), *ONE),
    row("Clip opset 9", chain("a = Clip<min=-1.0, max=6.0>(h)"), *ONE, opset=9),
    row("Clip above zero, then a sum", """
        (float[N,3,4] x) => (float[N,1,4] y) <float[6,3,1] w, int64[1] one = {1}, float l = {0.5}>
        {
            h = Conv(x, w)
            c = Clip(h, l)
            y = ReduceSum(c, one)
        }""", "w:0", exact=False),
]  # fmt: skip

SHRINKS = [
    row(name, f"""
        (float[N,3,4] x) => (float[N,1,4] y) <float[6,3,1] w, int64[1] one = {{1}}>
        {{ h = Conv(x, w) s = Shrink<{options}>(h) y = ReduceSum(s, one) }}""", "w:0", exact=exact)
    for name, options, exact in (
        ("Shrink, then a sum", "lambd=0.2, bias=0.1", True),
        ("Shrink nowhere, then a sum", "lambd=-1.0, bias=0.5", False),
        ("Shrink nowhere by nothing", "lambd=-1.0", True),
    )
]  # fmt: skip

BROADCASTS = [
    row("bias over the image", chain("a = Add(h, s)", weights=", float[6,1] s"), *ONE, "s:0"),
    row("bias of full rank", chain("a = Add(s, h)", weights=", float[1,6,4] s"), *ONE, "s:1"),
    row("per position", chain("a = Mul(h, s)", weights=", float[4] s"), *ONE,
        frozen={"s:0": "slides a window"}),
    row("one number", chain("a = Mul(h, s)", weights=", float s"), *ONE),
    row("vector expanded twice", chain("a = Sum(h, s, k)", weights=", float[6,1] s"), *TWO, "s:0"),
    row("gate of one channel", chain("a = Mul(h, g)", weights=", float[1,3,1] t",
        before="g = Conv(x, t)"), *ONE),
    row("a size used as a number stays that number", chain(
        "a = Div(h, n)",
        before="d = Shape<start=1, end=2>(h) n = Cast<to=1>(d)"), *ONE),
]  # fmt: skip

ROWS = [*UNARY, *NARROW, *LISTS, *TYPED, *CLIPS, *SHRINKS, *BROADCASTS]


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_row(entry: Row, tmp_path: Path) -> None:
    check(entry, tmp_path)
