"""What users of other pruning tools complain about, as tests: each names the public thread.

(TP = VainF/Torch-Pruning.)
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

import spa_graph
from tests.models import (
    assert_same_outputs,
    changed_by,
    groups_of,
    network,
    random_feeds,
    shapes,
    stored,
    zero,
)


def prune(model: onnx.ModelProto, ratio: float = 0.5, **options: Any) -> spa_graph.Result:
    """Prune every group by a ratio; exact channels must equal zeroed ones."""
    options = {"round_to": 1} | options
    result = spa_graph.prune(model, ratio=ratio, **options)
    if all(group["exact"] for group in result.report["groups"]):
        masked = changed_by(model, result.plan, zero)
        assert_same_outputs(result.model, masked, random_feeds(model))
    return result


def coupled_rows(model: onnx.ModelProto, weight: str, axis: int) -> set[tuple[int, ...]]:
    """Which positions of a weight's axis go together."""
    members = [member for group in spa_graph.analyze(model).groups for member in group.members]
    matrices = [m.index for m in members if (m.parameter, m.axis) == (weight, axis)]
    return {tuple(row) for matrix in matrices for row in matrix.tolist()}


# --- concat, split, shuffle, halves --------------------------------------------------------------


def test_a_feature_concatenated_with_itself() -> None:
    """TP#146: cat([x, x])."""
    model = network("""
    net (float[N,3,4,4] x) => (float[N,5,4,4] y) <float[8,3,1,1] w1, float[5,16,1,1] w2>
    { h = Conv(x, w1) c = Concat<axis = 1>(h, h) y = Conv(c, w2) }
    """)
    assert coupled_rows(model, "w2", 1) == {(i, i + 8) for i in range(8)}
    assert shapes(prune(model).model) == {"w1": (4, 3, 1, 1), "w2": (5, 8, 1, 1)}


SHUFFLE = """
shuffle (float[N,3,4,4] x) => (float[N,5,4,4] y)
<float[12,3,1,1] w1, float[12,1,3,3] w2, float[5,12,1,1] w3> {
    h = Conv(x, w1)
    apart = Constant<value_ints = [0, 3, 4, 4, 4]>()
    together = Constant<value_ints = [0, 12, 4, 4]>()
    parts = Reshape(h, apart)
    swapped = Transpose<perm = [0, 2, 1, 3, 4]>(parts)
    s = Reshape(swapped, together)
    d = Conv<group = 12, pads = [1,1,1,1]>(s, w2)
    y = Conv(d, w3)
}
"""


def test_a_channel_shuffle_prunes_channel_by_channel() -> None:
    """TP#14: ShuffleNet, open since 2020."""
    model = network(SHUFFLE)
    (group,) = spa_graph.analyze(model).groups
    assert group.size == 12
    index = {m.parameter: m.index[:, 0].tolist() for m in group.members if m.axis != 1}
    permuted = np.arange(12).reshape(3, 4).T.reshape(-1).tolist()
    assert [index["w1"][index["w2"].index(i)] for i in range(12)] == permuted
    result = prune(model, 0.3)
    assert shapes(result.model)["w1"] == (9, 3, 1, 1)
    assert next(n for n in result.model.graph.node if n.op_type == "Conv" and n.output[0] == "d")
    assert result.report["canonicalized"] == ["1 channel shuffles became Gather"]


def test_pixel_shuffle() -> None:
    """TP#98, #420: four channels become four pixels."""
    for mode, rows in (("CRD", {(4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3) for i in range(3)}),
                       ("DCR", {(i, i + 3, i + 6, i + 9) for i in range(3)})):  # fmt: skip
        model = network(f"""
        net (float[N,2,4,4] x) => (float[N,2,8,8] y) <float[12,2,3,3] w1, float[2,3,1,1] w2> {{
            h = Conv<pads = [1,1,1,1]>(x, w1)
            s = DepthToSpace<blocksize = 2, mode = "{mode}">(h)
            y = Conv(s, w2)
        }}
        """)
        assert coupled_rows(model, "w1", 0) == rows
        assert shapes(prune(model, 0.4).model)["w1"] == (8, 2, 3, 3)


