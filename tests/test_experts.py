"""Whole experts behind top-k routing: what stays, and an oracle that knows nothing of positions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import spa_graph
from spa_graph import BudgetError, OptionError, Plan
from spa_graph.models_zoo import catalogue
from spa_graph.models_zoo.architectures import Exporter, write
from spa_graph.models_zoo.builder import Builder
from spa_graph.models_zoo.topologies import TOPOLOGIES
from spa_graph.passes.report import inspection
from spa_graph.runtime.inputs import random_inputs
from tests.models import assert_same_outputs, shapes, stored

SCOPE = ("experts",)
NEVER = -1e4  # a logit that no ranking picks, and no softmax sees
ROUTERS = ("block0.router.weight", "block1.router.weight")


@pytest.fixture(scope="module")
def routed() -> onnx.ModelProto:
    return TOPOLOGIES["routed"]()


def without_experts(model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
    """The whole network, the logits of experts that leave so low that they are never picked."""
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    graph = changed.graph
    for number, name in enumerate(ROUTERS):
        (node,) = (node for node in graph.node if name in node.input)
        logits = np.full(stored(model)[name].shape[1], NEVER, np.float32)
        logits[plan.kept[name][1]] = 0
        graph.initializer.append(numpy_helper.from_array(logits, f"never{number}"))
        out, node.output[0] = node.output[0], f"all{number}"
        add = helper.make_node("Add", [f"all{number}", f"never{number}"], [out])
        graph.node.insert([*graph.node].index(node) + 1, add)
    return changed


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_an_expert_that_leaves_is_one_that_is_never_picked(
    routed: onnx.ModelProto, ratio: float
) -> None:
    result = spa_graph.prune(routed, ratio=ratio, scope=SCOPE, criterion="random")
    want = without_experts(routed, result.plan)
    feeds = random_inputs(spa_graph.analyze(routed).graph)
    assert_same_outputs(result.model, want, feeds)
    experts = {f"block{block}.{part}" for block in (0, 1) for part in ("up", "down")}
    assert set(result.plan.kept) == {*ROUTERS, *experts}


def test_as_many_experts_stay_as_are_picked(routed: onnx.ModelProto) -> None:
    result = spa_graph.prune(routed, ratio=0.95, scope=SCOPE)
    assert {shape[0] for name, shape in shapes(result.model).items() if "up" in name} == {2}
    with pytest.raises(BudgetError, match="a router finds"):
        spa_graph.prune(routed, params=0.1, scope=SCOPE)


def test_the_smallest_network_is_told_as_it_can_be_reached(routed: onnx.ModelProto) -> None:
    smallest = inspection(spa_graph.analyze(routed))["smallest_params_ratio"]
    result = spa_graph.prune(routed, params=smallest + 1e-6, round_to=1)
    assert result.report["ratio"]["params"] == pytest.approx(smallest)
    assert [group["least"] for group in result.report["groups"]] == [1, 2, 1, 2, 1]


def test_a_plan_that_leaves_too_few(routed: onnx.ModelProto) -> None:
    plan = spa_graph.prune(routed, ratio=0.95, scope=SCOPE).plan
    kept = {
        name: {axis: index[:1] if name.startswith("block0") else index}
        for name, axes in plan.kept.items()
        for axis, index in axes.items()
    }
    with pytest.raises(OptionError, match=r"leaves 1 channel in group .*needs 2 at least"):
        spa_graph.apply_plan(routed, replace(plan, kept=kept))


def test_experts_that_are_looked_up_save_parameters_rather_than_flops(
    routed: onnx.ModelProto,
) -> None:
    """Each token costs as many as are picked; a FLOPs budget leaves them alone."""
    result = spa_graph.prune(routed, flops=0.5)
    kept = {group["name"]: group["kept"] for group in result.report["groups"]}
    assert kept["block0.up:0"] == 6
    result = spa_graph.prune(routed, params=0.5, scope=SCOPE)
    assert result.report["ratio"]["params"] <= 0.5


def test_an_unknown_reader_of_positions_keeps_the_experts(routed: onnx.ModelProto) -> None:
    """Only those whose positions it reads."""
    model = onnx.ModelProto.FromString(routed.SerializeToString())
    graph = model.graph
    ranking = next(node for node in graph.node if node.op_type == "TopK")
    look = helper.make_node("Look", [ranking.output[1]], ["seen"], "look", domain="ai.custom")
    graph.node.insert([*graph.node].index(ranking) + 1, look)
    model.opset_import.append(helper.make_opsetid("ai.custom", 1))
    analysis = spa_graph.analyze(model)
    pairs = zip(analysis.structures, analysis.groups, strict=True)
    names = {member.parameter for s, g in pairs if s.kind == "experts" for member in g.members}
    assert names == {"block1.router.weight", "block1.up", "block1.down"}
    reason = analysis.coupling.frozen_reasons["block0.up:0"]
    assert reason == "ai.custom::Look `look`: computes with positions in this axis"


def listed() -> onnx.ModelProto:
    """Experts that are layers of their own; a router picks two of three, and shares are one-hot."""
    net = Builder("listed")
    width, experts, hidden = 8, 3, 12
    x = net.relu(net.linear("stem", net.input("x", ("batch", 6)), 6, width))
    logits = net.linear("router", x, width, experts)
    best, which = net.ops("TopK", 2, logits, net.constant([2]))
    ends = net.constant([0, 1], np.float32)
    marks = net.op("OneHot", which, net.constant(experts), ends)  # (n, best, experts)
    best = net.op("Unsqueeze", net.op("Softmax", best), net.constant([1]))
    shares = net.op("Squeeze", net.op("MatMul", best, marks), net.constant([1]))
    said = x
    for number in range(experts):
        own = net.relu(net.linear(f"up{number}", x, width, hidden))
        own = net.linear(f"down{number}", own, hidden, width)
        share = net.op("Gather", shares, net.constant([number]), axis=1)
        said = net.op("Add", said, net.op("Mul", own, share))
    return net.finish(net.linear("head", said, width, 4), ("batch", 4))


def test_experts_that_are_layers_of_their_own_get_narrower() -> None:
    """Their number stays, with a reason that says what it takes; each has its own hidden width."""
    model = listed()
    analysis = spa_graph.analyze(model)
    sizes = {group.name: group.size for group in analysis.groups}
    assert sizes == {"stem.bias:0": 8, **{f"up{number}.bias:0": 12 for number in range(3)}}
    reason = analysis.coupling.frozen_reasons["router.weight:1"]
    assert "ordered by position; only experts that one weight stacks can go: one that is" in reason
    result = spa_graph.prune(model, ratio=0.5)
    assert {name: shape for name, shape in shapes(result.model).items() if "weight" in name} == {
        "stem.weight": (6, 4), "router.weight": (4, 3), "head.weight": (4, 4),
        **{f"up{number}.weight": (4, 6) for number in range(3)},
        **{f"down{number}.weight": (6, 4) for number in range(3)},
    }  # fmt: skip


@pytest.mark.matrix
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_exported_mixtures(name: str, exporter: Exporter, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    path, row = tmp_path / "network.onnx", catalogue.entry(f"transformers/{name}")
    write(row.build(), path, exporter, row.opset, dynamic=True, fuse=True)
    analysis = spa_graph.analyze(path)
    pairs = zip(analysis.structures, analysis.groups, strict=True)
    assert [(g.size, g.least) for s, g in pairs if s.kind == "experts"] == [(4, 2), (4, 2)]
    smallest = spa_graph.prune(path, ratio=0.5, scope=SCOPE).report  # proven
    assert [g["kept"] for g in smallest["groups"] if g["structure"] == "experts"] == [2, 2]
    budget = smallest["ratio"]["params"] + 1e-6
    assert spa_graph.prune(path, params=budget, scope=SCOPE).report["ratio"]["params"] <= budget
    for half in ({"flops": 0.5}, {"params": 0.5}):
        report = spa_graph.prune(path, **half).report
        assert all(report["ratio"][quantity] <= 0.5 for quantity in half)
