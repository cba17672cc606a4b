"""What other frameworks export, pruned by the plain command.

The files beside this one were written by `benchmarks/frameworks/export_*.py --small`: narrow
networks with seeded random weights (scikit-learn's are trained on its digits).
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

import spa_graph
from spa_graph.runtime.sessions import open_session
from tests.conftest import Command
from tests.models import Array, assert_pruned, optimized, outputs, random_feeds

FOLDER = Path(__file__).parent
FIXTURES = sorted(path.stem for path in FOLDER.glob("*.onnx"))
HALF = 0.5


def interface(model: onnx.ModelProto) -> tuple[list[bytes], list[bytes], dict[str, int]]:
    """Inputs and outputs byte for byte, and opsets; MXNet lists weights as inputs, too."""
    graph, weights = model.graph, {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    first, second = ([each.SerializeToString() for each in part] for part in (inputs, graph.output))
    return first, second, {each.domain: each.version for each in model.opset_import}


def feeds_of(model: onnx.ModelProto) -> dict[str, Array]:
    feeds = random_feeds(model, dynamic=64)
    return {name: abs(x) % 5 if x.dtype.kind == "i" else x for name, x in feeds.items()}


@pytest.mark.parametrize("name", FIXTURES)
def test_the_plain_command(name: str, tmp_path: Path, command: Command) -> None:
    """Half of the FLOPs, proven by the run itself, with the interface of the file that came in."""
    source, target = FOLDER / f"{name}.onnx", tmp_path / "small.onnx"
    options = ["--latency-seconds", 0, "-o", target, "--json"]
    ran = command("prune", source, "--flops", HALF, *options)
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert 0.4 < report["ratio"]["flops"] <= HALF
    assert report["verification"]["error"] <= report["verification"]["tolerated"]
    before, after = onnx.load(source), onnx.load(target)
    onnx.checker.check_model(after)
    open_session(target)  # with all optimisations, which look at the shapes that the file states
    assert interface(after) == interface(before)
    run = [optimized(path, tmp_path).count("Transpose") for path in (target, source)]
    assert run[0] <= run[1]
    assert report["ratio"]["params"] < 1
    feeds = feeds_of(before)
    if not any(isinstance(value, list) for value in before.graph.output):
        for got, want in zip(outputs(after, feeds), outputs(before, feeds), strict=True):
            assert (got.shape, got.dtype) == (want.shape, want.dtype)


@pytest.mark.parametrize("name", ["keras-resnet50v2", "flax-resnet18", "paddle-resnet18",
                                  "mxnet-resnet18", "sklearn-regressor"])  # fmt: skip
def test_equals_the_network_with_zeroed_channels(name: str) -> None:
    """The same proof, by code that knows nothing of spa_graph."""
    model = onnx.load(FOLDER / f"{name}.onnx")
    result = spa_graph.prune(model, flops=HALF, exact=True, verify=False)
    assert_pruned(model, result)


def test_maps_stay_outputs() -> None:
    """scikit-learn's classifiers give class -> probability, a type that onnx_ir doesn't have."""
    model = onnx.load(FOLDER / "sklearn-mlp-zipmap.onnx")
    before = model.SerializeToString()
    pruned = spa_graph.prune(model, flops=HALF).model
    assert model.SerializeToString() == before
    kind = next(v.type for v in pruned.graph.output if v.name == "output_probability")
    assert kind.sequence_type.elem_type.map_type.key_type == onnx.TensorProto.INT64
