"""The library: every form of a model, what stays the same, and what a network may look like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnx_ir as ir
import pytest

import spa_graph
from tests.models import (
    BIG,
    CHAIN,
    MLP,
    RESIDUAL,
    assert_same_outputs,
    changed_by,
    external_model,
    groups_of,
    network,
    random_feeds,
    shapes,
    stored,
    zero,
)


def test_the_public_names() -> None:
    """A golden list: additions and removals are decisions."""
    assert sorted(spa_graph.__all__) == [
        "BudgetError",
        "ChannelGroup",
        "ModelError",
        "OptionError",
        "Plan",
        "Result",
        "RewriteError",
        "SpaError",
        "VerificationError",
        "analyze",
        "apply_plan",
        "prune",
    ]
    errors = [getattr(spa_graph, name) for name in spa_graph.__all__ if name.endswith("Error")]
    assert all(issubclass(error, spa_graph.SpaError) for error in errors)


def assert_pruned(
    model: onnx.ModelProto, result: spa_graph.Result, *, dynamic: int = 2
) -> onnx.ModelProto:
    """The result is smaller, and computes what the original does with its channels set to zero."""
    pruned = result.model
    assert isinstance(pruned, onnx.ModelProto)
    onnx.checker.check_model(pruned)
    assert result.report["ratio"]["channels"] < 1
    masked = changed_by(model, result.plan, zero)
    assert_same_outputs(pruned, masked, random_feeds(model, dynamic=dynamic))
    return pruned


# --- forms ---------------------------------------------------------------------------------------


def test_a_message_comes_back_as_a_message() -> None:
    model = network(CHAIN)
    before = model.SerializeToString()
    assert_pruned(model, spa_graph.prune(model, flops=0.5))
    assert model.SerializeToString() == before


def test_a_path_comes_back_as_a_model(chain: Path) -> None:
    before = chain.read_bytes()
    for path in (chain, str(chain)):
        result = spa_graph.prune(path, flops=0.5)
        assert isinstance(result.model, ir.Model)
        assert_same_outputs(
            ir.to_proto(result.model),
            changed_by(onnx.load(chain), result.plan, zero),
            random_feeds(network(CHAIN)),
        )
    assert chain.read_bytes() == before
    assert list(chain.parent.iterdir()) == [chain]


def test_an_ir_model_comes_back_as_one() -> None:
    model = ir.from_proto(network(CHAIN))
    before = ir.to_proto(model).SerializeToString()
    result = spa_graph.prune(model, flops=0.5)
    assert isinstance(result.model, ir.Model)
    assert result.model is not model
    assert ir.to_proto(model).SerializeToString() == before
    assert_same_outputs(
        ir.to_proto(result.model),
        changed_by(network(CHAIN), result.plan, zero),
        random_feeds(network(CHAIN)),
    )


def test_a_surgeon_graph_comes_back_as_one() -> None:
    graph = gs.import_onnx(network(CHAIN))
    before = gs.export_onnx(graph).SerializeToString()
    result = spa_graph.prune(graph, flops=0.5)
    assert isinstance(result.model, gs.Graph)
    assert gs.export_onnx(graph).SerializeToString() == before
    assert_same_outputs(
        gs.export_onnx(result.model),
        changed_by(network(CHAIN), result.plan, zero),
        random_feeds(network(CHAIN)),
    )


def test_every_form_gives_the_same_plan(chain: Path) -> None:
    model = network(CHAIN)
    forms: list[Any] = [chain, model, ir.from_proto(model), gs.import_onnx(model)]
    plans = [spa_graph.prune(form, flops=0.5).plan.to_json()["kept"] for form in forms]
    assert plans == [plans[0]] * len(forms)


def test_the_written_file_is_the_returned_model(chain: Path) -> None:
    out = chain.with_name("out.onnx")
    result = spa_graph.prune(chain, flops=0.5, output=out)
    written = stored(onnx.load(out))
    returned = stored(ir.to_proto(result.model))
    assert written.keys() == returned.keys()
    assert all(np.array_equal(written[name], returned[name]) for name in written)
    assert sorted(path.name for path in chain.parent.iterdir()) == ["chain.onnx", "out.onnx"]


def test_a_pruned_model_can_be_pruned_again() -> None:
    model: Any = network(CHAIN)
    for _ in range(3):
        result = spa_graph.prune(model, flops=0.8, round_to=1)
        model = assert_pruned(model, result)
    assert sum(array.size for array in stored(model).values()) < 0.8 * 1500


# --- analyze -------------------------------------------------------------------------------------


def test_analyze_finds_the_groups() -> None:
    analysis = spa_graph.analyze(network(RESIDUAL))
    assert groups_of(analysis) == {
        frozenset({("w0", 0), ("w2", 0), ("w1", 1), ("w3", 0)}),
        frozenset({("w1", 0), ("w2", 1)}),
    }
    assert sorted(group.size for group in analysis.groups) == [6, 8]
    assert all(isinstance(group, spa_graph.ChannelGroup) for group in analysis.groups)
    assert all(group.exact for group in analysis.groups)


def test_analyze_says_what_is_frozen_and_why() -> None:
    reasons = spa_graph.analyze(network(MLP)).coupling.frozen_reasons
    assert reasons == {"w1:0": "is graph input `x`", "w2:1": "is graph output `y`"}


# --- what stays the same -------------------------------------------------------------------------


def test_names_texts_and_metadata_stay() -> None:
    model = network(CHAIN)
    model.producer_name, model.producer_version = "someone", "7"
    model.domain, model.model_version, model.doc_string = "org.example", 42, "a model"
    model.metadata_props.add(key="licence", value="free")
    model.graph.doc_string = "a graph"
    model.graph.node[0].doc_string = "the first"
    model.graph.node[0].metadata_props.add(key="from", value="conv1")
    model.graph.input[0].doc_string = "an image"
    model.graph.output[0].metadata_props.add(key="labels", value="a b c d e")
    pruned = assert_pruned(model, spa_graph.prune(model, flops=0.5))
    for one in (model, pruned):
        del one.graph.initializer[:]
        del one.graph.value_info[:]
        for node in one.graph.node:
            node.domain = ""  # the same as none
    assert pruned.graph.input == model.graph.input
    assert pruned.graph.output == model.graph.output
    assert list(pruned.graph.node) == list(model.graph.node)
    pruned.ClearField("graph")
    model.ClearField("graph")
    assert pruned == model


def test_dynamic_axes_stay_dynamic() -> None:
    text = CHAIN.replace("float[N,3,8,8] x", "float[batch,3,H,W] x").replace("[N,5]", "[batch,5]")
    model = network(text)
    result = spa_graph.prune(model, flops=0.5)
    pruned = assert_pruned(model, result, dynamic=9)
    dims = pruned.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3, "H", "W"]
    for size in (4, 11, 32):
        feeds = random_feeds(model, dynamic=size)
        assert_same_outputs(pruned, changed_by(model, result.plan, zero), feeds)


def test_shapes_that_the_file_states_follow() -> None:
    model = onnx.shape_inference.infer_shapes(network(CHAIN))
    result = spa_graph.prune(model, flops=0.5)
    pruned = assert_pruned(model, result)
    onnx.checker.check_model(pruned, full_check=True)
    values = {v.name: v.type.tensor_type.shape.dim for v in pruned.graph.value_info}
    stated = {name: values[name][1].dim_value for name in ("a", "ra", "b", "p", "f")}
    assert stated["a"] == stated["ra"] == shapes(pruned)["w1"][0]
    assert stated["b"] == stated["p"] == stated["f"] == shapes(pruned)["w2"][0]


# --- what a network may look like ----------------------------------------------------------------


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


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import spa_graph
result = spa_graph.prune(sys.argv[1], flops=0.5, output=sys.argv[2], latency_seconds=0.01)
assert result.report["ratio"]["flops"] <= 0.5
print(sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "onnxscript")))
"""


def test_pruning_onnx_needs_no_torch(chain: Path) -> None:
    line = [sys.executable, "-c", WITHOUT_TORCH, chain, chain.with_name("out.onnx")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['torch']"  # the block itself
