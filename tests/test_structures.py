"""What kind of structure a group is, and choosing what to prune in those words."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

import spa_graph
from spa_graph import BudgetError, OptionError
from spa_graph.models_zoo.topologies import TOPOLOGIES
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
