"""Heads that get smaller: what is left of queries, keys and values is fitted for each other.

Each head's queries and keys (values and what reads them) have products of half rank, so that half
of its channels can say the same; but no half of those that are there does.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spa_graph import Result
from spa_graph.frontends.onnx.reader import read
from spa_graph.passes import reconstruct
from spa_graph.passes.network import Analysis
from spa_graph.passes.reconstruct import Repair
from spa_graph.passes.reconstruct.heads.fit import best_pair
from tests.models import network, stored
from tests.test_reconstruct import Array, assert_recovered, error, recon, redundant

LENGTH, WIDTH, HEADS, SIZE = 6, 12, 2, 8

APART = """
    q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv)
    qb = Add(q0, bq) kb = Add(k0, bk) vb = Add(v0, bv)
    qr = Reshape(qb, shape) kr = Reshape(kb, shape) vr = Reshape(vb, shape)
"""
OWN = "float[12,16] wq, float[16] bq, float[12,16] wk, float[16] bk, float[12,16] wv, float[16] bv"


def attention(
    before: str = APART,
    between: str = "q = Mul(qr, factor) k = Identity(kr)",
    weights: str = OWN,
    values: dict[str, Array] | None = None,
    kind: str = "float",
) -> onnx.ModelProto:
    """Two heads of 8; `before` makes qr, kr, vr of (batch, length, heads, size) from x."""
    text = f"""net (float[N,6,12] x) => (float[N,6,5] y)
    <{weights}, float[16,5] wo, float[1] factor, int64[4] shape = {{0,6,2,8}},
     int64[3] flat = {{0,6,16}}> {{
        {before}
        {between}
        qt = Transpose<perm=[0,2,1,3]>(q)
        kt = Transpose<perm=[0,2,3,1]>(k)
        vt = Transpose<perm=[0,2,1,3]>(vr)
        s = MatMul(qt, kt)
        p = Softmax<axis=-1>(s)
        o = MatMul(p, vt)
        ot = Transpose<perm=[0,2,1,3]>(o)
        of = Reshape(ot, flat)
        y = MatMul(of, wo)
    }}"""
    return network(re.sub(r"\bfloat\b", kind, text), values=values)


SHARED = {
    "before": """
    q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv)
    qr = Reshape(q0, shape)
    one = Constant<value_ints = [0, 6, 1, 8]>()
    twice = Constant<value_ints = [1, 1, 2, 1]>()
    k1 = Reshape(k0, one) kr = Expand(k1, twice)
    v1 = Reshape(v0, one) vr = Expand(v1, twice)
    """,
    "weights": "float[12,16] wq, float[12,8] wk, float[12,8] wv",
}
"""Grouped queries, for `attention`: one head of keys and values for two of queries."""


def half_rank(weight: Array, seed: int = 1) -> Array:
    """Each block of SIZE columns of a matrix or a bias, as combinations of half of them."""
    mixes = np.random.default_rng(seed).standard_normal((8, SIZE // 2, SIZE)) / 2
    blocks = np.split(weight, weight.shape[-1] // SIZE, -1)
    made = [block[..., : SIZE // 2] @ mix for block, mix in zip(blocks, mixes, strict=False)]
    return np.concatenate(made, -1).astype(weight.dtype)


def turned(result: Result) -> list[dict[str, Any]]:
    """The products of which something was refitted for each other."""
    layers = result.report["calibration"]["reconstruction"]["layers"]
    heads = [layer for layer in layers if layer["layer"].startswith("heads in")]
    return [layer for layer in heads if np.isfinite(layer["damping"])]


def halved(model: onnx.ModelProto, **options: Any) -> Result:
    return recon(model, attention="head-dim", **options)


@pytest.mark.parametrize("data", [{}, {"calibrate": "data-free"}], ids=["data", "data-free"])
def test_heads_of_half_rank_are_halved_without_loss(data: dict[str, str]) -> None:
    values = stored(attention())
    model = attention(values={name: half_rank(values[name]) for name in ("wk", "bk", "wv", "bv")})
    plain, result = halved(model, reconstruct="none", **data), halved(model, **data)
    assert error(model, plain.model) > 0.1
    assert error(model, result.model) < 1e-6
    assert [layer["layer"] for layer in turned(result)] == [
        "heads in MatMul:s",
        "heads in MatMul:o",
    ]
    assert all(layer["before"] > 0.05 > 1e-6 > layer["after"] for layer in turned(result))


def test_heads_that_see_alike_and_redundant_values() -> None:
    """Attention that is uniform: queries are zero; values within a head are redundant."""
    before = """
    q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv)
    qr = Reshape(q0, shape) kr = Reshape(k0, shape) vr = Reshape(v0, shape)
    """
    given = {"before": before, "weights": "float[12,16] wq, float[12,16] wk, float[12,16] wv"}
    values = stored(attention(**given))
    wv = redundant(values["wv"], 1, blocks=2)
    model = attention(**given, values={"wv": wv, "wq": 0 * values["wq"]})
    assert_recovered(model, attention="head-dim")


def test_one_projection_of_all_three() -> None:
    before = """
    h0 = MatMul(x, w) h = Add(h0, b) thirds = Constant<value_ints = [16, 16, 16]>()
    qc, kc, vc = Split<axis = 2>(h, thirds)
    qr = Reshape(qc, shape) kr = Reshape(kc, shape) vr = Reshape(vc, shape)
    """
    given = {"before": before, "weights": "float[12,48] w, float[48] b"}
    values = {name: half_rank(stored(attention(**given))[name]) for name in "wb"}
    model = attention(**given, values=values)
    result = halved(model)
    assert error(model, result.model) < 1e-6
    assert len(turned(result)) == 2


def test_heads_that_share_keys_and_values() -> None:
    """Grouped queries: one head of keys and values for two of queries."""
    values = stored(attention(**SHARED))
    model = attention(**SHARED, values={name: half_rank(values[name]) for name in ("wk", "wv")})
    result = halved(model)
    assert error(model, result.model) < 1e-6
    assert len(turned(result)) == 2


def test_half_precision() -> None:
    values = stored(attention())
    made = {name: half_rank(values[name]) for name in ("wk", "bk", "wv", "bv")}
    model = attention(kind="float16", values={n: v.astype(np.float16) for n, v in made.items()})
    result = halved(model)
    assert len(turned(result)) == 2
    assert error(model, result.model) < 1e-3


ROTARY = """
    q1, q2 = Split<axis=3>(qr) k1, k2 = Split<axis=3>(kr)
    qm = Neg(q2) km = Neg(k2)
    qx = Concat<axis=3>(qm, q1) kx = Concat<axis=3>(km, k1)
    qa = Mul(qr, cos) qs = Mul(qx, sin) q = Add(qa, qs)
    ka = Mul(kr, cos) ks = Mul(kx, sin) k = Add(ka, ks)
