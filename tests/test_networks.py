"""What a network may look like: opsets, types, where weights stand, functions and subgraphs."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import onnx
import pytest

import spa_graph
from tests.conftest import Command
from tests.models import (
    BIG,
    CHAIN,
    MLP,
    assert_pruned,
    assert_same_outputs,
    changed_by,
    external_model,
    network,
    random_feeds,
    shapes,
    stored,
    zero,
)


def test_initializers_that_are_also_inputs() -> None:
    model = network(CHAIN)
    for tensor in model.graph.initializer:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(value)
    pruned = assert_pruned(model, spa_graph.prune(model, flops=0.5))
    assert [v.name for v in pruned.graph.input] == [v.name for v in model.graph.input]
    for value in pruned.graph.input[1:]:
        declared = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        assert declared == shapes(pruned)[value.name]


def test_stated_shapes_of_another_layout() -> None:
    """As jax2onnx leaves them where it moves Transposes; ONNX Runtime trips over some of them."""
    text = """
    net (float[N,1,28,28] x) => (float[N,4,1,1] y)
    <float[16,1,3,3] k1, float[32,16,3,3] k2, float[32,16,1,1] k3, float[4,32,1,1] k4> {
        c = Conv<pads=[1,1,1,1]>(x, k1)
        r = Relu(c)
        left = Conv<pads=[1,1,1,1], strides=[2,2]>(r, k2)
        right = Conv<strides=[2,2]>(r, k3)
        both = Add(left, right)
        means = GlobalAveragePool(both)
        y = Conv(means, k4)
    }
    """
    model = network(text)
    for name, sizes in (("r", (28, 28, 16)), ("left", (32, 14, 14)), ("right", (32, 14, 14))):
        stated = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", *sizes])
        model.graph.value_info.append(stated)
    pruned = assert_pruned(model, spa_graph.prune(model, flops=0.5))
    by_name = {value.name: value.type.tensor_type.shape.dim for value in pruned.graph.value_info}
    kept = shapes(pruned)["k1"][0]
    assert [dim.dim_value for dim in by_name["r"]] == [0, kept, 28, 0]
    onnx.shape_inference.infer_shapes(pruned, strict_mode=True)


def with_units_at_rest(text: str) -> onnx.ModelProto:
    """Of the eight units of w1 and b1, those with large weights never leave zero."""
    at_rest = np.arange(8) % 2 == 1
    values = stored(network(text))
    values["w1"] = values["w1"] * np.where(at_rest, 10, 1).astype(np.float32)
    values["b1"] = np.where(at_rest, -1e4, 0).astype(np.float32)
    return network(text, values=values)


@pytest.mark.parametrize(
    ("also", "read"), [("", "m = MatMul(x, w1)"), (", float s", "z = MatMul(x, w1) m = Mul(z, s)")]
)
def test_a_network_that_no_longer_depends_on_its_input(
    also: str, read: str, tmp_path: Path, command: Command
) -> None:
    """The units with the large weights are those that a bias keeps at rest; also with a scalar."""
    text = f"""net (float[N,4] x{also}) => (float[N,3] y)
    <float[4,8] w1, float[8] b1, float[8,3] w2>
    {{ {read} a = Add(m, b1) r = Relu(a) y = MatMul(r, w2) }}"""
    onnx.save(with_units_at_rest(text), tmp_path / "net.onnx")
    for ratio, alive in ((0.5, False), (0.25, True)):
        output = tmp_path / f"{ratio}.onnx"
        ran = command(tmp_path / "net.onnx", "--ratio", ratio, "-o", output, "--report",
                      tmp_path / f"{ratio}.json", "--latency-seconds", 0)  # fmt: skip
        assert ran.code == 0, ran.err
        report = json.loads((tmp_path / f"{ratio}.json").read_text())
        assert report["verification"]["alive"] == alive
        assert ("no longer depend on the input" in " ".join(ran.out.split())) != alive


@pytest.mark.parametrize(("given", "read", "width"), [
    ("float[N,1] x", "m = MatMul(x, w1)", 1),
    ("int64[N] i", "x = Gather(table, i) m = MatMul(x, w1)", 6),
    ("int64[N,S] i", "e = Gather(table, i) x = ReduceMean<axes=[1],keepdims=0>(e) "
                     "m = MatMul(x, w1)", 6),
], ids=["one number", "category", "bag of words"])  # fmt: skip
def test_dead_networks_that_do_not_see_the_order_of_their_input(
    given: str, read: str, width: int
) -> None:
    text = f"""net ({given}) => (float[N,3] y)
    <float[50,6] table, float[{width},8] w1, float[8] b1, float[8,3] w2>
    {{ {read} a = Add(m, b1) r = Relu(a) y = MatMul(r, w2) }}"""
    result = spa_graph.prune(with_units_at_rest(text), ratio=0.5)
    assert not result.report["verification"]["alive"]


def test_a_network_that_became_symmetric_is_alive() -> None:
    """Sums of two numbers are kept, differences go: their order doesn't matter any more."""
    text = """net (float[N,2] x) => (float[N,3] y) <float[2,8] w1, float[8,3] w2>
    { m = MatMul(x, w1) a = Abs(m) y = MatMul(a, w2) }"""
    values = stored(network(text))
    values["w1"] = np.where(np.arange(8) % 2, [[0.3], [-0.2]], 3.0).astype(np.float32)
    result = spa_graph.prune(network(text, values=values), ratio=0.5)
    assert result.report["verification"]["alive"]