def test_space_to_depth() -> None:
    """aimet#356."""
    model = network("""
    net (float[N,2,4,4] x) => (float[N,2,2,2] y) <float[6,2,1,1] w1, float[2,24,1,1] w2>
    { h = Conv(x, w1) s = SpaceToDepth<blocksize = 2>(h) y = Conv(s, w2) }
    """)
    assert coupled_rows(model, "w2", 1) == {(i, i + 6, i + 12, i + 18) for i in range(6)}
    assert shapes(prune(model).model) == {"w1": (3, 2, 1, 1), "w2": (2, 12, 1, 1)}


def test_the_halves_of_a_gated_unit() -> None:
    """TP#366: GLU."""
    model = network("""
    net (float[N,4] x) => (float[N,3] y) <float[4,20] w1, float[20] b1, float[10,3] w2> {
        h = Gemm(x, w1, b1)
        value, gate = Split<axis = -1, num_outputs = 2>(h)
        g = Sigmoid(gate)
        m = Mul(value, g)
        y = MatMul(m, w2)
    }
    """, opset=18)  # fmt: skip
    assert coupled_rows(model, "w1", 1) == {(i, i + 10) for i in range(10)}
    result = prune(model, 0.3)
    assert shapes(result.model)["w1"] == (4, 14)
    assert shapes(result.model)["w2"] == (7, 3)


YOLO_C2F = """
c2f (float[N,3,4,4] x) => (float[N,5,4,4] y)
<float[12,3,1,1] w1, float[6,6,3,3] w2, float[6,6,3,3] w3, float[8,18,1,1] w4, float[5,8,1,1] w5> {
    h = Conv(x, w1)
    sizes = Constant<value_ints = [6, 6]>()
    a, b = Split<axis = 1>(h, sizes)
    c = Conv<pads = [1,1,1,1]>(b, w2)
    rc = Relu(c)
    d = Conv<pads = [1,1,1,1]>(rc, w3)
    sum = Add(b, d)
    all = Concat<axis = 1>(a, b, sum)
    out = Conv(all, w4)
    y = Conv(out, w5)
}
"""


def test_yolo_c2f() -> None:
    """TP#147 (C2f split), #415 (concat indices), #477 (294 against 292, not deterministic)."""
    model = network(YOLO_C2F)
    assert groups_of(spa_graph.analyze(model)) == {
        frozenset({("w1", 0), ("w4", 1)}),  # the first half only passes
        frozenset({("w1", 0), ("w2", 1), ("w3", 0), ("w4", 1)}),
        frozenset({("w2", 0), ("w3", 1)}),
        frozenset({("w4", 0), ("w5", 1)}),
    }
    assert coupled_rows(model, "w4", 1) == {(i,) for i in range(6)} | {
        (i + 6, i + 12) for i in range(6)
    }
    result = prune(model)
    assert shapes(result.model)["w4"] == (4, 9, 1, 1)
    assert result.plan.to_json() == prune(model).plan.to_json()


# --- reshapes, heads -----------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", ["1, 72", "1, -1", "-1, 72", "0, 72"])
def test_a_reshape_with_sizes_written_in(sizes: str) -> None:
    """TP#446, #125, #57: x.view(1, 72)."""
    model = network(f"""
    net (float[1,3,3,3] x) => (float[1,5] y) <float[8,3,1,1] w1, float[72,5] w2>
    {{ h = Conv(x, w1) s = Constant<value_ints = [{sizes}]>() f = Reshape(h, s) y = MatMul(f, w2) }}
    """)
    assert shapes(prune(model).model)["w2"] == (36, 5)


