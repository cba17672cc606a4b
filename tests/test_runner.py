"""Running a network piece by piece: the same values, each computed once, none kept in vain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from spa_graph.frontends.onnx.pieces import piece, reads
from spa_graph.frontends.onnx.weights import store_tensor
from spa_graph.passes.statistics import runner as runner_module
from spa_graph.passes.statistics.runner import Runner
from spa_graph.passes.statistics.store import Store
from tests.models import CHAIN, RESIDUAL, network, outputs, random_feeds

Array = NDArray[Any]
PLENTY = 1 << 30


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The network with other values as its outputs."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return copy


def assert_walks(
    model: onnx.ModelProto, steps: Sequence[Sequence[str]], folder: Path, limit: int = PLENTY
) -> None:
    """Advancing step by step gives what one run of the whole network gives."""
    batches = [random_feeds(model, seed, dynamic=2 + seed) for seed in range(3)]
    walk = Runner(ir.from_proto(model), batches, limit, folder)
    for wanted in steps:
        walk.advance(wanted)
        for number, feeds in enumerate(batches):
            for name, want in zip(wanted, outputs(with_outputs(model, wanted), feeds), strict=True):
                got = walk.value(name, number)
                assert got.dtype == want.dtype
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5, err_msg=name)


STEPS = [["x"], ["a"], ["ra"], ["rb", "p"], ["y"]]


@pytest.mark.parametrize("limit", [0, 3000, PLENTY], ids=["disk", "both", "memory"])
def test_values_are_those_of_a_whole_run(tmp_path: Path, limit: int) -> None:
    assert_walks(network(CHAIN), STEPS, tmp_path, limit)


def test_several_steps_at_once_and_values_on_different_branches(tmp_path: Path) -> None:
    assert_walks(network(RESIDUAL), [["r", "s"], ["sum"], ["y"]], tmp_path)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The operators that every piece runs, by their first output."""
    pieces: list[list[str]] = []

    def counting(model: ir.Model, nodes: list[ir.Node], *rest: Any) -> bytes:
        pieces.append([str(node.outputs[0].name) for node in nodes])
        return piece(model, nodes, *rest)

    monkeypatch.setattr(runner_module, "piece", counting)
    return pieces


def test_nothing_is_computed_twice_or_before_it_is_wanted(
    tmp_path: Path, computed: list[list[str]]
) -> None:
    model = network(RESIDUAL)
    walk = Runner(ir.from_proto(model), [random_feeds(model)], PLENTY, tmp_path)
    for wanted in (["s"], ["r"], ["r"], ["sum"], ["y"]):
        walk.advance(wanted)
    assert computed == [["s"], ["a", "r"], ["b", "sum"], ["p", "f", "y"]]


def test_what_lies_behind_operators_that_have_not_run(tmp_path: Path) -> None:
    model = ir.from_proto(network(RESIDUAL))
    walk = Runner(model, [random_feeds(network(RESIDUAL))], PLENTY, tmp_path)
    nodes = {node.outputs[0].name: id(node) for node in model.graph}
    assert {"b", "sum", "y"} <= walk.behind({nodes["b"]})
    assert "r" not in walk.behind({nodes["b"]})
    walk.advance(["sum"])
    assert "sum" not in walk.behind({nodes["b"]})


def test_values_that_nobody_reads_any_more_are_dropped(tmp_path: Path) -> None:
    model = network(RESIDUAL)
    walk = Runner(ir.from_proto(model), [random_feeds(model)], 0, tmp_path)
    walk.advance(["s"])
    assert walk.store.names() == ["s"]  # x is read by nobody else
    walk.advance(["r"])
    assert set(walk.store.names()) == {"s", "r"}  # s waits for the sum
    walk.advance(["sum"])
    assert walk.store.names() == ["sum"]
    assert len(list(tmp_path.rglob("*.npy"))) == 1