"""
TABLES = ", float[6,1,8] cos, float[6,1,8] sin"
UNTURNED = {
    "a bias behind": ("q = Add(qr, more) k = Identity(kr)", ", float[8] more"),
    "a sign": ("q = Relu(qr) k = Identity(kr)", ""),
    "a function": ("q = Tanh(qr) k = Identity(kr)", ""),
    "factors of each channel": ("q = Mul(qr, more) k = Identity(kr)", ", float[8] more"),
    "a norm": (
        "qq = Mul(qr, qr) qn = ReduceSum<keepdims=1>(qq, last) q = Div(qr, qn) k = Identity(kr)",
        ", int64[1] last = {-1}",
    ),
}


@pytest.mark.parametrize(("between", "weights"), UNTURNED.values(), ids=list(UNTURNED))
def test_queries_that_are_more_than_moved_are_left_alone(between: str, weights: str) -> None:
    values = stored(attention(between=between, weights=OWN + weights))
    model = attention(
        between=between, weights=OWN + weights, values={"wk": half_rank(values["wk"])}
    )
    result = halved(model)
    assert [layer["layer"] for layer in turned(result)] == ["heads in MatMul:o"]
    assert error(model, result.model) <= error(model, halved(model, reconstruct="none").model)


def test_rotary_positions_are_left_alone() -> None:
    angles = np.arange(6)[:, None, None] * np.tile(0.5 ** np.arange(4), 2)
    tables = {"cos": np.cos(angles), "sin": np.sin(angles)}
    values = {name: each.astype(np.float32) for name, each in tables.items()}
    model = attention(between=ROTARY, weights=OWN + TABLES, values=values)
    result = halved(model)
    assert [layer["layer"] for layer in turned(result)] == ["heads in MatMul:o"]


def test_products_whose_keys_are_read_by_others_are_left_alone() -> None:
    """The keys' largest channel goes into the result as well: turned, it would be another one."""
    between = """
    q = Identity(qr) k = Identity(kr)
    m = ReduceMax<axes = [2, 3], keepdims = 0>(kr) one = Constant<value_ints = [2]>()
    more = Unsqueeze(m, one)
    """
    model = attention(between=between)
    model.graph.node[-1].output[0] = "y0"
    model.graph.node.append(onnx.helper.make_node("Add", ["y0", "more"], ["y"]))
    assert [layer["layer"] for layer in turned(halved(model))] == ["heads in MatMul:o"]