def test_a_reshape_whose_sizes_are_computed() -> None:
    """x.view(x.shape[0], -1) and x.view(x.shape[0], x.shape[1] * 9), as exporters write them."""
    model = network("""
    net (float[N,3,3,3] x) => (float[N,5] y) <float[8,3,1,1] w1, float[72,5] w2> {
        h = Conv(x, w1)
        shape = Shape(h)
        zero = Constant<value = int64[1] {0}>()
        one = Constant<value = int64[1] {1}>()
        nine = Constant<value = int64[1] {9}>()
        n = Gather(shape, zero)
        c = Gather(shape, one)
        c9 = Mul(c, nine)
        s = Concat<axis = 0>(n, c9)
        f = Reshape(h, s)
        y = MatMul(f, w2)
    }
    """)
    assert shapes(prune(model).model)["w2"] == (36, 5)


def attention(body: str, weights: str) -> onnx.ModelProto:
    """A block of 4 heads of 3; `body` makes q, k, v of (batch, heads, length, 3) from x."""
    return network(f"""
    net (float[N,5,6] x) => (float[N,5,2] y) <{weights}, float[12,2] wo> {{
        {body}
        kt = Transpose<perm = [0, 1, 3, 2]>(k)
        s = MatMul(q, kt)
        p = Softmax<axis = -1>(s)
        o = MatMul(p, v)
        ot = Transpose<perm = [0, 2, 1, 3]>(o)
        merged = Constant<value_ints = [0, 0, 12]>()
        om = Reshape(ot, merged)
        y = MatMul(om, wo)
    }}
    """)


def test_chunked_qkv_prunes_whole_heads() -> None:
    """TP#393: one projection, chunked; and no stale head count (intel/neural-compressor#525)."""
    apart = "sizes = Constant<value_ints = [0, 0, 4, 3]>()\n" + "\n".join(
        f"{n}4 = Reshape({n}c, sizes) {n} = Transpose<perm = [0, 2, 1, 3]>({n}4)" for n in "qkv"
    )
    cut = "h = MatMul(x, w) thirds = Constant<value_ints = [12, 12, 12]>() "
    model = attention(cut + "qc, kc, vc = Split<axis = 2>(h, thirds) " + apart, "float[6,36] w")
    heads = [range(3 * head, 3 * head + 3) for head in range(4)]
    assert coupled_rows(model, "w", 1) == {
        tuple(12 * part + i for part in range(3) for i in head) for head in heads
    }
    result = prune(model)
    assert shapes(result.model)["w"] == (6, 18)
    assert shapes(result.model)["wo"] == (6, 2)
    assert result.report["groups"][0]["kept"] == 2


def test_grouped_query_attention() -> None:
    """LLM-Pruner#64, TP#461, #516: two heads of keys and values for four of queries."""
    query = """
    qh = MatMul(x, wq)
    qs = Constant<value_ints = [0, 0, 4, 3]>()
    q4 = Reshape(qh, qs)
    q = Transpose<perm = [0, 2, 1, 3]>(q4)
    kvs = Constant<value_ints = [0, 0, 2, 3]>()
    at2 = Constant<value_ints = [2]>()
    twice = Constant<value_ints = [1, 1, 2, 1, 1]>()
    all = Constant<value_ints = [0, 4, -1, 3]>()
    """
    repeated = "\n".join(
        f"""{n}h = MatMul(x, w{n}) {n}4 = Reshape({n}h, kvs)
        {n}p = Transpose<perm = [0, 2, 1, 3]>({n}4) {n}5 = Unsqueeze({n}p, at2)
        {n}e = Expand({n}5, twice) {n} = Reshape({n}e, all)"""
        for n in "kv"
    )
    model = attention(query + repeated, "float[6,12] wq, float[6,6] wk, float[6,6] wv")
    assert coupled_rows(model, "wk", 1) == {(0, 1, 2), (3, 4, 5)}
    assert coupled_rows(model, "wq", 1) == {tuple(range(6)), tuple(range(6, 12))}
    result = prune(model)
    assert shapes(result.model) == shapes(result.model) | {
        "wq": (6, 6), "wk": (6, 3), "wv": (6, 3), "wo": (6, 2),
    }  # fmt: skip


# --- operators -----------------------------------------------------------------------------------


