"""Measuring networks next to each other: the statistics, the profile, the command."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import spa_graph
from spa_graph.errors import OptionError
from spa_graph.runtime.benchmark import Timing, interleaved, operator_times, ratio_interval
from spa_graph.runtime.benchmark.memory import peak_memory
from spa_graph.runtime.benchmark.profile import _per_operator, by_type
from spa_graph.runtime.providers import CPU, own_options, provider_named
from tests.conftest import Command, assert_refused
from tests.models import CHAIN, network, random_feeds

LOOP = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 4] x) => (float[1, 4] y) {
    n = Constant <value_int = 7> ()
    go = Constant <value = bool {1}> ()
    y = Loop (n, go, x) <body = body (int64 i, bool c, float[1, 4] s) => (bool d, float[1, 4] t) {
        d = Identity (c)
        t = Tanh (s)
    }>
}
"""
DYNAMIC = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[batch, sequence, 8] x) => (float[batch, sequence, 8] y) { y = Relu (x) }
"""


@pytest.fixture
def halved(chain: Path) -> Path:
    path = chain.with_name("half.onnx")
    spa_graph.prune(chain, flops=0.5, output=path)
    return path


def test_functions_run_in_turn_and_every_second_round_backwards() -> None:
    calls: list[str] = []
    timings = interleaved([lambda: calls.append("a"), lambda: calls.append("b")], seconds=0, most=6)
    assert [len(timing.ms) for timing in timings] == [5, 5]
    assert "".join(calls) == "ab" + "abbaabbaab"


def test_a_median_its_quartiles_and_the_ratios_interval() -> None:
    generator = np.random.default_rng(1)
    drift = np.linspace(1, 3, 400)  # the machine slows down for both
    before = Timing(drift * generator.normal(10, 0.5, 400))
    after = Timing(drift * generator.normal(5, 0.25, 400))
    assert before.quartiles[0] < before.median < before.quartiles[1]
    low, high = ratio_interval(before, after)
    assert low < after.median / before.median < high
    assert 0.45 < low < 0.5 < high < 0.55
    assert ratio_interval(before, before) == (1.0, 1.0)


def test_the_profile_sums_over_the_runs_of_a_loop(tmp_path: Path) -> None:
    path = tmp_path / "loop.onnx"
    onnx.save(onnx.parser.parse_model(LOOP), path)
    times = operator_times(path, {"x": np.ones((1, 4), np.float32)}, seconds=0)
    kinds = by_type(times)
    assert {"Tanh", "Loop"} <= set(kinds)
    assert 0 < kinds["Tanh"] < kinds["Loop"]
    assert all(first >= second for first, second in pairwise(kinds.values()))


def test_a_part_that_a_provider_compiles_has_a_type_without_its_number_and_no_sizes() -> None:
    def event(name: str, kind: str, provider: str) -> dict[str, Any]:
        told = {"op_name": kind, "provider": provider, "input_type_shape": [{"float": [1, 3]}]}
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": 500, "args": told}

    compiled = event("OpenVINO_0", "OpenVINO-EP-subgraph_3", "OpenVINOExecutionProvider")
    own = event("mine", "MyOperator_3", CPU)
    found = _per_operator([compiled, own] * 3, 3)
    assert [(node.type, node.ms, node.inputs) for node in found] == [
        ("OpenVINO-EP-subgraph", 0.5, ()),
        ("MyOperator_3", 0.5, ((1, 3),)),
    ]


def test_peak_memory_grows_with_the_weights(tmp_path: Path) -> None:
    def saved(name: str, size: int) -> Path:
        weight = onnx.numpy_helper.from_array(np.ones((size, size), np.float32), "w")
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, size])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, size])],
            [weight],
        )
        opset = [onnx.helper.make_opsetid("", 17)]
        path = tmp_path / name
        onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
        return path

    peaks = [
        peak_memory(saved(f"{size}.onnx", size), {"x": np.ones((1, size), np.float32)})
        for size in (16, 3000)
    ]
    if peaks[0] is None:
        pytest.skip("peak memory is measured on Linux only")
    assert peaks[1] - peaks[0] > 0.9 * 3000 * 3000 * 4


def test_bench_compares_two_networks(process: Command, chain: Path, halved: Path) -> None:
    ran = process("bench", chain.name, halved.name, "--seconds", 0.3, "--threads", 1, "--json")
    assert ran.code == 0, ran.err
    data = json.loads(ran.out)
    assert (data["provider"], data["threads"], data["batch"]) == (CPU, 1, 1)
    assert [model["file"] for model in data["models"]] == [chain.name, halved.name]
    for model, path in zip(data["models"], (chain, halved), strict=True):
        low, high = model["quartiles_ms"]
        assert 0 < low <= model["median_ms"] <= high
        assert model["throughput"] == pytest.approx(1e3 / model["median_ms"])
        assert model["bytes"] == path.stat().st_size
        assert {"Conv"} <= set(model["operator_types"])
        assert sum(each["ms"] for each in model["operators"]) == pytest.approx(
            sum(model["operator_types"].values())
        )
    ratio = data["ratios"][0]
    assert ratio["median"] == data["models"][1]["median_ms"] / data["models"][0]["median_ms"]
    assert ratio["interval"][0] <= ratio["median"] <= ratio["interval"][1]
    assert data["runs"] >= 5
    assert {"onnxruntime", "python"} <= set(data["versions"])
    assert data["machine"]["cores"] >= 1


def test_bench_as_tables(process: Command, chain: Path, halved: Path) -> None:
    ran = process("bench", chain.name, halved.name, "--seconds", 0.2)
    assert ran.code == 0, ran.err
    for text in ("median", "middle half", "peak memory", "time / first (95%)", "half.onnx", "Conv"):
        assert text in ran.out, text
    assert [line.removesuffix(" ...") for line in ran.err.splitlines()] == [
        "load", "measure", "memory", "profile",
    ]  # fmt: skip
    quiet = process("bench", chain.name, "--seconds", 0.1, "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_sizes_of_dynamic_axes(process: Command, tmp_path: Path) -> None:
    path = tmp_path / "dynamic.onnx"
    onnx.save(onnx.parser.parse_model(DYNAMIC), path)
    options = ("--batch", 3, "--dynamic", "sequence=5", "--seconds", 0.05, "--json")
    ran = process("bench", path, *options)
    assert ran.code == 0, ran.err
    data = json.loads(ran.out)
    assert data["inputs"] == {"x": [3, 5, 8]}
    assert data["batch"] == 3
    first = data["models"][0]
    assert first["throughput"] == pytest.approx(3e3 / first["median_ms"])


PROVIDERS = ("cuda", "tensorrt", "directml", "coreml", "openvino")


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("command", [("bench", "chain.onnx"), ("chain.onnx", "--latency", 0.5)])
def test_a_provider_that_is_not_there_is_one_clear_line(
    command: tuple[object, ...], provider: str, process: Command, chain: Path
) -> None:
    try:
        provider_named(provider)
    except OptionError:
        says = "has no such provider, only"
        assert_refused(process, chain.parent, *command, "--provider", provider, says=says)
    else:
        pytest.skip(f"the installed onnxruntime has {provider}")


def test_openvino_measures_what_it_compiles(process: Command, chain: Path, halved: Path) -> None:
    """One node is all that OpenVINO tells of a network."""
    try:
        provider = provider_named("openvino")
    except OptionError as error:
        pytest.skip(str(error))
    ran = process(
        "bench", chain.name, halved.name, "--provider", "openvino", "--seconds", 0.2, "--json"
    )
    assert ran.code == 0, ran.err
    data = json.loads(ran.out)
    assert data["provider"] == provider
    assert [set(model["operator_types"]) for model in data["models"]] == [
        {"OpenVINO-EP-subgraph"},
        {"OpenVINO-EP-subgraph"},
    ]
    ran = process("chain.onnx", "--latency", 0.9, "--provider", "openvino", "--dry-run", "--json")
    if ran.code == 2:  # a machine on which no smaller network is a tenth faster
        assert "latency 0.9 can't be reached: the fastest network" in ran.err
        return
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["latency_budget"]["provider"] == provider


def test_threads_are_those_of_the_provider_too() -> None:
    assert own_options("OpenVINOExecutionProvider", 3) == {"num_of_threads": "3"}
    assert own_options(CPU, 3) == {}


def test_a_provider_by_its_short_name() -> None:
    assert provider_named("cpu") == provider_named(CPU) == CPU
    with pytest.raises(OptionError, match=r"--provider qnn: the installed onnxruntime .* only"):
        provider_named("qnn")


def test_what_bench_refuses(command: Command, chain: Path) -> None:
    folder = chain.parent
    onnx.save(onnx.parser.parse_model(DYNAMIC), folder / "dynamic.onnx")
    dynamic, fixed = folder / "dynamic.onnx", folder / "fixed.onnx"
    onnx.save(onnx.parser.parse_model(DYNAMIC.replace("batch, sequence", "1, 4")), fixed)
    other = folder / "other.onnx"
    onnx.save(onnx.parser.parse_model(DYNAMIC.replace("batch, sequence", "1, 6")), other)
    for arguments, says in (
        ((chain, dynamic), "takes other inputs than chain.onnx"),
        ((fixed, other), "other.onnx takes other inputs than fixed.onnx"),
        ((dynamic, other), "[1, 6, 8] instead of `x` float32[?, ?, 8]"),
        ((fixed, "--batch", 2), "has a fixed batch"),
        ((dynamic, "--dynamic", "length=2"), "named: batch, sequence"),
        ((dynamic, "--dynamic", "batch=4", "--batch", 8), "--batch 8: --dynamic makes it 4"),
        ((dynamic, "--dynamic", "sequence=0"), "a size is a whole number from 1 on"),
        ((dynamic, "--provider", "qnn"), "has no such provider"),
        ((folder / "none.onnx",), "none.onnx"),
        ((), "Missing argument"),
    ):
        assert_refused(command, folder, "bench", *arguments, says=says)


def test_random_feeds_of_the_chain_still_fit(chain: Path) -> None:
    times = operator_times(chain, random_feeds(network(CHAIN)), seconds=0)
    assert [each.type for each in times if each.type == "Conv"] == ["Conv", "Conv"]
