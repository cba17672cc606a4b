"""Verification of networks that decide: rounding may tip a choice between near ties."""

from __future__ import annotations

import numpy as np

from spa_graph import analyze
from spa_graph.edits import Edits
from spa_graph.passes.decisions import Tipped, find_decisions, tipped
from spa_graph.passes.rewrite import plan_edits
from tests.models import network

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
