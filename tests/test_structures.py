"""What kind of structure a group is, and choosing what to prune in those words."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import spa_graph
from spa_graph import BudgetError, OptionError
from spa_graph.api import ready
from spa_graph.coupling.structures import structures
from spa_graph.models_zoo.topologies import TOPOLOGIES
from spa_graph.passes.sensitivity import _Probing
from tests.models import assert_pruned, network, shapes

PRE_NORM = "residual, pre-norm"
FOUND = {
    "resnet": {"residual", "conv"},
    "resnext": {"residual", "conv"},
    "densenet": {"conv"},
    "mobilenet": {"residual", "conv"},
    "unet": {"conv"},
    "convnext": {"residual", "ffn"},  # normalised after the depthwise convolution, not before
    "vit_fused": {PRE_NORM, "heads", "ffn"},
    "vit_separate": {PRE_NORM, "heads", "ffn"},
    "swin": {PRE_NORM, "heads", "ffn"},
    "decoder": {PRE_NORM, "heads", "ffn"},
    "mixture": {"residual", "experts", "ffn"},
    "routed": {"residual", "experts", "ffn"},
    "lstm": {"rnn", "ffn"},
    "gru": {"rnn", "ffn"},
}


def cut(result: spa_graph.Result) -> set[str]:
    """The kinds that lost channels."""
    return {g["structure"] for g in result.report["groups"] if g["kept"] < g["channels"]}


def kinds(model: onnx.ModelProto) -> list[tuple[str, int]]:
    """The kind and size of every group."""
    analysis = spa_graph.analyze(model)
    pairs = zip(analysis.structures, analysis.groups, strict=True)
    return sorted((structure.kind, group.size) for structure, group in pairs)


@pytest.mark.parametrize("name", FOUND)
def test_kinds(name: str) -> None:
    found = spa_graph.analyze(TOPOLOGIES[name]()).structures
    assert {PRE_NORM if s.pre_norm else s.kind for s in found} == FOUND[name]


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("vit_fused", ("heads",)),
        ("vit_fused", ("ffn",)),
        ("decoder", ("residual",)),
        ("decoder", ("heads", "ffn")),
        ("resnet", ("conv",)),
        ("lstm", ("rnn",)),
        ("mixture", ("experts",)),
        ("routed", ("experts",)),
    ],
)
def test_only_what_is_in_scope_loses_channels(name: str, scope: tuple[str, ...]) -> None:
    result = spa_graph.prune(TOPOLOGIES[name](), flops=0.7, scope=scope)
    assert cut(result) == set(scope)
    uniform = spa_graph.prune(TOPOLOGIES[name](), ratio=0.5, scope=scope)
    assert cut(uniform) == set(scope)


def test_no_group_is_measured_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the budgets, in whatever order, and whether the residual width has to go or not."""
    runs: list[tuple[int, ...]] = []
    measured = _Probing.distortion

    def counted(probing: _Probing, gone: np.ndarray) -> float:
        runs.append(tuple(gone.tolist()))
        return measured(probing, gone)

    monkeypatch.setattr(_Probing, "distortion", counted)
    kept: list[dict[float, Any]] = []
    for budgets in ((0.5, 0.1), (0.1, 0.5)):
        runs.clear()
        with ready(TOPOLOGIES["vit_fused"](), calibrate="data-free", samples=16) as network:
            pruned = {share: network.prune(flops=share).report["groups"] for share in budgets}
            kept.append({share: [row["kept"] for row in rows] for share, rows in pruned.items()})
            groups = network.analysis.groups
        assert len(runs) == len(set(runs))
        for group in groups:
            assert any(group.start <= run[0] < group.stop for run in runs), group.name
    assert kept[0] == kept[1]


def test_the_residual_width_of_a_pre_norm_transformer_goes_last() -> None:
    model = TOPOLOGIES["vit_fused"]()
    assert cut(spa_graph.prune(model, flops=0.5)) == {"heads", "ffn"}
    assert cut(spa_graph.prune(model, ratio=0.5)) == {"heads", "ffn"}
    assert cut(spa_graph.prune(model, flops=0.1)) == {"heads", "ffn", "residual"}
    with pytest.raises(BudgetError, match="out of --scope"):
        spa_graph.prune(model, flops=0.1, scope=("heads", "ffn"))


def test_a_residual_width_without_pre_norm_is_pruned_like_the_rest() -> None:
    assert "residual" in cut(spa_graph.prune(TOPOLOGIES["resnet"](), flops=0.5))


def test_a_scope_that_is_not_there() -> None:
    with pytest.raises(OptionError, match="there are conv, residual"):
        spa_graph.prune(TOPOLOGIES["resnet"](), flops=0.5, scope=("heads",))
    with pytest.raises(OptionError, match="choose among heads, ffn"):
        spa_graph.prune(TOPOLOGIES["resnet"](), flops=0.5, scope=("head",))


