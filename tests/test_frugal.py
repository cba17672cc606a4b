"""Proofs of networks whose features need much more memory than their weights."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import spa_graph
from spa_graph import api
from spa_graph.errors import VerificationError
from spa_graph.passes import frugal, proof
from spa_graph.passes.frugal import Features, Network, pieces
from spa_graph.passes.network import Analysis, Pruned
from spa_graph.passes.statistics.runner import Runner
from spa_graph.runtime.verify import Agreement
from tests.models import CHAIN, MLP, RESIDUAL, network, outputs, random_feeds

LAYER = 8 * 8 * 8 * 4
"""Bytes of CHAIN's first features at a batch of one."""
ATTENTION = """
attention (float[N,8,16] x) => (float[N,8,16] y)
<float[16,16] wq, float[16,16] wk, float[16,16] wv, float[16,16] wo,
 float[16] scale, float[16] shift, int64[4] heads = {0, 8, 2, 8}, int64[3] joined = {0, 8, 16}>
{
    n = LayerNormalization(x, scale, shift)
    q = MatMul(n, wq)
    q4 = Reshape(q, heads)
    qh = Transpose<perm=[0,2,1,3]>(q4)
    k = MatMul(n, wk)
    k4 = Reshape(k, heads)
    kh = Transpose<perm=[0,2,3,1]>(k4)
    v = MatMul(n, wv)
    v4 = Reshape(v, heads)
    vh = Transpose<perm=[0,2,1,3]>(v4)
    s = MatMul(qh, kh)
    p = Softmax(s)
    a = MatMul(p, vh)
    at = Transpose<perm=[0,2,1,3]>(a)
    aj = Reshape(at, joined)
    o = MatMul(aj, wo)
    y = Add(x, o)
}
"""
MIXING = """
mixing (float[N,4] x) => (float[N,3] y) <float[4,16] w1, float[16,3] w2>
{
    h = MatMul(x, w1)
    mean = ReduceMean<axes=[0]>(h)
    c = Sub(h, mean)
    r = Relu(c)
    y = MatMul(r, w2)
}
"""
"""What it computes of one sample depends on the others."""
SEQUENCE = """
sequence (float[N,4] x) => (float[N,16] y, float[2] c)
<float[4,16] w1, float[16,16] w2, int64 second = {1}>
{
    h = MatMul(x, w1)
    r = Relu(h)
    s = SequenceConstruct(h, r)
    t = SequenceAt(s, second)
    y = MatMul(t, w2)
    c = Constant<value_floats=[1.0, 2.0]>()
}
"""
"""A list of features, which can't be kept on disk, and a constant output."""
CONSTANT = MLP.replace("(float[N,3] y)", "(float[N,3] y, float[2] c)").replace(
    "y = MatMul(r, w2)", "y = MatMul(r, w2) c = Constant<value_floats=[1.0, 2.0]>()"
)
NETWORKS = {"chain": CHAIN, "residual": RESIDUAL, "attention": ATTENTION, "mixing": MIXING}


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of any size are too large."""
    monkeypatch.setattr(frugal, "ROOM", 0)
    monkeypatch.setattr(frugal, "LEAST_ROOM", 0)


def test_what_features_need_is_told_by_the_shapes() -> None:
    graph = spa_graph.analyze(network(CHAIN)).graph
    one, two = Features(graph, 0), Features(graph, 1)
    assert one.sizes["a"] == LAYER
    assert one.sizes["rb"] == 12 * 8 * 8 * 4
    image = 3 * 8 * 8 * 4
    # the input is the caller's; b and what is made of it are the largest
    assert one.at_once == image + 2 * one.sizes["rb"]
    assert two.at_once == 2 * one.at_once


def test_values_that_are_read_again_later_are_held_until_then() -> None:
    graph = spa_graph.analyze(network(RESIDUAL)).graph
    features = Features(graph, 0)
    sizes = features.sizes
    assert features.at_once == sum(sizes[name] for name in ("x", "s", "b", "sum"))


@pytest.mark.parametrize("room", [0, 3 * LAYER, 1 << 20])
@pytest.mark.parametrize("text", [CHAIN, RESIDUAL, ATTENTION], ids=["chain", "residual", "heads"])
def test_pieces_are_all_nodes_in_order_and_fit(text: str, room: int) -> None:
    model = ir.from_proto(network(text))
    sizes = Features(spa_graph.analyze(network(text)).graph, 0).sizes
    cut = list(pieces(model.graph, sizes, room))
    assert [node for nodes, _ in cut for node in nodes] == list(model.graph)
    for nodes, touched in cut:
        values = {v.name for node in nodes for v in (*node.inputs, *node.outputs) if v is not None}
        assert sum(sizes.get(str(name), 0) for name in values) <= touched
        assert len(nodes) == 1 or touched <= room
    assert (len(cut) == 1) == (room == 1 << 20)
    assert (len(cut) == len(list(model.graph))) == (room == 0)


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("text", [*NETWORKS.values(), SEQUENCE, CONSTANT])
def test_pieces_compute_what_the_whole_computes(tmp_path: Path, text: str) -> None:
    model = network(text)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    feeds = random_feeds(model)
    got = Network(path, spa_graph.analyze(model).graph, tmp_path).run(feeds)
    for mine, want in zip(got, outputs(model, feeds), strict=True):
        np.testing.assert_allclose(mine, want, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("text", NETWORKS.values(), ids=NETWORKS)
def test_networks_are_proven_in_pieces(text: str) -> None:
    """Also one that mixes the elements of a batch."""
    result = spa_graph.prune(network(text), ratio=0.5)
    assert result.report["ratio"]["params"] < 0.95
    assert result.report["verification"]["error"] < 1e-4
    assert result.report["verification"]["output_varied"]


@pytest.mark.usefixtures("no_room")
def test_operators_are_proven_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    tiled = []
    real = Runner._run_tile

    def run_tile(self: Runner, session: Any, node: ir.Node, *rest: Any) -> None:
        tiled.append(node.op_type)
        real(self, session, node, *rest)

    monkeypatch.setattr(Runner, "_run_tile", run_tile)
    assert spa_graph.prune(network(ATTENTION), ratio=0.5).report["verification"]["error"] < 1e-4
    assert {"MatMul", "Reshape", "Softmax", "Transpose", "Add"} <= {*tiled}


@pytest.mark.usefixtures("no_room")
def test_nothing_but_the_network_is_left_beside_the_output(tmp_path: Path) -> None:
    spa_graph.prune(network(CHAIN), flops=0.5, output=tmp_path / "small.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]


def mixed(draft: Path) -> None:
    """Change the pruned MLP so that each element of a batch has the largest features of all."""
    model = onnx.load(draft)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    before = relu.input[0]
    relu.input[0] = "same"
    make, where = onnx.helper.make_node, list(model.graph.node).index(relu)
    model.graph.node.insert(where, make("Expand", ["largest", "size"], ["same"]))
    model.graph.node.insert(where, make("Shape", [before], ["size"]))
    model.graph.node.insert(where, make("ReduceMax", [before], ["largest"], axes=[0]))
    onnx.save(model, draft)


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("wrong", [False, True])
def test_a_network_that_is_wrong_only_for_batches_is_found(
    monkeypatch: pytest.MonkeyPatch, wrong: bool
) -> None:
    real = proof.verify

    def verify(analysis: Analysis, pruned: Pruned, draft: Path, *rest: Any) -> Agreement:
        if wrong:
            mixed(draft)
        return real(analysis, pruned, draft, *rest)

    monkeypatch.setattr(proof, "verify", verify)
    expected = pytest.raises(VerificationError, match="`y`") if wrong else nullcontext()
    with expected:
        spa_graph.prune(network(MLP), ratio=0.5)


@pytest.mark.usefixtures("no_room")
def test_a_canonical_form_that_lost_what_mixes_a_batch_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = """net (float[N,4] x) => (float[N,3] y) <float[4,8] w1, float[8,3] w2>
    {{ m = MatMul(x, w1) r = Relu(m) {} }}"""
    plain = network(text.format("y = MatMul(r, w2)"))
    mixing = network(
        text.format("q = MatMul(r, w2) most = ReduceMax<axes=[0],keepdims=1>(q) y = Max(q, most)")
    )
    check = proof._check_canonical

    def with_another(analysis: Any, *rest: Any) -> None:
        check(replace(analysis, original=ir.from_proto(mixing)), *rest)

    monkeypatch.setattr(proof, "_check_canonical", with_another)
    prepared = api.prepare

    def changed(*given: Any, **named: Any) -> Any:
        return replace(prepared(*given, **named), changed=["as if"])

    monkeypatch.setattr(api, "prepare", changed)
    with pytest.raises(spa_graph.VerificationError, match="differs by"):
        spa_graph.prune(plain, ratio=0.5)