@pytest.mark.parametrize("both", [False, True])
def test_what_only_the_optimiser_rejects(
    both: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the proof can run, but not a session with its default settings."""
    given, written = tmp_path / "given.onnx", tmp_path / "small.onnx"
    onnx.save(network(CHAIN), given)

    def rejects(path: Path) -> None:
        if both or path != given:
            raise spa_graph.ModelError("ONNX Runtime rejects it")

    monkeypatch.setattr("spa_graph.passes.proof.open_session", rejects)
    expected = pytest.raises(spa_graph.VerificationError, match="ONNX Runtime rejects it")
    with nullcontext() if both else expected:
        spa_graph.prune(given, flops=0.5, output=written)
    assert written.exists() == both


def test_unused_nodes_and_unused_initializers() -> None:
    text = """
    net (float[N,4] x) => (float[N,3] y)
    <float[4,16] w1, float[16,3] w2, float[16,9] w3, float[7,7] unused> {
        h = MatMul(x, w1)
        r = Relu(h)
        nobody = MatMul(r, w3)
        noone = Sigmoid(nobody)
        y = MatMul(r, w2)
    }
    """
    model = network(text)
    pruned = assert_pruned(model, spa_graph.prune(model, flops=0.5))
    assert shapes(pruned)["unused"] == (7, 7)
    assert shapes(pruned)["w3"][0] == shapes(pruned)["w2"][0] == shapes(pruned)["w1"][1] < 16


def test_constant_nodes_as_weights() -> None:
    model = network(MLP)
    for tensor in list(model.graph.initializer):
        node = onnx.helper.make_node("Constant", [], [tensor.name], value=tensor)
        model.graph.node.insert(0, node)
    del model.graph.initializer[:]
    result = spa_graph.prune(model, flops=0.5)
    pruned = assert_pruned(model, result)
    assert not pruned.graph.initializer
    assert shapes(pruned) == {"w1": (4, 8), "b1": (8,), "w2": (8, 3)}


def test_scalar_and_list_constants() -> None:
    text = """
    net (float[N,4] x) => (float[N,3] y) <float[4,16] w1, float[16,3] w2> {
        two = Constant<value_float = 2.0>()
        shape = Constant<value_ints = [0, 16]>()
        zero = Constant<value_int = 0>()
        h = MatMul(x, w1)
        t = Mul(h, two)
        s = Reshape(t, shape)
        y = MatMul(s, w2)
    }
    """
    model = network(text)
    assert_pruned(model, spa_graph.prune(model, flops=0.5))


def test_positions_that_are_also_an_input() -> None:
    """An input with a default follows its default, as weights do; it isn't left without a use."""
    text = """
    net (float[N,4] x, int64[8] i) => (float[N,3] y)
    <float[4,8] w1, int64[8] i = {7, 6, 5, 4, 3, 2, 1, 0}, float[8,3] w2> {
        h = MatMul(x, w1)
        g = Gather<axis = 1>(h, i)
        y = MatMul(g, w2)
    }
    """
    model = network(text)
    pruned = assert_pruned(model, spa_graph.prune(model, ratio=0.5))
    assert {v.name for v in pruned.graph.input} == {"x", "i"}
    assert shapes(pruned) == {"w1": (4, 4), "i": (4,), "w2": (4, 3)}
    assert pruned.graph.node[1].input[1] == "i"


SIZES = """
net (float[N,3,H,W] x) => (float[N,8,A,B] y)
<float[16,3,1,1] w1, float[8,16,1,1] w2, int64[1] c = {16}, int64[1] rest = {-1}> {
    h = Conv(x, w1)
    n = Shape<start = 0, end = 1>(h)
    hw = Shape<start = 2>(h)
    flat = Concat<axis = 0>(n, c, rest)
    a = Reshape(h, flat)
    r = Relu(a)
    full = Concat<axis = 0>(n, c, hw)
    u = Reshape(r, full)
    y = Conv(u, w2)
}
"""
"""Sizes that are computed with the number of channels as a constant."""


def names(graph: onnx.GraphProto) -> list[str]:
    inner = [a.g for node in graph.node for a in node.attribute if a.HasField("g")]
    own = [*(t.name for t in graph.initializer), *(o for node in graph.node for o in node.output)]
    return [*own, *(name for each in inner for name in names(each))]


def test_pruning_again_and_again() -> None:
    """What was added the first time has names that are taken the second time."""
    model = network(SIZES)
    for _ in range(3):
        result = spa_graph.prune(model, ratio=0.3, round_to=1)
        model = assert_pruned(model, result)
        assert len(set(names(model.graph))) == len(names(model.graph))
        nodes = [node.name for node in model.graph.node if node.name]
        assert len(set(nodes)) == len(nodes)


@pytest.mark.parametrize("taken", ["a.sizes", "a.sizes.masked", "a.sizes.put", "a.sizes.mask"])
@pytest.mark.parametrize("where", ["value", "subgraph"])
def test_names_that_are_taken(taken: str, where: str) -> None:
    if where == "value":
        text = SIZES.replace("y = Conv(u, w2)", "taken = Conv(u, w2) y = Identity(taken)")
    else:
        text = SIZES.replace("(float[N,3,H,W] x)", "(float[N,3,H,W] x, bool flag)").replace(
            "y = Conv(u, w2)",
            """v = Conv(u, w2)
            y = If (flag) <
                then_branch = yes () => (float[N,8,A,B] p) { taken = Relu(v) p = Neg(taken) },
                else_branch = no () => (float[N,8,A,B] q) { q = Neg(v) }
            >""",
        )
    model = network(text)
    nodes = [*model.graph.node, *(n for a in model.graph.node[-1].attribute for n in a.g.node)]
    for node in nodes:
        for side in (node.input, node.output):
            side[:] = [taken if name == "taken" else name for name in side]
    result = spa_graph.prune(model, ratio=0.3)
    assert len(set(names(result.model.graph))) == len(names(result.model.graph))
    feeds = random_feeds(model, dynamic=3)
    if where == "subgraph":
        feeds["flag"] = np.array(True)
    assert_same_outputs(result.model, changed_by(model, result.plan, zero), feeds)


@pytest.mark.parametrize("kind", ["links", "link to one file"])
def test_a_model_in_a_download_cache(tmp_path: Path, kind: str) -> None:
    """snapshots/1/model.onnx is a link into blobs/, as is its data; blobs have other names."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    if kind == "links":
        external_model(tmp_path).rename(blobs / "5d41402a")
        (tmp_path / "weights.bin").rename(blobs / "7d793037")
        (snapshot / "weights.bin").symlink_to(Path("..", "..", "blobs", "7d793037"))
    else:
        onnx.save(network(BIG), blobs / "5d41402a")
        (snapshot / "5d41402a").write_bytes(b"another file of that name")
    path, out = snapshot / "model.onnx", tmp_path / "out.onnx"
    path.symlink_to(Path("..", "..", "blobs", "5d41402a"))
    result = spa_graph.prune(path, flops=0.5, output=out, latency_seconds=0.01)
    model = network(BIG)
    assert_same_outputs(out, changed_by(model, result.plan, zero), random_feeds(model))
    assert len(list(blobs.iterdir())) == (2 if kind == "links" else 1)


def size_of(*paths: Path) -> int:
    return sum(path.stat().st_size for path in paths)


def test_external_data_stays_external(tmp_path: Path) -> None:
    path, out = external_model(tmp_path), tmp_path / "out.onnx"
    result = spa_graph.prune(path, flops=0.5, output=out)
    slim = onnx.load(out, load_external_data=False)
    large = [t for t in slim.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert [t.name for t in large] == ["w1"]
    assert {e.value for t in large for e in t.external_data if e.key == "location"} == {
        "out.onnx.data"
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.onnx", "out.onnx", "out.onnx.data", "weights.bin",
    ]  # fmt: skip
    model = network(BIG)
    assert_same_outputs(out, changed_by(model, result.plan, zero), random_feeds(model))
    assert result.report["before"]["bytes"] == size_of(path, tmp_path / "weights.bin")
    assert result.report["after"]["bytes"] == size_of(out, tmp_path / "out.onnx.data")


def test_inline_weights_stay_inline(tmp_path: Path) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(network(BIG), path)
    spa_graph.prune(path, flops=0.5, output=out)
    assert not [
        t for t in onnx.load(out, load_external_data=False).graph.initializer if t.data_location
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "out.onnx"]


def test_local_functions() -> None:
    body = """
    <opset_import: ["" : 17]> block (x, w, b) => (y) { h = Gemm(x, w, b) y = Relu(h) }
    """
    text = """
    net (float[N,4] x) => (float[N,3] y)
    <float[4,16] w1, float[16] b1, float[16,12] w2, float[12] b2, float[12,3] w3>
    { h = local.block(x, w1, b1) g = local.block(h, w2, b2) y = MatMul(g, w3) }
    """
    model = network(text, imports=', "local" : 1')
    function = onnx.parser.parse_function(body.replace("<", '<domain: "local", ', 1))
    model.functions.append(function)
    pruned = assert_pruned(model, spa_graph.prune(model, flops=0.5))
    assert shapes(pruned)["w2"][0] == shapes(pruned)["w1"][1] < 16
    assert shapes(pruned)["w3"][0] == shapes(pruned)["w2"][1] <= 12


IF = """
net (float[N,4] x, bool flag) => (float[N,3] y)
<float[4,16] w1, float[16,8] w2, float[8,3] w3> {
    h = MatMul(x, w1)
    g = MatMul(h, w2)
    z = If (flag) <
        then_branch = yes () => (float[N,8] a) { a = Relu(g) },
        else_branch = no () => (float[N,8] b) { b = Neg(g) }
    >
    y = MatMul(z, w3)
}
"""
LOOP = """
net (float[N,4] x, int64 count) => (float[N,3] y)
<float[4,16] w1, float[16,8] w2, float[8,3] w3> {
    true = Constant<value = bool {1}>()
    h = MatMul(x, w1)
    g = MatMul(h, w2)
    z = Loop(count, true, g) <
        body = step (int64 i, bool go, float[N,8] s) => (bool more, float[N,8] t)
        { more = Identity(go) t = Add(s, g) }
    >
    y = MatMul(z, w3)
}
"""
SCAN = """
net (float[6,4] x) => (float[6,3] y)
<float[4,16] w1, float[16,8] w2, float[8,3] w3> {
    h = MatMul(x, w1)
    g = MatMul(h, w2)
    zero = Constant<value = float[8] {0, 0, 0, 0, 0, 0, 0, 0}>()
    last, z = Scan<num_scan_inputs = 1,
        body = step (float[8] s, float[8] row) => (float[8] t, float[8] u)
        { t = Add(s, row) u = Identity(t) }
    >(zero, g)
    y = MatMul(z, w3)
}
"""


@pytest.mark.parametrize(
    ("text", "extra"),
    [(IF, {"flag": np.array(True)}), (LOOP, {"count": np.array(3)}), (SCAN, {})],
    ids=["if", "loop", "scan"],
)
def test_what_subgraphs_use_is_frozen(text: str, extra: dict[str, np.ndarray]) -> None:
    model = network(text)
    result = spa_graph.prune(model, flops=0.7)
    assert set(result.plan.kept) == {"w1", "w2"}
    assert shapes(result.model)["w2"][1] == 8
    feeds = random_feeds(model) | extra
    assert_same_outputs(result.model, changed_by(model, result.plan, zero), feeds)


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 18, 21, 23, onnx.defs.onnx_opset_version()])
def test_opsets(opset: int) -> None:
    model = network(CHAIN, opset=opset)
    try:
        pruned = assert_pruned(model, spa_graph.prune(model, flops=0.5))
    except spa_graph.ModelError as error:
        if opset <= 24 or "ONNX Runtime" not in str(error):
            raise
        pytest.skip(f"ONNX Runtime knows no opset {opset} yet")
    assert [(o.domain, o.version) for o in pruned.opset_import] == [("", opset)]
    assert pruned.ir_version == model.ir_version


@pytest.mark.parametrize("opset", [10, 17])
def test_the_default_domain_by_its_name(opset: int) -> None:
    """`ai.onnx` is the default domain, in a network that is masked by running it compactly."""
    text = """
    net (float[N,4] x) => (float[N,3] y)
    <float[4,16] w1, float[8,3] w2, int64[1] one = {1}, int64[1] end = {99}, int64[1] two = {2}> {
        h = MatMul(x, w1)
        e = Exp(h)
        r = Reciprocal(e)
        s = Slice(r, one, end, one, two)
        y = MatMul(s, w2)
    }
    """
    model = network(text, opset=opset)
    want = spa_graph.prune(model, ratio=0.5)
    model.opset_import[0].domain = "ai.onnx"
    result = spa_graph.prune(model, ratio=0.5)
    assert [(o.domain, o.version) for o in result.model.opset_import] == [("ai.onnx", opset)]
    assert result.plan.to_json() == want.plan.to_json()
    assert shapes(result.model)["w2"] == (4, 3)


def test_half_precision() -> None:
    model = network(CHAIN.replace("float[", "float16["))
    result = spa_graph.prune(model, flops=0.5)
    assert {array.dtype for array in stored(result.model).values()} == {np.dtype(np.float16)}
    masked = changed_by(model, result.plan, zero)
    assert_same_outputs(result.model, masked, random_feeds(model), rtol=2e-2, atol=2e-2)


def test_double_precision() -> None:
    model = network(MLP.replace("float[", "double["))
    pruned = assert_pruned(model, spa_graph.prune(model, flops=0.5))
    assert {array.dtype for array in stored(pruned).values()} == {np.dtype(np.float64)}


MADE = """
net (float[N,4] x) => (float[N,3] y) <float[16,3] w3> {
    s1 = Constant<value_ints = [4, 16]>()
    s2 = Constant<value_ints = [16]>()
    w1 = ConstantOfShape<value = float[1] {0.5}>(s1)
    b1 = ConstantOfShape<value = float[1] {0.25}>(s2)
    w2 = ConstantOfShape<value = float[1] {2.0}>(s2)
    h = Gemm(x, w1, b1)
    r = Relu(h)
    m = Mul(r, w2)
    y = MatMul(m, w3)
}
"""


def test_weights_that_are_made_from_a_stored_shape() -> None:
    """They are pruned like others and stay as small as they are in the file."""
    model = network(MADE)
    result = spa_graph.prune(model, ratio=0.5)
    assert set(result.plan.kept) == {"w1", "b1", "w2", "w3"}
    assert shapes(result.model)["w3"] == (8, 3)
    assert [n.op_type for n in result.model.graph.node].count("ConstantOfShape") == 3
    floats = {name for name, array in stored(result.model).items() if array.dtype.kind == "f"}
    assert floats == {"w3"}
    assert result.report["before"]["params"] == 4 * 16 + 16 + 16 + 16 * 3
    kept = result.plan.kept["w3"][0]
    masked = network(MADE)
    weights = stored(masked)["w3"].copy()
    weights[np.setdiff1d(np.arange(16), kept)] = 0
    masked.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "w3"))
    assert_same_outputs(result.model, masked, random_feeds(model))


def test_a_made_weight_whose_uses_are_pruned_differently() -> None:
    text = """
    net (float[N,16] x) => (float[N,16] y) <float[16,16] w1, float[16,16] w2, int64[1] s = {16}> {
        b = ConstantOfShape<value = float[1] {0.5}>(s)
        h = Gemm(x, w1, b)
        r = Relu(h)
        y = Gemm(r, w2, b)
    }
    """
    model = network(text)
    pruned = spa_graph.prune(model, ratio=0.5).model
    makers = [node for node in pruned.graph.node if node.op_type == "ConstantOfShape"]
    sizes = [stored(pruned)[node.input[0]].tolist() for node in makers]
    assert sorted(sizes) == [[8], [16]]
    biases = [node.input[2] for node in pruned.graph.node if node.op_type == "Gemm"]
    assert sorted(biases) == sorted(node.output[0] for node in makers)
    assert "b" in biases


SHUFFLED = """
net (float[1,4,5,5] x) => (float[1,6,5,5] y)
<float[32,4,1,1] w0, float[32,8,1,1] w1, float[32,8,1,1] w2, float[6,32,1,1] w3,
 int64[5] cut = {1, 4, 8, 5, 5}, int64[4] whole = {1, 32, 5, 5}> {
    h = Conv(x, w0)
    a = Conv<group = 4>(h, w1)
    r = Relu(a)
    c = Reshape(r, cut)
    t = Transpose<perm = [0, 2, 1, 3, 4]>(c)
    s = Reshape(t, whole)
    b = Conv<group = 4>(s, w2)
    y = Conv(b, w3)
}
"""


def test_groups_that_a_shuffle_ties_together_are_pruned_within() -> None:
    """Each group of the second convolution reads two channels of each group of the first."""
    model = network(SHUFFLED)
    assert [group.size for group in spa_graph.analyze(model).groups] == [8, 2, 8]
    pruned = assert_pruned(model, spa_graph.prune(model, ratio=0.5))
    assert shapes(pruned)["w1"] == shapes(pruned)["w2"] == (16, 4, 1, 1)


def test_files_of_version_3_get_no_initializer_that_is_no_input() -> None:
    model = network(SHUFFLED, opset=9)
    for tensor in model.graph.initializer:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        model.graph.input.append(value)
    model.ir_version = 3
    pruned = assert_pruned(model, spa_graph.prune(model, ratio=0.5))
    assert pruned.ir_version == 3
    assert {v.name for v in pruned.graph.input} == {v.name for v in model.graph.input}