def test_transposed_convolution() -> None:
    """nni#2707."""
    model = network("""
    net (float[N,3,4,4] x) => (float[N,2,8,8] y)
    <float[8,3,3,3] w1, float[8,6,2,2] w2, float[6] b2, float[2,6,1,1] w3> {
        h = Conv<pads = [1,1,1,1]>(x, w1)
        u = ConvTranspose<strides = [2, 2]>(h, w2, b2)
        y = Conv(u, w3)
    }
    """)
    pruned = prune(model).model
    assert shapes(pruned)["w2"] == (4, 3, 2, 2)
    assert shapes(pruned)["b2"] == (3,)


def test_sums_stacks_and_bare_parameters() -> None:
    """TinyNeuralNetwork#272 (sum), nni#4885 (stack), only_train_once#46 (bare nn.Parameter)."""
    model = network("""
    net (float[N,4] x) => (float[N,3] y)
    <float[4,8] w1, float[4,8] w2, float[8] p, float[8,3] w3> {
        a = MatMul(x, w1)
        b = MatMul(x, w2)
        one = Constant<value_ints = [1]>()
        a1 = Unsqueeze(a, one)
        b1 = Unsqueeze(b, one)
        stacked = Concat<axis = 1>(a1, b1)
        reduced = ReduceSum<keepdims = 0>(stacked, one)
        s = Sum(reduced, a, b, p)
        y = MatMul(s, w3)
    }
    """)
    names = frozenset({("w1", 1), ("w2", 1), ("p", 0), ("w3", 0)})
    assert groups_of(spa_graph.analyze(model)) == {names}
    assert shapes(prune(model).model)["p"] == (4,)


def test_the_scales_of_quantised_weights_follow() -> None:
    """nncf#406: per-channel scales and zero points."""
    generator = np.random.default_rng(0)
    model = network("""
    net (float[N,3,4,4] x) => (float[N,5,4,4] y)
    <int8[8,3,1,1] w1, float[8] s1, int8[8] z1, float[5,8,1,1] w2>
    { w = DequantizeLinear<axis = 0>(w1, s1, z1) h = Conv(x, w) y = Conv(h, w2) }
    """, values={
        "w1": generator.integers(-99, 99, (8, 3, 1, 1)).astype(np.int8),
        "s1": generator.uniform(0.01, 0.1, 8).astype(np.float32), "z1": np.zeros(8, np.int8),
    })  # fmt: skip
    result = spa_graph.prune(model, ratio=0.5, round_to=1)
    after = shapes(result.model)
    assert (after["w1"], after["s1"], after["z1"]) == ((4, 3, 1, 1), (4,), (4,))
    kept = result.plan.kept["w1"][0]
    np.testing.assert_array_equal(stored(result.model)["s1"], stored(model)["s1"][kept])


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_networks(kind: str, gates: int) -> None:
    """TP#44 (open since 2021), #276, #404."""
    model = network(f"""
    net (float[6,N,3] x) => (float[6,N,2] y)
    <float[1,{8 * gates},3] w, float[1,{8 * gates},8] r, float[1,{16 * gates}] b, float[8,2] wo> {{
        h, last = {kind}<hidden_size = 8>(x, w, r, b)
        one = Constant<value_ints = [1]>()
        s = Squeeze(h, one)
        y = MatMul(s, wo)
    }}
    """)
    result = spa_graph.prune(model, ratio=0.5, round_to=1)
    after = shapes(result.model)
    assert after["w"] == (1, 4 * gates, 3)
    assert after["r"] == (1, 4 * gates, 4)
    assert after["b"] == (1, 8 * gates)
    assert after["wo"] == (4, 2)
    assert result.model.graph.node[0].attribute[0].i == 4


def test_tied_weights_stay_tied() -> None:
    """Siamese branches, and an embedding that is also the output layer."""
    siamese = network("""
    net (float[N,3,4,4] a, float[N,3,4,4] b) => (float[N,5,4,4] y)
    <float[8,3,3,3] w1, float[5,8,1,1] w2> {
        ha = Conv<pads = [1,1,1,1]>(a, w1)
        hb = Conv<pads = [1,1,1,1]>(b, w1)
        d = Sub(ha, hb)
        y = Conv(d, w2)
    }
    """)
    assert shapes(prune(siamese).model) == {"w1": (4, 3, 3, 3), "w2": (5, 4, 1, 1)}
    tied = network("""
    net (int64[N,5] ids) => (float[N,5,20] y) <float[20,8] table> {
        e = Gather(table, ids)
        r = Relu(e)
        t = Transpose<perm = [1, 0]>(table)
        y = MatMul(r, t)
    }
    """)
    result = spa_graph.prune(tied, ratio=0.5, round_to=1)
    assert shapes(result.model) == {"table": (20, 4)}


