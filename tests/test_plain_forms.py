"""Forms that exporters write in a roundabout way: look-ups, lists, initial states, zero biases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from spa_graph import analyze, prune
from tests.models import assert_pruned, network, optimized, outputs, random_feeds

LOOKUP = """
lookup (float[N,6] x) => (float[N,3] y)
<float[6,8] w1, float[8,3] w2, int64[1] all = {{-1}}, int64 zero = {{0}}, int64 one = {{1}},
 int64 eight = {{8}}, int64[1,8] columns = {{{columns}}}>
{{
    h = MatMul(x, w1)
    flat = Reshape(h, all)
    sizes = Shape<end = 1>(x)
    batch = Squeeze(sizes)
    rows = Range(zero, batch, one)
    starts = Mul(rows, eight)
    column = Unsqueeze(starts, one1)
    index = Add(column, columns)
    again = Gather(flat, index)
    y = MatMul(again, w2)
}}
""".replace("int64 eight", "int64[1] one1 = {{1}}, int64 eight")


def test_look_up_of_all_elements_in_order_is_a_reshape() -> None:
    model = network(LOOKUP.format(columns="0,1,2,3,4,5,6,7"))
    result = prune(model, flops=0.5)
    pruned = assert_pruned(model, result)
    assert [node.op_type for node in pruned.graph.node] == ["MatMul", "Reshape", "MatMul"]
    changes = ["1 look-ups of all elements in order became Reshape"]
    assert result.report["canonicalized"] == changes


def test_look_up_in_another_order_stays() -> None:
    analysis = analyze(network(LOOKUP.format(columns="0,1,2,3,4,5,7,6")))
    assert not analysis.changed
    assert not analysis.groups


@pytest.mark.parametrize(
    "computed",
    [
        "index = Mod(unbounded, limit)",
        "index = Min(unbounded, limit)",
        "past = Div(unbounded, limit) some = Mul(past, eight) index = Add(unbounded, some)",
        "short = Cast<to = 3>(unbounded) index = Cast<to = 7>(short)",
    ],
)
def test_look_up_that_is_in_order_only_at_first_stays(computed: str) -> None:
    """Positions that are taken modulo 1024 are in order as long as there are no more."""
    text = LOOKUP.format(columns="0,1,2,3,4,5,6,7")
    text = text.replace("index = Add", "unbounded = Add").replace("again =", f"{computed} again =")
    analysis = analyze(network(text.replace("int64 zero", "int64 limit = {1024}, int64 zero")))
    assert not analysis.changed
    assert not analysis.groups


def test_shuffle_that_keeps_the_order_of_few_elements_stays() -> None:
    """Twice the perfect shuffle of 2 x N: in order for N = 1 and N = 2, not for N = 3."""
    text = """
    shuffled (float[N,6] x) => (float[N,3] y)
    <float[6,2] w1, float[2,3] w2, int64[1] all = {-1}, int64 zero = {0}, int64 one = {1},
     int64 two = {2}, int64[2] halves = {2, -1}, int64[2] joined = {-1, 2}>
    {
        h = MatMul(x, w1)
        flat = Reshape(h, all)
        sizes = Shape<end = 1>(x)
        batch = Squeeze(sizes)
        count = Mul(batch, two)
        i0 = Range(zero, count, one)
        i1 = Reshape(i0, halves)
        i2 = Transpose(i1)
        i3 = Reshape(i2, halves)
        i4 = Transpose(i3)
        index = Reshape(i4, joined)
        again = Gather(flat, index)
        y = MatMul(again, w2)
    }
    """
    analysis = analyze(network(text))
    assert not analysis.changed
    assert not analysis.groups


LIST = """
list (float[N,5] x) => (float[N,3] y)
<float[5,{whole}] w1, float[{part},3] w2, int64{split},
 int64 first = {{0}}, int64 last = {{{last}}}>
{{
    h = MatMul(x, w1)
    parts = SplitToSequence<axis = 1>(h, split)
    a = SequenceAt(parts, first)
    b = SequenceAt(parts, last)
    c = Mul(a, b)
    y = MatMul(c, w2)
}}
"""


@pytest.mark.parametrize(
    ("whole", "part", "split", "last"),
    [
        (16, 8, "[2] split = {8, 8}", -1),
        (16, 8, " split = {8}", 1),
        (20, 8, "[3] split = {8, 4, 8}", 2),  # nobody takes the part in the middle
    ],
)
def test_list_of_parts_is_a_split(whole: int, part: int, split: str, last: int) -> None:
    model = network(LIST.format(whole=whole, part=part, split=split, last=last))
    result = prune(model, flops=0.5)
    pruned = assert_pruned(model, result)
    assert [n.op_type for n in pruned.graph.node] == ["MatMul", "Split", "Mul", "MatMul"]
    assert result.report["canonicalized"] == ["1 lists of parts became Split"]


def test_list_that_is_taken_apart_by_data_stays() -> None:
    text = LIST.format(whole=16, part=8, split="[2] split = {8, 8}", last=1)
    model = network(text.replace("(float[N,5] x)", "(float[N,5] x, int64 at)")
                    .replace("(parts, last)", "(parts, at)"))  # fmt: skip
    analysis = analyze(model)
    assert not analysis.changed
    assert not analysis.groups


HALVES = """
halves (float[N,5] x) => (float[M,3] y)
<float[5,16] w1, float[16,3] w2, int64 two = {2}, int64 zero = {0}, int64 first = {0},
 int64 last = {1}>
{
    h = MatMul(x, w1)
    sizes = Shape(h)
    n = Gather(sizes, zero)
    half = Div(n, two)
    parts = SplitToSequence<axis = 0>(h, half)
    a = SequenceAt(parts, first)
    b = SequenceAt(parts, last)
    c = Mul(a, b)
    y = MatMul(c, w2)
}
"""


@pytest.mark.parametrize("batch", [2, 6, 7])
def test_parts_of_a_computed_size_are_slices(batch: int) -> None:
    """As torch writes `torch.chunk(x, 2)` of a free batch; an odd one has a third, short part."""
    model = network(HALVES)
    result = prune(model, flops=0.5, input_shapes={"x": (2, 5)})
    pruned = assert_pruned(model, result)
    assert "SplitToSequence" not in [node.op_type for node in pruned.graph.node]
    assert result.report["canonicalized"] == ["1 lists of parts of a computed size became Slice"]
    analysis = analyze(network(HALVES), input_shapes={"x": (2, 5)})
    feeds = random_feeds(model, dynamic=batch)
    canonical = outputs(ir.to_proto(analysis.model), feeds)
    for got, want in zip(canonical, outputs(model, feeds), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "change",
    [
        ("int64 last = {1}", "int64 last = {-1}"),
        ("<axis = 0>", "<axis = 0, keepdims = 0>"),
        ("c = Mul(a, b)", "k = SequenceLength(parts) f = Cast<to = 1>(k) c = Mul(a, f)"),
    ],
    ids=["from the end", "squeezed", "counted"],
)
def test_other_lists_of_a_computed_size_stay(change: tuple[str, str]) -> None:
    analysis = analyze(network(HALVES.replace(*change)), input_shapes={"x": (4, 5)})
    assert not analysis.changed
    assert not analysis.groups


def test_a_part_that_is_not_there_for_some_sizes() -> None:
    """The network itself rejects them; the Slice would be empty."""
    text = HALVES.replace("int64 last = {1}", "int64 last = {2}").replace("Mul(a, b)", "Add(a, b)")
    text = text.replace("c = Add(a, b)", "c = Concat<axis = 0>(a, b)")
    model = network(text)
    result = prune(model, ratio=0.5, input_shapes={"x": (5, 5)})  # 2, 2 and 1; an even batch has 2
    assert_pruned(model, result, dynamic=5)


def test_the_size_of_parts_may_come_from_an_axis_that_is_pruned() -> None:
    text = HALVES.replace("int64 two = {2}", "int64 two = {8}, int64 place = {1}")
    text = text.replace("Gather(sizes, zero)", "Gather(sizes, place)")
    result = prune(network(text), ratio=0.5, input_shapes={"x": (4, 5)})
    assert result.report["ratio"]["params"] < 0.7


def test_lists_behind_parts_of_lists() -> None:
    """The sizes of parts follow from what they were cut into, though a file's lists tell none."""
    model = network("""
        lists (float[N,5] x) => (float[N,3] y)
        <float[5,16] w1, float[4,12] w2, float[6,3] w3, int64[2] split = {4, 12}, int64 half = {6},
         int64 first = {0}, int64 last = {-1}>
        {
            h = MatMul(x, w1)
            parts = SplitToSequence<axis = -1>(h, split)
            a = SequenceAt(parts, first) b = SequenceAt(parts, last)
            c = MatMul(a, w2) d = Mul(b, c)
            halves = SplitToSequence<axis = 1>(d, half)
            e = SequenceAt(halves, first) f = SequenceAt(halves, last)
            g = Mul(e, f) y = MatMul(g, w3)
        }
        """)
    result = prune(model, flops=0.5)
    pruned = assert_pruned(model, result)
    assert [n.op_type for n in pruned.graph.node].count("Split") == 2
    assert {group.name for group in analyze(model).groups} == {"w2:0", "w3:0"}