BLOCKS: list[tuple[str, dict[str, Any], str]] = [
    ("vit_fused", {"attention": "head-dim"}, "heads"),
    ("vit_separate", {"attention": "head-dim"}, "heads"),
    ("swin", {"attention": "head-dim"}, "heads"),
    ("decoder", {"attention": "head-dim"}, "heads"),
    ("resnext", {"groups": "within"}, "conv"),
]


@pytest.mark.parametrize(("name", "options", "kind"), BLOCKS)
def test_blocks_can_shrink_instead_of_leaving(
    name: str, options: dict[str, Any], kind: str
) -> None:
    """Verified like any other; the plan knows how it was made, and replays to the same network."""
    model = TOPOLOGIES[name]()
    sizes = [[g.size for g in spa_graph.analyze(model, **more).groups] for more in ({}, options)]
    assert sizes[0] != sizes[1]
    result = spa_graph.prune(model, flops=0.7, scope=(kind,), **options)
    assert cut(result) == {kind}
    again = spa_graph.apply_plan(model, spa_graph.Plan.from_json(result.plan.to_json()))
    assert ir.serde.serialize_model(ir.serde.deserialize_model(again.model)) == (
        ir.serde.serialize_model(ir.serde.deserialize_model(result.model))
    )


MULTI_QUERY = """
shared (float[N,5,6] x) => (float[N,5,3] y)
<float[6,8] wq, float[6,4] wk, float[6,4] wv, float[8,3] wo, int64[1] one = {1},
 int64[4] heads = {0, 0, 2, 4}, int64[3] joined = {0, 0, -1}>
{
    q0 = MatMul(x, wq)
    q1 = Reshape(q0, heads)
    q = Transpose<perm = [0,2,1,3]>(q1)
    k0 = MatMul(x, wk)
    k1 = Unsqueeze(k0, one)
    k = Transpose<perm = [0,1,3,2]>(k1)
    v0 = MatMul(x, wv)
    v = Unsqueeze(v0, one)
    scores = MatMul(q, k)
    shares = Softmax(scores)
    said = MatMul(shares, v)
    o1 = Transpose<perm = [0,2,1,3]>(said)
    o = Reshape(o1, joined)
    y = MatMul(o, wo)
}
"""


def test_query_heads_that_share_a_key_are_heads() -> None:
    """Though a head is larger than their number: whole ones leave, the key stays."""
    model = network(MULTI_QUERY)
    analysis = spa_graph.analyze(model)
    assert [
        (s.kind, g.size) for s, g in zip(analysis.structures, analysis.groups, strict=True)
    ] == [("heads", 2)]
    pruned = assert_pruned(model, spa_graph.prune(model, ratio=0.5, scope=("heads",)))
    assert {name: shapes(pruned)[name] for name in ("wq", "wk", "wv", "wo")} == {
        "wq": (6, 4), "wk": (6, 4), "wv": (6, 4), "wo": (4, 3)
    }  # fmt: skip
    result = spa_graph.prune(model, ratio=0.5, attention="head-dim")
    assert cut(result) == {"heads"}
    assert shapes(result.model)["wk"] == (6, 2)


MERGED_WITH_THE_BATCH = """
merged (float[N,5,6] x) => (float[N,5,3] y)
<float[6,8] wq, float[6,8] wk, float[6,8] wv, float[8,3] wo, float[5,6] places, float[6,8] wp,
 int64[4] cut = {0, 5, 2, 4}, int64[3] flat = {-1, 5, 4}, int64[4] apart = {-1, 2, 5, 4},
 int64[3] joined = {0, 5, -1}, int64[3] cut_places = {5, 2, 4}, int64 two = {2},
 int64[2] once = {1, 1}, int64[2] five = {5, 5}, int64[1,5,5] far>
{
    q0 = MatMul(x, wq) q1 = Reshape(q0, cut) q2 = Transpose<perm = [0,2,1,3]>(q1)
    k0 = MatMul(x, wk) k1 = Reshape(k0, cut) k2 = Transpose<perm = [0,2,1,3]>(k1)
    v0 = MatMul(x, wv) v1 = Reshape(v0, cut) v2 = Transpose<perm = [0,2,1,3]>(v1)
    q = Reshape(q2, flat) k = Reshape(k2, flat) v = Reshape(v2, flat)
    count = Shape<start = 0, end = 1>(q)
    p0 = MatMul(places, wp) p1 = Reshape(p0, cut_places) p2 = Transpose<perm = [1,0,2]>(p1)
    batch = Div(count, two) times = Concat<axis = 0>(batch, once) p = Tile(p2, times)
    kt = Transpose<perm = [0,2,1]>(k) pt = Transpose<perm = [0,2,1]>(p)
    here = MatMul(q, kt) there0 = MatMul(q, pt)
    all = Concat<axis = 0>(count, five) which = Expand(far, all)
    there = GatherElements<axis = 2>(there0, which)
    scores = Add(here, there) shares = Softmax(scores)
    o0 = MatMul(shares, v) o1 = Reshape(o0, apart) o2 = Transpose<perm = [0,2,1,3]>(o1)
    o = Reshape(o2, joined) y = MatMul(o, wo)
}
"""
"""Heads and batch are one axis, relative positions are repeated for each of the batch."""


