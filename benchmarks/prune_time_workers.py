"""What `prune_time.py` measures, each in a process of its own: one function per measurement.

    python benchmarks/prune_time_workers.py NAME ARGUMENT...

prints one line of JSON. Times are seconds; imports and the making of inputs are not timed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Slices = dict[int, NDArray[np.int64]]
Found = dict[str, Any]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the work returned."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


# --- analysis --------------------------------------------------------------------------------


def analysis(path: str) -> Found:
    """Read with shape inference once; rules and solve 15 times."""
    from spa_graph.coupling.analysis import analyze
    from spa_graph.frontends.onnx import files
    from spa_graph.passes.canonicalize import canonicalize

    load, model = timed(lambda: files.load(path))
    read, (graph, _) = timed(lambda: canonicalize(model, {}))
    runs = [timed(lambda: analyze(graph)) for _ in range(15)]
    seconds = [run[0] for run in runs]
    coupling = runs[0][1]
    return {
        "read": load + read,
        "first": seconds[0],
        "analyze": min(seconds),
        "groups": len(coupling.groups),
        "channels": coupling.count,
        "operators": len(graph.operators),
    }


def torch_pruning(name: str, size: str) -> Found:
    """The same network in Torch-Pruning: build the dependency graph, list all groups."""
    import warnings

    import torch
    import torch_pruning as tp

    from spa_graph.models_zoo.architectures import ARCHITECTURES

    warnings.simplefilter("ignore")
    module, inputs, _ = ARCHITECTURES[name].build(int(size))
    inputs = tuple(x[:1] for x in inputs)

    def once() -> int:
        graph = tp.DependencyGraph().build_dependency(module, inputs)
        return len(list(graph.get_all_groups()))

    def forward() -> None:
        with torch.no_grad():
            module(*inputs)

    runs = [timed(once)]
    print(json.dumps({"first": runs[0][0], "groups": runs[0][1]}), flush=True)
    start = time.perf_counter()
    while len(runs) < 15 and time.perf_counter() - start < 30:
        runs.append(timed(once))
    seconds = [run[0] for run in runs]
    passes = [timed(forward)[0] for _ in range(len(runs))]
    return {
        "first": seconds[0],
        "analyze": min(seconds),
        "groups": runs[0][1],
        "forward": min(passes),
    }


def export(name: str, exporter: str, size: str, folder: str) -> Found:
    """Export a network of the zoo, unless that was done before."""
    from spa_graph.models_zoo import architectures

    options = {"exporter": exporter, "size": int(size)}
    return {"path": str(architectures.export(name, folder, **options))}


# --- whole runs ------------------------------------------------------------------------------


def prune(path: str, output: str, verify: str) -> Found:
    """The whole of `spa_graph.prune`."""
    import onnxruntime  # noqa: F401

    import spa_graph

    def work() -> spa_graph.Result:
        return spa_graph.prune(path, flops=0.5, output=output, verify=verify == "verify")

    seconds, result = timed(work)
    return {"seconds": seconds, "steps": result.report["seconds"]}


def copy(path: str, output: str) -> Found:
    """`onnx.load` and `onnx.save`."""
    import onnx

    return {"seconds": timed(lambda: onnx.save(onnx.load(path), output))[0]}


# --- load, halve every convolution, save -----------------------------------------------------


def _half(size: int) -> NDArray[np.int64]:
    return np.arange(0, size, 2)


def _slices(shape: list[int], first: bool) -> Slices:
    """Every other output channel; every other input channel but in the first convolution."""
    return {0: _half(shape[0])} | ({} if first else {1: _half(shape[1])})


def _sliced(weights: NDArray[Any], slices: Slices) -> NDArray[Any]:
    for axis, index in slices.items():
        weights = np.take(weights, index, axis)
    return weights


def halve_spa_graph(path: str, output: str) -> Found:
    """`spa_graph.frontends.onnx`."""
    from spa_graph.frontends.onnx import files
    from spa_graph.frontends.onnx.weights import sliced, store_tensor

    def work() -> None:
        model = files.load(path)
        first = True
        for node in model.graph:
            if node.op_type == "Conv":
                value = node.inputs[1]
                tensor = value.const_value
                store_tensor(value, sliced(tensor, _slices(tensor.shape.numpy(), first)))
                first = False
        files.save(model, output)

    return {"seconds": timed(work)[0]}


def halve_onnx_ir(path: str, output: str) -> Found:
    """onnx-ir alone: `load`, lazy tensors, `save`."""
    import onnx_ir as ir

    def lazy(tensor: ir.TensorProtocol, slices: Slices) -> ir.LazyTensor:
        shape = [len(slices.get(i, range(n))) for i, n in enumerate(tensor.shape.numpy())]
        return ir.LazyTensor(
            lambda: ir.Tensor(_sliced(tensor.numpy(), slices)),
            tensor.dtype, ir.Shape(shape), name=tensor.name,
        )  # fmt: skip

    def work() -> None:
        model = ir.load(path)
        first = True
        for node in model.graph:
            if node.op_type == "Conv":
                value = node.inputs[1]
                value.const_value = lazy(
                    value.const_value, _slices(value.const_value.shape.numpy(), first)
                )
                value.shape = ir.Shape(value.const_value.shape)
                first = False
        ir.save(model, output, external_data=_storage(path, output).get("location"))

    return {"seconds": timed(work)[0]}


def halve_onnx(path: str, output: str) -> Found:
    """onnx alone: `load`, numpy, `save`."""
    import onnx

    def work() -> None:
        model = onnx.load(path)
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        first = True
        for node in model.graph.node:
            if node.op_type == "Conv":
                tensor = stored[node.input[1]]
                weights = _sliced(onnx.numpy_helper.to_array(tensor), _slices(tensor.dims, first))
                tensor.CopyFrom(onnx.numpy_helper.from_array(weights, tensor.name))
                first = False
        onnx.save(model, output, **_storage(path, output))

    return {"seconds": timed(work)[0]}


def halve_graphsurgeon(path: str, output: str) -> Found:
    """onnx-graphsurgeon: `import_onnx`, numpy, `export_onnx`."""
    import onnx
    import onnx_graphsurgeon as gs

    def work() -> None:
        graph = gs.import_onnx(onnx.load(path))
        first = True
        for node in graph.nodes:
            if node.op == "Conv":
                weights = node.inputs[1].values
                node.inputs[1].values = _sliced(weights, _slices(weights.shape, first))
                first = False
        onnx.save(gs.export_onnx(graph), output, **_storage(path, output))

    return {"seconds": timed(work)[0]}


def _storage(path: str, output: str) -> dict[str, Any]:
    """External data for what came with external data."""
    if not Path(f"{path}.data").exists():
        return {}
    return {"save_as_external_data": True, "location": f"{Path(output).name}.data"}


WORKERS: dict[str, Callable[..., Found]] = {
    work.__name__: work
    for work in (
        analysis, torch_pruning, export, prune, copy,
        halve_spa_graph, halve_onnx_ir, halve_onnx, halve_graphsurgeon,
    )
}  # fmt: skip

if __name__ == "__main__":
    print(json.dumps(WORKERS[sys.argv[1]](*sys.argv[2:])), flush=True)