def test_look_up_along_one_axis_is_a_gather() -> None:
    """As torch's exporter writes `h[:, [1, -2]]`: positions in front, computed from constants."""
    model = network("""
        picks (float[N,5] x) => (float[N,3] y)
        <float[5,24] w1, float[8,3] w2, int64[4] heads = {0, 6, 4, 1}, int64[3] flat = {2, -1, 4},
         int64[2] positions = {1, -2}, int64[1] last = {1}, int64[1] one = {1},
         int64[2] joined = {0, -1}>
        {
            h = MatMul(x, w1) apart = Reshape(h, heads)
            moved = Transpose<perm = [1,0,2,3]>(apart)
            index = Unsqueeze(positions, last)
            picked = GatherND(moved, index)
            back = Transpose<perm = [1,0,2,3]>(picked)
            again = Reshape(back, joined)
            y = MatMul(again, w2)
        }
        """)
    result = prune(model, flops=0.5)
    pruned = assert_pruned(model, result)
    assert "Gather" in [node.op_type for node in pruned.graph.node]
    assert result.report["canonicalized"] == ["1 look-ups along one axis became Gather"]


CAPTURING = """total = ReduceMean<keepdims = 0>(c)
    least = Constant<value_float = 0.0>()
    more = Greater(total, least)
    d = If(more) <
        then_branch = yes () => (float[N,8] t) { t = SequenceAt(parts, first) },
        else_branch = no () => (float[N,8] t) { t = Neg(c) }
    >
    y = MatMul(d, w2)"""