def test_a_value_that_is_kept_survives_its_last_reader(tmp_path: Path) -> None:
    model = network(RESIDUAL)
    feeds = random_feeds(model)
    walk = Runner(ir.from_proto(model), [feeds], PLENTY, tmp_path)
    walk.advance(["sum"], keep=["r", "b"])
    for name in ("r", "b"):
        want = outputs(with_outputs(model, [name]), feeds)[0]
        np.testing.assert_allclose(walk.value(name, 0), want, rtol=1e-5, atol=1e-5)
    walk.advance(["y"], keep=["b"])
    assert set(walk.store.names()) == {"b", "y"}


def test_weights_that_change_on_the_way_are_used(tmp_path: Path) -> None:
    model = network(CHAIN)
    proto = onnx.ModelProto.FromString(model.SerializeToString())
    feeds = random_feeds(model)
    changing = ir.from_proto(model)
    walk = Runner(changing, [feeds], PLENTY, tmp_path)
    walk.advance(["ra"])
    new = np.random.default_rng(5).standard_normal((12, 5)).astype(np.float32)
    store_tensor(changing.graph.initializers["w3"], ir.tensor(new))
    walk.advance(["y"])
    next(t for t in proto.graph.initializer if t.name == "w3").raw_data = new.tobytes()
    np.testing.assert_allclose(walk.value("y", 0), outputs(proto, feeds)[0], rtol=1e-5, atol=1e-5)


# --- structures ----------------------------------------------------------------------------------

BRANCHES = """
net (float[N,4] x, bool c) => (float[N,4] y) <float[4,4] w, float[4] shift>
{
    h = MatMul(x, w)
    r = Relu(h)
    d = If(c) <
        then_branch = one () => (float[N,4] t) { u = Add(h, shift) t = Mul(u, r) },
        else_branch = two () => (float[N,4] e) { e = Mul(r, r) }
    >
    y = Add(d, x)
}
"""
LOOP = """
net (float[N,4] x) => (float[N,4] y) <float[4,4] w, int64 trips = {3}, bool go = {1}>
{
    h = MatMul(x, w)
    s = Relu(h)
    d = Loop(trips, go, s) <
        body = each (int64 i, bool live, float[N,4] state) => (bool on, float[N,4] next)
        {
            on = Identity(live)
            f = Cast<to = 1>(i)
            next = If(live) <
                then_branch = one () => (float[N,4] t) { u = Add(state, h) t = Mul(u, f) },
                else_branch = two () => (float[N,4] e) { e = Add(state, f) }
            >
        }
    >
    y = Add(d, x)
}
"""


NESTED = """
net (float[N,4] x) => (float[N,4] y) <float[4,4] w, int64 trips = {3}, bool go = {1}>
{
    h = MatMul(x, w)
    d = Loop(trips, go, h) <
        body = each (int64 i, bool live, float[N,4] state) => (bool on, float[N,4] next)
        {
            on = Identity(live)
            next = Loop(trips, live, state) <
                body = inner (int64 j, bool alive, float[N,4] inside) => (bool still, float[N,4] z)
                <float[4] own = {1.0, 2.0, 3.0, 4.0}>
                {
                    still = Identity(alive)
                    f = Cast<to = 1>(j)
                    k = Mul(own, f)
                    u = Add(inside, h)
                    z = Add(u, k)
                }
            >
        }
    >
    y = Add(d, x)
}
"""


@pytest.mark.parametrize("chosen", [True, False])
def test_branches_capture_values_from_before(tmp_path: Path, chosen: bool) -> None:
    model = network(BRANCHES)
    feeds = {**random_feeds(model), "c": np.array(chosen)}
    walk = Runner(ir.from_proto(model), [feeds], 0, tmp_path)
    for name in ("h", "r", "d", "y"):
        walk.advance([name])
        want = outputs(with_outputs(model, [name]), feeds)[0]
        np.testing.assert_allclose(walk.value(name, 0), want, rtol=1e-5, atol=1e-5)