# --- size, time, depth ---------------------------------------------------------------------------


def deep_chain(layers: int) -> onnx.ModelProto:
    """Linear layers of width 4, one behind the other."""
    generator = np.random.default_rng(0)
    x = value = gs.Variable("x", np.float32, [1, 4])
    nodes = []
    for number in range(layers):
        out = gs.Variable(f"v{number}", np.float32, [1, 4])
        weight = np.eye(4, dtype=np.float32) + generator.normal(0, 0.01, (4, 4)).astype(np.float32)
        nodes.append(
            gs.Node("MatMul", f"n{number}", {}, [value, gs.Constant(f"w{number}", weight)], [out])
        )
        value = out
    return gs.export_onnx(gs.Graph(nodes, [x], [value], opset=17), ir_version=9)


def test_a_network_of_3000_layers() -> None:
    """TP#43, #304 (recursion depth), #474 (over 10 hours)."""
    model = deep_chain(3000)
    start = time.perf_counter()
    result = spa_graph.prune(model, params=0.7, round_to=1)
    assert time.perf_counter() - start < 60
    assert len(result.report["groups"]) == 2999
    assert 0.69 < result.report["ratio"]["params"] <= 0.7


def test_the_file_is_really_smaller_and_loads(tmp_path: Path) -> None:
    """nncf#1038, nni#2225 (masks only), ultralytics#16806 (same size), TP#495 (cannot reload)."""
    text = """
    net (float[N,64] x) => (float[N,8] y) <float[64,512] w1, float[512] b1, float[512,8] w2>
    { h = Gemm(x, w1, b1) r = Relu(h) y = MatMul(r, w2) }
    """
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(network(text), before)
    spa_graph.prune(before, params=0.25, output=after)
    assert after.stat().st_size < 0.26 * before.stat().st_size
    onnx.checker.check_model(onnx.load(after), full_check=True)


def test_a_width_that_is_divided_by_the_heads_may_come_out_as_zero() -> None:
    """CrossViT's head size is the stream's width over the heads: no 0 that copies an axis."""
    model = network("""
    net (float[N,5,4] x) => (float[N,5,3] y)
    <float[4,6] w0, float[6,6] wq, float[6,6] wk, float[6,6] wv, float[6,3] wo> {
        h = MatMul(x, w0)
        size = Shape(h)
        zero = Constant<value_ints = [0]>() two = Constant<value_ints = [2]>()
        three = Constant<value_ints = [3]>() five = Constant<value_ints = [5]>()
        all = Constant<value_ints = [-1]>()
        n = Gather(size, zero) c = Gather(size, two) d = Div(c, three)
        s = Concat<axis = 0>(n, five, three, d)
        qm = MatMul(h, wq) q4 = Reshape(qm, s) q = Transpose<perm = [0, 2, 1, 3]>(q4)
        km = MatMul(h, wk) k4 = Reshape(km, s) k = Transpose<perm = [0, 2, 3, 1]>(k4)
        vm = MatMul(h, wv) v4 = Reshape(vm, s) v = Transpose<perm = [0, 2, 1, 3]>(v4)
        a = MatMul(q, k) p = Softmax<axis = -1>(a) o = MatMul(p, v)
        ot = Transpose<perm = [0, 2, 1, 3]>(o)
        m = Concat<axis = 0>(n, five, all) om = Reshape(ot, m)
        y = MatMul(om, wo)
    }
    """)
    result = prune(model, ratio=0.7, round_to=1)
    assert shapes(result.model)["w0"] == (4, 2)
    assert shapes(result.model)["wq"] == (2, 2)