@pytest.mark.parametrize(
    "repeated",
    ["which = Expand(far, all)", "same = Expand(far, all) which = Cast<to = 6>(same)"],
)
def test_heads_that_are_merged_with_the_batch(repeated: str) -> None:
    """How often positions are repeated is computed from heads that leave: `batch * 2 / 2`."""
    far = np.abs(np.arange(5)[:, None] - np.arange(5))[None]
    text = MERGED_WITH_THE_BATCH.replace("which = Expand(far, all)", repeated)
    model = network(text, values={"far": far})
    assert kinds(model) == [("ffn", 6), ("heads", 2)]
    pruned = assert_pruned(model, spa_graph.prune(model, ratio=0.5, scope=("heads",)), dynamic=3)
    assert {shapes(pruned)[name] for name in ("wq", "wk", "wv", "wp")} == {(6, 4)}
    result = spa_graph.prune(model, ratio=0.5, scope=("heads",), attention="head-dim")
    assert cut(result) == {"heads"}


def test_an_activation_function_written_out_is_no_residual_sum() -> None:
    """`x + 0.04 x^3` in a GELU: the width inside is a hidden one."""
    model = network("""
        gelu (float[N,6] x) => (float[N,3] y)
        <float[6,8] w1, float[8,16] w2, float[16,8] w3, float[8,3] w4, float three = {3.0},
         float little = {0.04}, float one = {1.0}>
        {
            s = MatMul(x, w1)
            h = MatMul(s, w2) cube = Pow(h, three) part = Mul(cube, little) inner = Add(h, part)
            bend = Tanh(inner) more = Add(bend, one) g = Mul(h, more)
            f = MatMul(g, w3) t = Add(s, f) y = MatMul(t, w4)
        }
        """)
    assert kinds(model) == [("ffn", 16), ("residual", 8)]


def test_within_leaves_the_number_of_groups() -> None:
    result = spa_graph.prune(TOPOLOGIES["resnext"](), flops=0.6, groups="within", scope=("conv",))
    before, after = (
        [a.i for n in m.graph.node if n.op_type == "Conv" for a in n.attribute if a.name == "group"]
        for m in (TOPOLOGIES["resnext"](), result.model)
    )
    assert before == after
    assert max(after) > 1


def test_depthwise_channels_are_not_groups_to_prune_within() -> None:
    default, within = (
        spa_graph.analyze(TOPOLOGIES["mobilenet"](), groups=groups)
        for groups in ("groups", "within")
    )
    assert [g.size for g in default.groups] == [g.size for g in within.groups]


def test_bounds_computed_from_another_width_stay() -> None:
    """`weight[:x.shape[-1]]` takes as many rows of a weight when x gets narrower."""
    model = network(
        """
        bounds (float[N,4] x) => (float[N,8] y)
        <float[4,8] w, float[16,4] both, float[8,8] v, int64[1] zero = {0}, int64[1] first = {0}>
        {
            h = MatMul(x, w)
            width = Shape<start = 1, end = 2>(h)
            half = Slice(both, zero, width, first)
            turned = Transpose<perm = [1,0]>(half)
            k = MatMul(x, turned)
            a = MatMul(h, v)
            y = Add(a, k)
        }"""
    )
    result = spa_graph.prune(model, ratio=0.5)
    assert result.report["groups"][0]["kept"] == 4
    assert_pruned(model, result)


SEPARATE = """
separate (float[N,5,8] x) => (float[N,5,8] y)
<float[8,3,4] q, float[8,3,4] k, float[8,3,4] v, float[3,4,8] o>
{
    a = Einsum<equation = "ntc,chd->nhtd">(x, q)
    b = Einsum<equation = "ntc,chd->nhtd">(x, k)
    c = Einsum<equation = "ntc,chd->nhtd">(x, v)
    scores = Einsum<equation = "nhtd,nhsd->nhts">(a, b)
    weights = Softmax<axis = -1>(scores)
    mixed = Einsum<equation = "nhts,nhsd->nhtd">(weights, c)
    y = Einsum<equation = "nhtd,hdc->ntc">(mixed, o)
}
"""


@pytest.mark.parametrize(("attention", "left"), [("heads", {3, 4}), ("head-dim", {4})])
def test_what_heads_are_made_of_belongs_to_them_on_an_axis_of_its_own(
    attention: str, left: set[int]
) -> None:
    analysis = spa_graph.analyze(network(SEPARATE), attention=attention)
    assert {each.kind for each in structures(analysis.coupling)} == {"heads"}
    assert {group.stop - group.start for group in analysis.groups} == left
    result = spa_graph.prune(network(SEPARATE), ratio=0.5, attention=attention, scope="heads")
    assert_pruned(network(SEPARATE), result)