LAYERS = """
layers (float[T,N,5] x) => (float[T,N,2] y)
<float[1,24,5] w1, float[1,24,6] r1, float[1,24,6] w2, float[1,24,6] r2, float[6,2] v,
 int64[1] layers = {{2}}, int64[1] six = {{6}}, int64[1] zero = {{0}}, int64[1] one = {{1}},
 int64[1] two = {{2}}>
{{
    batch = Shape<start = 1, end = 2>(x)
    shape = Concat<axis = 0>(layers, batch, six)
    number = Constant<value_float = {fill}>()
    states = Expand(number, shape)
    s1 = Slice(states, zero, one, zero)
    s2 = Slice(states, one, two, zero)
    a4, ah, ac = LSTM<hidden_size = 6>(x, w1, r1, , , s1, s1)
    a = Squeeze(a4, one)
    b4, bh, bc = LSTM<hidden_size = 6>(a, w2, r2, , , s2, s2)
    b = Squeeze(b4, one)
    y = MatMul(b, v)
}}
"""


def test_initial_states_of_zero_are_left_out() -> None:
    model = network(LAYERS.format(fill=0.0))
    assert [group.size for group in analyze(model).groups] == [6, 6]
    result = prune(model, flops=0.5)
    pruned = assert_pruned(model, result)
    types = [node.op_type for node in pruned.graph.node]
    assert types == ["LSTM", "Squeeze", "LSTM", "Squeeze", "MatMul"]
    assert len(pruned.graph.node[0].input) == 3
    assert result.report["canonicalized"] == ["4 initial states of zeros were left out"]