def test_loops_capture_values_from_before_however_deep_inside(tmp_path: Path) -> None:
    assert_walks(network(LOOP), [["h"], ["s"], ["d"], ["y"]], tmp_path)


def test_a_loop_in_a_loop_has_values_of_its_own(tmp_path: Path) -> None:
    model = ir.from_proto(network(NESTED))
    loop = next(node for node in model.graph if node.op_type == "Loop")
    assert {value.name for value in reads(loop)} == {"trips", "go", "h"}
    assert_walks(network(NESTED), [["h"], ["d"], ["y"]], tmp_path)


def test_constant_nodes_are_weights(tmp_path: Path) -> None:
    text = """net (float[N,4] x) => (float[N,4] y)
    {
        two = Constant<value_float = 2.0>()
        a = Mul(x, two)
        b = Add(a, two)
        shape = Constant<value_ints = [2, -1]>()
        c = Reshape(b, shape)
        back = Shape(x)
        y = Reshape(c, back)
    }"""
    assert_walks(network(text), [["a"], ["c"], ["y"]], tmp_path)


@pytest.mark.parametrize("limit", [0, PLENTY])
def test_values_of_all_kinds_wait(tmp_path: Path, limit: int) -> None:
    """Scalars, integers, truth values, and arrays without elements."""
    text = """net (float[N,4] x) => (float[?,4] y) <int64[1] zero = {0}, int64[1] none = {0}>
    {
        m = ReduceMax<keepdims = 0>(x)
        above = Greater(x, m)
        hits = NonZero(above)
        n = Size(hits)
        f = Cast<to = 1>(n)
        empty = Slice(x, zero, none, zero)
        all = Concat<axis = 0>(x, empty)
        y = Add(all, f)
    }"""
    assert_walks(
        network(text), [["m"], ["above"], ["hits", "empty"], ["n"], ["y"]], tmp_path, limit
    )


def test_a_second_output_is_there_when_it_is_read_later(tmp_path: Path) -> None:
    text = """net (float[N,4] x) => (float[N,2] y) <int64[2] parts = {2,2}>
    { a, b = Split<axis = 1>(x, parts) r = Relu(a) y = Add(r, b) }"""
    assert_walks(network(text), [["a"], ["r"], ["y"]], tmp_path)


def test_initializers_that_are_inputs_too_are_weights(tmp_path: Path) -> None:
    model = network(
        "net (float[N,4] x) => (float[N,3] y) <float[4,3] w> { h = MatMul(x, w) y = Relu(h) }"
    )
    model.graph.input.append(
        onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 3])
    )
    assert_walks(model, [["h"], ["y"]], tmp_path)


def test_a_weight_can_be_both_read_and_an_output(tmp_path: Path) -> None:
    model = network(
        "net (float[N,4] x) => (float[N,3] y, float[4,3] v) <float[4,3] w>"
        "{ v = Identity(w) y = MatMul(x, w) }"
    )
    assert_walks(model, [["y"], ["v"]], tmp_path)


# --- the store -----------------------------------------------------------------------------------


def test_store_spills_beyond_its_limit_and_takes_back_what_is_dropped(tmp_path: Path) -> None:
    store = Store(100, tmp_path)
    first, second = np.arange(20, dtype=np.float32), np.arange(20, 40, dtype=np.float32)
    store.put("a", 0, first)
    store.put("b", 0, second)
    assert isinstance(store.get("b", 0), np.memmap)
    assert not isinstance(store.get("a", 0), np.memmap)
    store.drop("a")
    store.put("c", 0, first)
    assert not isinstance(store.get("c", 0), np.memmap)
    np.testing.assert_array_equal(store.get("b", 0), second)
    store.drop("b")
    assert list(tmp_path.rglob("*.npy")) == []
    assert "b" not in store
