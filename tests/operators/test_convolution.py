"""Convolutions and pooling over ranks, groups, strides, paddings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.operators.harness import Row, check, row


def conv(rank: int, attributes: str, *, groups: int = 1, transposed: bool = False) -> str:
    """x (N, 4, *) -> u, 6 channels -> w, 6 channels in groups -> v."""
    space, kernel = ",".join(["9"] * rank), ",".join(["3"] * rank)
    ones, free = ",".join(["1"] * rank), ",".join("ABC"[:rank])
    kind = "ConvTranspose" if transposed else "Conv"
    return f"""
        (float[N,4,{space}] x) => (float[N,2,{free}] y)
        <float[6,4,{ones}] u, float[6,{6 // groups},{kernel}] w, float[6] b, float[2,6,{ones}] v>
        {{
            h = Conv(x, u)
            r = Relu(h)
            c = {kind}<{attributes}, group={groups}>(r, w, b)
            a = Tanh(c)
            y = Conv(a, v)
        }}"""


PLAIN = ("u:0", "w:1", "w:0", "b:0", "v:1")
GROUPED = ("u:0", "w:0", "b:0", "v:1")
ATTRIBUTES = {
    "strides": "strides=[{2}]",
    "pads": "pads=[{1},{2}]",
    "dilations": "dilations=[{2}]",
    "auto_pad": 'auto_pad="SAME_UPPER"',
}


def spread(text: str, rank: int) -> str:
    """`{2}` in an attribute is one number per spatial axis."""
    for number in "12":
        text = text.replace(f"{{{number}}}", ",".join([number] * rank))
    return text


CONVOLUTIONS = [
    row(
        f"{'transposed ' * transposed}{rank}d, groups {groups}, {name}",
        conv(rank, spread(text, rank), groups=groups, transposed=transposed),
        *(PLAIN if groups == 1 else GROUPED),
    )
    for transposed in (False, True)
    for rank, groups, name in (
        (1, 1, "strides"), (1, 6, "pads"), (2, 1, "strides"), (2, 1, "pads"), (2, 1, "dilations"),
        (2, 2, "pads"), (2, 3, "strides"), (2, 6, "dilations"), (2, 1, "auto_pad"), (3, 1, "pads"),
        (3, 2, "strides"),
    )
    for text in (ATTRIBUTES[name],)
]  # fmt: skip

SHAPED = [
    row(
        "groups of several channels go as a whole",
        """
        (float[N,4,5,5] x) => (float[N,2,5,5] y)
        <float[8,4,1,1] u, float[4,4,1,1] w, float[2,4,1,1] v>
        {
            h = Conv(x, u)
            c = Conv<group=2>(h, w)
            y = Conv(c, v)
        }""",
        "u:0", "w:0", "v:1",
    ),
    row(
        "groups of features that aren't zero",
        """
        (float[N,4,5,5] x) => (float[N,2,5,5] y)
        <float[8,4,1,1] u, float[4,4,1,1] w, float[2,4,1,1] v>
        {
            h = Conv(x, u)
            s = Sigmoid(h)
            c = Conv<group=2>(s, w)
            y = Conv(c, v)
        }""",
        "u:0", "w:0", "v:1",
        exact=False,
    ),
    row(
        "groups whose input is frozen are pruned within",
        """
        (float[N,4,5,5] x) => (float[N,2,5,5] y) <float[8,2,1,1] w, float[2,8,1,1] v>
        {
            c = Conv<group=2>(x, w)
            y = Conv(c, v)
        }""",
        "w:0", "v:1",
    ),
    row(
        "depthwise multiplier",
        """
        (float[N,4,5,5] x) => (float[N,2,5,5] y)
        <float[3,4,1,1] u, float[6,1,3,3] w, float[2,6,1,1] v>
        {
            h = Conv(x, u)
            c = Conv<group=3, pads=[1,1,1,1]>(h, w)
            y = Conv(c, v)
        }""",
        "u:0", "w:0", "v:1",
    ),
    row(
        "residual: input and output are one",
        """
        (float[N,4,5,5] x) => (float[N,2,5,5] y)
        <float[6,4,1,1] u, float[6,6,3,3] w, float[2,6,1,1] v>
        {
            h = Conv(x, u)
            c = Conv<pads=[1,1,1,1]>(h, w)
            s = Add(h, c)
            y = Conv(s, v)
        }""",
        "u:0", "w:0", "w:1", "v:1",
    ),
    row(
        "weights that are computed",
        """
        (float[N,4,5,5] x) => (float[N,2,5,5] y)
        <float[6,4,1,1] w, float[6,1,1,1] scale, float[2,6,1,1] v>
        {
            t = Mul(w, scale)
            h = Conv(x, t)
            y = Conv(h, v)
        }""",
        "w:0", "scale:0", "v:1",
    ),
    row(
        "the network's own output",
        "(float[N,4,5,5] x) => (float[N,6,5,5] y) <float[6,4,1,1] w> { y = Conv(x, w) }",
        frozen={"w:0": "is graph output `y`", "w:1": "is graph input `x`"},
    ),
]  # fmt: skip


def pooled(operator: str, rank: int = 2) -> str:
    space, ones, free = ("9," * rank)[:-1], ("1," * rank)[:-1], ",".join("ABC"[:rank])
    return f"""
        (float[N,4,{space}] x) => (float[N,2,{free}] y) <float[6,4,{ones}] w, float[2,6,{ones}] v>
        {{
            h = Conv(x, w)
            {operator}
            y = Conv(a, v)
        }}"""


POOLS = [
    row(name, pooled(f"a = {line}(h)", rank), "w:0", "v:1", opset=opset)
    for name, line, rank, opset in (
        ("max", "MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>", 2, 12),
        ("max 1d, ceil", "MaxPool<kernel_shape=[2], strides=[2], ceil_mode=1>", 1, 12),
        ("max 3d, dilations", "MaxPool<kernel_shape=[2,2,2], dilations=[2,2,2]>", 3, 12),
        ("max opset 9", "MaxPool<kernel_shape=[2,2]>", 2, 9),
        ("average", "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>", 2, 19),
        ("average, padding counts", "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1],"
         " count_include_pad=1>", 2, 19),
        ("lp", "LpPool<kernel_shape=[3,3], p=2>", 2, 18),
        ("global average", "GlobalAveragePool", 2, 21),
        ("global average 1d", "GlobalAveragePool", 1, 9),
        ("global max", "GlobalMaxPool", 2, 21),
        ("global lp", "GlobalLpPool<p=2>", 2, 21),
    )
] + [
    row(
        "unpool",
        pooled(
            "p, i = MaxPool<kernel_shape=[3,3], strides=[3,3]>(h)\n"
            "a = MaxUnpool<kernel_shape=[3,3], strides=[3,3]>(p, i)"
        ),
        "w:0", "v:1",
    ),
    row(
        "positions of the maxima as numbers",
        """
        (float[N,3,6,6] x) => (float[N,8,2,2] y) <float[8,3,1,1] w>
        { h = Conv(x, w) p, i = MaxPool<kernel_shape=[3,3], strides=[3,3]>(h) y = Cast<to=1>(i) }
        """,
        frozen={"w:0": "positions that count the channels"},
    ),
    row(
        "local response: neighbours in the channel axis count",
        pooled("a = LRN<size=3, alpha=5.0>(h)"),
        "w:0", "v:1", exact=False,
    ),
]  # fmt: skip

ROWS = [*CONVOLUTIONS, *SHAPED, *POOLS]


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_row(entry: Row, tmp_path: Path) -> None:
    check(entry, tmp_path)