def test_other_initial_states_stay() -> None:
    assert not analyze(network(LAYERS.format(fill=0.5))).changed


SHUFFLE = """
shuffle (float[N,3,4] x) => (float[N,2,4] y)
<float[8,3,1] w1, float[2,8,1] w2, int64[4] cut = {0, 2, 4, 4}, int64[3] joined = {0, 8, 4}>
{
    h = Conv(x, w1)
    a = Reshape(h, cut)
    b = Transpose<perm = [0, 2, 1, 3]>(a)
    c = Identity(b)
    d = Reshape(c, joined)
    y = Conv(d, w2)
}
"""


def test_shuffle_with_an_identity_in_it() -> None:
    model = network(SHUFFLE)
    result = prune(model, ratio=0.5)
    assert result.report["canonicalized"] == ["1 channel shuffles became Gather"]
    pruned = assert_pruned(model, result)
    assert [node.op_type for node in pruned.graph.node] == ["Conv", "Gather", "Conv"]


BIAS = """
bias (float[N,3,4] x) => (float[N,2,4] y) <float[8,3,1] w1, float[2,8,1] w2>
{
    sizes = Shape<start = 0, end = 1>(w1)
    number = Constant<value_float = 0.0>()
    zero = CastLike(number, x)
    bias = Expand(zero, sizes)
    h = Conv(x, w1, bias)
    y = Conv(h, w2)
}
"""


def test_computed_bias_of_zeros_is_left_out() -> None:
    """As PyTorch's exporter writes it, before it optimises."""
    model = network(BIAS)
    assert [group.size for group in analyze(model).groups] == [8]
    result = prune(model, flops=0.5)
    pruned = assert_pruned(model, result)
    assert [list(node.input) for node in pruned.graph.node] == [["x", "w1"], ["h", "w2"]]
    assert result.report["canonicalized"] == ["1 computed biases of zeros were left out"]


def test_other_biases_stay() -> None:
    model = network(BIAS.replace("value_float = 0.0", "value_float = 0.5"))
    assert not analyze(model).changed
    assert_pruned(model, prune(model, flops=0.5))


def test_stored_bias_of_zeros_stays() -> None:
    """It is a weight: it may be refitted, and plans name it."""
    text = BIAS.replace("float[2,8,1] w2>", "float[2,8,1] w2, float[2] b2 = {0, 0}>")
    model = network(text.replace("y = Conv(h, w2)", "y = Conv(h, w2, b2)"))
    assert "b2" in analyze(model).graph.parameters
    assert list(prune(model, flops=0.5).model.graph.node[-1].input)[2] == "b2"


PARTS = """
parts (float[N,6] x) => (float[N,3] y)
<float[6,8] w1, float[20] table, float[8,3] w2, int64[1] two = {2}, int64[1] ten = {10}>
{
    h = MatMul(x, w1)
    bias = Slice(table, two, ten)
    b = Add(h, bias)
    y = MatMul(b, w2)
}
"""


def test_parts_of_a_constant_that_nobody_takes_are_no_channels() -> None:
    model = network(PARTS)
    assert [group.size for group in analyze(model).groups] == [8]
    assert_pruned(model, prune(model, flops=0.5))


@pytest.mark.parametrize(
    "change",
    [
        ("=> (float[N,3] y)", "=> (float[N,3] y, seq(float[N,8]) parts)"),
        ("y = MatMul(c, w2)", CAPTURING),
    ],
)
def test_list_that_is_used_as_a_whole_too_stays(change: tuple[str, str]) -> None:
    text = LIST.format(whole=16, part=8, split="[2] split = {8, 8}", last=1)
    analysis = analyze(network(text.replace(*change)))
    assert not analysis.changed
    assert not analysis.groups


