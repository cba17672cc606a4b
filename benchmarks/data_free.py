"""How well made-up calibration samples stand in for real ones, on the trained networks.

    benchmarks/setup_trained.sh .venv-trained
    .venv-trained/bin/python benchmarks/data_free.py FOLDER [NAME...]

Half of the input channels of a layer are removed at random and rebuilt from the others by ridge
regression, fitted on the samples at hand and judged on real ones that no fit has seen. The number
is the share of the removed channels' energy that is left unexplained, averaged over channels
chosen thrice and over layers: 0 is perfect, 1 is as good as not rebuilding, above 1 it hurts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from spa_graph import analyze
from spa_graph.frontends.onnx import files
from spa_graph.graph import Graph
from spa_graph.models_zoo.trained import NETWORKS, Trained
from spa_graph.runtime.calibration import Calibration, Prober, calibration

SAMPLES = 32
LAYERS = 12
"""As many layers are judged, spread over the network's depth."""
ROWS = 1000
"""As many positions of a batch count; more don't change a Gram matrix much."""
DAMPING = 1e-3
METHODS = ("data-free", "data-free:gaussian", "data-free:uniform")

Array = np.ndarray[Any, Any]
Layer = tuple[str, int]


def layers(graph: Graph) -> list[Layer]:
    """Inputs of layers with weights, with their channel axis."""
    found = dict.fromkeys(
        (op.inputs[0], 1 if op.op_type == "Conv" else -1)
        for op in graph.operators
        if op.op_type in ("Conv", "MatMul", "Gemm")
        and op.inputs[1] in graph.parameters
        and op.inputs[0] not in (*graph.parameters, *graph.inputs)
    )
    chosen = np.linspace(0, len(found) - 1, min(LAYERS, len(found))).astype(int)
    return [list(found)[i] for i in chosen]


def grams(found: list[Layer], batches: Iterable[Any], probe: Prober) -> list[Array]:
    """For each layer the second moments of its channels and a constant 1."""
    sums: list[Any] = [0.0] * len(found)
    for feeds in batches:
        values = probe(feeds, [name for name, _ in found])
        for number, ((_, axis), value) in enumerate(zip(found, values, strict=True)):
            rows = np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])
            chosen = np.random.default_rng(0).permutation(len(rows))[:ROWS]
            rows = np.column_stack([rows[chosen], np.ones(len(chosen))]).astype(np.float64)
            sums[number] = sums[number] + rows.T @ rows
    return [total / total[-1, -1] for total in sums]


def unexplained(fitted: Array, judged: Array) -> float:
    """The share of removed channels' energy that is left; both (channels + 1, channels + 1)."""
    rng, channels, shares = np.random.default_rng(0), len(judged) - 1, []
    for _ in range(3):
        order = rng.permutation(channels)
        kept, gone = np.append(order[: channels // 2], channels), order[channels // 2 :]
        own = fitted[np.ix_(kept, kept)]
        damping = DAMPING * np.trace(own) / len(kept) * np.eye(len(kept))
        rebuild = np.linalg.solve(own + damping, fitted[np.ix_(kept, gone)]).T
        energy = np.trace(judged[np.ix_(gone, gone)])
        shared = (rebuild * judged[np.ix_(gone, kept)]).sum()
        left = energy - 2 * shared + ((rebuild @ judged[np.ix_(kept, kept)]) * rebuild).sum()
        shares.append(left / max(energy, 1e-30))
    return float(np.mean(shares))


def real(network: Trained, seed: int, graph: Graph) -> Calibration:
    """Real samples; of sequences only what is no padding."""
    arrays = network.inputs(2 * SAMPLES, seed)
    if "mask" in arrays:
        length = 20
        long = arrays["mask"].sum(1) >= length
        arrays = {name: array[long, :length] for name, array in arrays.items()}
    return calibration(arrays, graph, samples=SAMPLES)


def judge(network: Trained, folder: Path) -> Iterator[tuple[str, float, float]]:
    """For each kind of samples what they are, what they leave unexplained, and seconds to make."""
    analysis = analyze(network.fetch(folder), input_shapes=network.input_shapes)
    graph = analysis.graph
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "network.onnx"
        files.write(analysis.model, path)
        probe = Prober(lambda also: files.openable(path, also), graph.outputs)
        found = layers(graph)
        truth = grams(found, real(network, 1, graph), probe)
        made = [("real", real(network, 2, graph), 0.0)]
        for method in METHODS:
            start = time.perf_counter()
            batches = calibration(method, graph, samples=SAMPLES, model=analysis.model, probe=probe)
            made.append((batches.source, batches, time.perf_counter() - start))
        for source, batches, seconds in made:
            pairs = zip(grams(found, batches, probe), truth, strict=True)
            yield source, float(np.mean([min(unexplained(*pair), 10) for pair in pairs])), seconds


def main() -> None:
    """Print one block per network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(NETWORKS))
    arguments = parser.parse_args()
    for name in arguments.names or NETWORKS:
        print(name)
        for source, left, seconds in judge(NETWORKS[name], arguments.folder):
            print(f"  {left:6.3f}  {seconds:5.1f} s  {source}", flush=True)


if __name__ == "__main__":
    main()