def test_double_precision() -> None:
    values = {
        name: half_rank(each)
        for name, each in stored(attention(kind="double")).items()
        if name in ("wk", "wv", "bv")
    }
    result = halved(attention(kind="double", values=values))
    assert len(turned(result)) == 2


def test_a_shared_bias_is_not_copied_for_it() -> None:
    """That would cost parameters."""
    shared = APART.replace("Add(k0, bk)", "Add(k0, bq)")
    result = halved(attention(before=shared, weights=OWN.replace(", float[16] bk", "")))
    assert [layer["layer"] for layer in turned(result)] == ["heads in MatMul:o"]


def test_values_that_several_heads_read_are_judged_head_by_head() -> None:
    """Two heads of queries share values: one averages evenly and is hardly read, one isn't and is.

    The best for the mean of both is worse than what it replaces.
    """
    values = stored(attention(**SHARED))
    wq, wo = values["wq"].copy(), np.zeros_like(values["wo"])
    wq[:, :8] *= 0.01
    wq[:, 8:] *= 8
    generator = np.random.default_rng(0)
    wo[:4], wo[12:] = 2 * generator.standard_normal((4, 5)), generator.standard_normal((4, 5))
    model = attention(**SHARED, values={"wq": wq, "wo": wo})
    for layer in turned(halved(model)):
        assert layer["after"] < layer["before"]
    assert error(model, halved(model).model) <= error(
        model, halved(model, reconstruct="none").model
    )


def test_a_fit_that_does_not_help_leaves_other_repairs(monkeypatch: pytest.MonkeyPatch) -> None:
    def harmful(analysis: Analysis, *_: Any) -> tuple[Analysis, list[Repair]]:
        """Another network to be fitted to, whose outputs have the other sign."""
        model = analysis.model.clone()
        value = model.graph.initializers["wo"]
        value.const_value = ir.tensor(-value.const_value.numpy(), name="wo")
        coupling = replace(analysis.coupling, graph=read(model))
        return replace(analysis, model=model, coupling=coupling), [Repair("heads in all", 1, 0, 0)]

    model = attention()
    errors = []
    for instead in (lambda analysis, *_: (analysis, []), harmful):
        monkeypatch.setattr(reconstruct, "turn", instead)
        result = halved(model)
        assert turned(result) == []
        errors.append(error(model, result.model))
    assert errors[1] == errors[0] < error(model, halved(model, reconstruct="none").model)


def test_the_best_of_all_is_found() -> None:
    """No other pair of matrices has less error: random ones, and small steps from the best."""
    generator = np.random.default_rng(0)
    queries, keys = (each @ each.T for each in generator.standard_normal((2, 8, 20)))
    stays = np.arange(8) % 3 > 0
    (first, second), said = best_pair(queries, keys, np.argsort(~stays, kind="stable"))
    assert np.allclose(
        np.sort(said), np.sort(np.maximum(np.linalg.eigvals(queries @ keys).real, 0)), rtol=0.01
    )
    assert np.allclose(first @ second.T, np.eye(8))

    def lost(a: Array, b: Array) -> float:
        rest = np.eye(8) - a @ b.T
        return float(np.trace(rest.T @ queries @ rest @ keys))

    best = lost(first[:, stays], second[:, stays])
    for step in (1.0, 0.1, 0.01):
        for _ in range(100):
            near = (
                each[:, stays] + step * generator.standard_normal((8, stays.sum()))
                for each in (first, second)
            )
            assert lost(*near) > best * 0.999
    assert best < lost(np.eye(8)[:, stays], np.eye(8)[:, stays])


def test_groups_are_measured_as_they_will_be_refitted() -> None:
    """Scores of rank 4 lose nothing by half of their channels, and the allocation knows."""
    values = stored(attention())
    model = attention(values={name: half_rank(values[name]) for name in ("wk", "bk")})
    lost = []
    for method in ("none", "ls"):
        report = halved(model, flops=0.85, ratio=None, reconstruct=method).report
        (group,) = (n for n, each in enumerate(report["groups"]) if each["name"].startswith("bq"))
        (probe,) = (
            each
            for each in report["calibration"]["probes"]
            if each["group"] == group and each["removed"] == SIZE // 2
        )
        lost.append(probe["distortion"])
    assert lost[0] > 0.01 > 1e-6 > lost[1]