TABLE = """
table (float[T,N,5] x) => (float[T,N,2] y)
<float[1,24,5] w1, float[1,24,6] r1, float[6,2] v, int64[40,6] table, int64[1] zero = {0},
 int64[1] one = {1}>
{
    batch = Shape<start = 1, end = 2>(x)
    rows = Slice(table, zero, batch, zero)
    numbers = Cast<to = 1>(rows)
    state = Unsqueeze(numbers, zero)
    a4, ah, ac = LSTM<hidden_size = 6>(x, w1, r1, , , state)
    a = Squeeze(a4, one)
    y = MatMul(a, v)
}
"""


@pytest.mark.parametrize(("zeros", "left_out"), [(40, True), (30, False)])
def test_only_tables_of_nothing_but_zeros_are_no_initial_state(zeros: int, left_out: bool) -> None:
    table = (np.arange(40) >= zeros).astype(np.int64)[:, None].repeat(6, 1)
    analysis = analyze(network(TABLE, values={"table": table}))
    assert bool(analysis.changed) == left_out


EXCITATION = """
excitation (float[N,8,6,6] x) => (float[N,4,6,6] y)
<float[12,8,1,1] w1, float[12,12,1,1] w2, float[4,12,1,1] w3,
 int64[4] first = {-1,12,1,1}, int64[4] last = {-1,1,1,12}>
{
    h = Conv(x, w1)
    a = Transpose<perm = [0,2,3,1]>(h)
    b = HardSwish(a)
    mean = ReduceMean<axes = [1,2], keepdims = 1>(b)
    c = Reshape(mean, first)
    d = Conv(c, w2)
    e = Reshape(d, last)
    f = Mul(b, e)
    g = Transpose<perm = [0,3,1,2]>(f)
    y = Conv(g, w3)
}
"""


def test_reshapes_that_change_a_layout_no_longer_keep_transposes_from_cancelling(
    tmp_path: Path,
) -> None:
    model = network(EXCITATION)
    assert optimized(model, tmp_path).count("Transpose") == 2
    result = prune(model, flops=0.5)
    pruned = assert_pruned(model, result)
    assert result.report["canonicalized"] == ["2 changes of layout became Transpose"]
    assert "Transpose" not in optimized(pruned, tmp_path)


def test_an_image_of_one_channel_is_reshaped_for_nothing() -> None:
    """As TensorFlow's exporters write it; a Transpose in its place would have to be done."""
    text = """net (float[N,6,6,1] x) => (float[N,4,4,8] y)
    <float[8,1,3,3] w1, float[8,8,1,1] w2, int64[4] sizes = {-1,1,6,6}>
    {
        first = Reshape(x, sizes)
        h = Conv(first, w1)
        r = Relu(h)
        o = Conv(r, w2)
        y = Transpose<perm = [0,2,3,1]>(o)
    }"""
    model = network(text)
    result = prune(model, ratio=0.5)
    pruned = assert_pruned(model, result)
    assert [node.op_type for node in pruned.graph.node].count("Transpose") == 1


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ("float[N,2,3,1] x", "0,3,1,2"),  # elements change places
        ("float[N,M,1,1] x", "0,1,1,-1"),  # two sizes that may differ
        ("float[N,6,1,1] x", "1,-1,6,1"),  # no Transpose does so here
    ],
)
def test_other_reshapes_stay(shape: str, sizes: str) -> None:
    text = f"""
    other ({shape}, float[N,6,4,4] image) => (float[a,b,c,d] y, float[N,4,4,6] z)
    <int64[4] sizes = {{{sizes}}}> {{
        y = Reshape(x, sizes)
        z = Transpose<perm = [0,2,3,1]>(image)
    }}"""
    assert not analyze(network(text)).changed
