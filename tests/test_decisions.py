"""Verification of networks that decide: rounding may tip a choice between near ties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from spa_graph import VerificationError, analyze, apply_plan, prune
from spa_graph.edits import Edits
from spa_graph.frontends.onnx import editor
from spa_graph.graph import Graph
from spa_graph.passes import proof
from spa_graph.passes.decisions import Tipped, find_decisions, tipped
from spa_graph.passes.rewrite import plan_edits
from spa_graph.plan import make_plan
from tests.models import Array, network

CHOICE = """
choice (float[N,4] x) => (float[N,2] best, int64[N,2] where)
<float[4,8] w1, float[8,6] w2, int64[1] k = {2}>
{ h = MatMul(x, w1) r = Relu(h) s = MatMul(r, w2) best, where = TopK(s, k) }
"""
BEHIND = """
behind (float[N,4] x) => (float[N,3] y)
<float[4,8] w1, float[4,8] v1, float[8,3] v2>
{
    s = MatMul(x, w1)
    i = ArgMax<axis = 1>(s)
    f = Cast<to = 1>(i)
    a = MatMul(x, v1)
    b = Add(a, f)
    y = MatMul(b, v2)
}
"""


def _half(text: str) -> Edits:
    coupling = analyze(network(text)).coupling
    return plan_edits(coupling, np.arange(coupling.count) % 2 == 0)


def test_grounds_and_outcomes_are_found() -> None:
    (decision,) = find_decisions(analyze(network(CHOICE)).graph, _half(CHOICE))
    assert (decision.grounds, decision.outcomes) == (("s",), ("where",))


def test_what_follows_a_tipped_decision_is_told_apart() -> None:
    graph, edits = analyze(network(CHOICE)).graph, _half(CHOICE)
    decisions = find_decisions(graph, edits)
    first, second = {"where": np.array([[0, 1]])}, {"where": np.array([[1, 0]])}
    assert tipped(graph, edits, decisions, first, second) == Tipped({"best", "where"}, hides=False)
    assert tipped(graph, edits, decisions, first, first) == Tipped(set(), hides=False)


def test_pruned_weights_behind_a_tipped_decision_leave_no_proof() -> None:
    graph, edits = analyze(network(BEHIND)).graph, _half(BEHIND)
    decisions = find_decisions(graph, edits)
    outcomes = {"i": np.array([[0]]), "f": np.array([[0.0]])}
    assert tipped(graph, edits, decisions, outcomes, {"i": np.array([[1]])}).hides


HIDING = """
hiding (float[N,16] x) => ({kind}[N,8] y)
<float[16,32] w1, float[32] b1, float[32,8] w2, float[8] b2, float zero = {{0.0}}>
{{
    h = MatMul(x, w1)
    b = Add(h, b1)
    r = Relu(b)
    s = MatMul(r, w2)
    t = Add(s, b2)
    {tail}
}}
"""


@pytest.mark.parametrize(
    ("kind", "tail"),
    [
        ("bool", "y = Greater(t, zero)"),
        ("int8", "y = Cast<to = 3>(t)"),
        ("float", "p = Sigmoid(t) y = Round(p)"),
        ("float", "p = Sigmoid(t) q = Round(p) y = Sub(q, p1)"),
    ],
)
def test_outputs_that_hide_differences_prove_nothing(
    kind: str, tail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    values = {"b2": np.zeros(8, np.float32), "p1": np.float32(0.25)}
    values["w2"] = generator.standard_normal((32, 8)).astype(np.float32)
    text = HIDING.format(kind=kind, tail=tail).replace("float zero", "float p1, float zero")
    model = network(text, values=values)
    prune(model, ratio=0.5)
    _spoil(monkeypatch, "b1", lambda bias: bias + 1e-3)
    with pytest.raises(VerificationError):
        prune(model, ratio=0.5)


def _spoil(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Array], Array]) -> None:
    """Let each pruned network have a weight that is wrong."""
    right = editor.apply_edits

    def wrong(changed: ir.Model, *rest: Any) -> Graph:
        graph = right(changed, *rest)
        weight = changed.graph.initializers[name]
        assert weight.const_value is not None
        weight.const_value = ir.tensor(change(weight.const_value.numpy()), name=name)
        return graph

    monkeypatch.setattr(editor, "apply_edits", wrong)


ROUTED = """
routed (float[1,4] x) => (float[1,3] y)
<float[4,6] r, float[6] b, float[6,4,8] w, float[6,8,3] u, int64[1] k = {1}, int64[1] one = {1}>
{
    m = MatMul(x, r)
    s = Add(m, b)
    best, where = TopK(s, k)
    up = Gather(w, where)
    down = Gather(u, where)
    line = Unsqueeze(x, one)
    each = Unsqueeze(line, one)
    h = MatMul(each, up)
    a = Relu(h)
    o = MatMul(a, down)
    q = Squeeze(o, one)
    y = Squeeze(q, one)
}
"""


@pytest.mark.parametrize(
    ("moved", "tries", "hidden"), [(1e-7, 3, None), (1e-7, 1, True), (1e-2, 3, False)]
)
def test_a_router_between_near_ties(
    moved: float, tries: int, hidden: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two experts tie; in the pruned network the second is ahead by `moved`.

    One input has them in front and another hasn't, which proves the network if `moved` is rounding.
    """
    router = np.random.default_rng(3).standard_normal((4, 6)).astype(np.float32)
    router[:, 1] = router[:, 0]
    model = network(ROUTED, values={"r": router, "b": np.zeros(6, np.float32)})
    right = editor.apply_edits

    def tipping(changed: ir.Model, *rest: Any) -> Graph:
        graph = right(changed, *rest)
        bias = changed.graph.initializers["b"]
        assert bias.const_value is not None
        bias.const_value = ir.tensor(bias.const_value.numpy() + np.float32([0, moved, 0]), name="b")
        return graph

    monkeypatch.setattr(editor, "apply_edits", tipping)
    monkeypatch.setattr(proof, "TRIES", tries)
    coupling = analyze(model).coupling
    kept = np.ones(coupling.count, bool)
    (experts,) = (group for group in coupling.groups if group.size == 6)
    kept[experts.start + 3 : experts.stop] = False
    if hidden is None:
        apply_plan(model, make_plan(coupling, kept))
        return
    with pytest.raises(VerificationError) as raised:
        apply_plan(model, make_plan(coupling, kept))
    assert isinstance(raised.value, proof._HiddenError) is hidden


SATURATING = """
saturating (float[N,16] x) => (float[N,4] y)
<float[16,32] w1, float[32,4] w2, float[1] steep = {3000.0}>
{ h = MatMul(x, w1) r = Relu(h) s = MatMul(r, w2) t = Mul(s, steep) y = Softmax(t) }
"""


def test_a_softmax_that_random_input_saturates_is_run_on_smaller_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = network(SATURATING)
    prune(model, ratio=0.5)
    _spoil(monkeypatch, "w2", lambda weight: weight * np.float32(1.01))
    with pytest.raises(VerificationError, match="differs by"):
        prune(model, ratio=0.5)
    monkeypatch.setattr(proof, "SCALES", (1.0, 30.0))
    prune(model, ratio=0.5)  # large inputs alone don't show it
