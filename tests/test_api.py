"""The library: every form of a model, what stays the same, and what a network may look like."""

from __future__ import annotations

import json
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
    CHAIN,
    MLP,
    RESIDUAL,
    assert_pruned,
    assert_same_outputs,
    changed_by,
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


def test_a_report_is_json_whatever_was_given() -> None:
    """Of arrays it tells only that they are some."""
    samples = {"x": np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)}
    result = spa_graph.prune(network(CHAIN), flops=0.6, calibrate=samples, exclude=("w3",))
    options = json.loads(json.dumps(result.report))["options"]
    assert options["calibrate"] == "a dict"
    assert options["exclude"] == ["w3"]
    assert options["flops"] == 0.6


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


def test_sizes_that_are_given_come_before_names_of_axes() -> None:
    """Paddle calls all free axes `?`."""
    model, shapes = network(CHAIN.replace("8,8]", "s,s]", 1)), {"x": (1, 3, 4, 12)}
    assert spa_graph.analyze(model, input_shapes=shapes).graph.samples[0] == shapes
    square = spa_graph.analyze(model).graph.samples[0]["x"]
    assert square[2] == square[3]


def test_sizes_that_contradict_each_other_are_refused() -> None:
    two = network("n (float[N,s] a, float[N,s] b) => (float[N,s] y) { y = Add(a, b) }")
    with pytest.raises(
        spa_graph.ModelError, match="names `s` are equally long, --input-shape gives 4 and 12"
    ):
        spa_graph.analyze(two, input_shapes={"a": (1, 4), "b": (1, 12)})


def test_the_outputs_state_what_they_stated() -> None:
    """PaddlePaddle writes -1 for a free size, and others state what isn't so."""
    for stated in (-1, 7):
        model = network(CHAIN)
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = stated
        after = spa_graph.prune(model, ratio=0.5).model
        assert after.graph.output[0].type.tensor_type.shape.dim[0].dim_value == stated


def test_shapes_that_the_file_states_follow() -> None:
    model = onnx.shape_inference.infer_shapes(network(CHAIN))
    result = spa_graph.prune(model, flops=0.5)
    pruned = assert_pruned(model, result)
    onnx.checker.check_model(pruned, full_check=True)
    values = {v.name: v.type.tensor_type.shape.dim for v in pruned.graph.value_info}
    stated = {name: values[name][1].dim_value for name in ("a", "ra", "b", "p", "f")}
    assert stated["a"] == stated["ra"] == shapes(pruned)["w1"][0]
    assert stated["b"] == stated["p"] == stated["f"] == shapes(pruned)["w2"][0]


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
