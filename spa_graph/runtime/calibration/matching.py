"""Which scale and kind of images or sounds a network was trained on, from its own statistics.

Made-up inputs are drawn in [0, 1], but one network wants [-1, 1], the next 0..255. Candidates are
run through the network, forward only, and the one whose inner values look most as in training is
taken:

* A BatchNormalization remembers mean m and variance v of each channel in training. With those of
  a candidate, n and w, the distance is the divergence of two normal distributions,
  KL = (log(v / w) + (w + (n - m)^2) / v - 1) / 2, averaged over channels. Comparing inner
  statistics with BatchNorm's is what makes inputs in ZeroQ (Cai et al., CVPR 2020, arXiv
  2001.00281) and DeepInversion (Yin et al., CVPR 2020, arXiv 1912.08795); there by gradients, as
  `data-free:matched` does (`spa_graph/torch/matched.py`).
* Where the BatchNorm was folded into a convolution, what is left of it is that its outputs had
  deviation |gamma|, which stays near 1 in training: the distance is |log deviation|.

Layers count alike, one of huge distance not more than its logarithm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spa_graph.graph import Graph, Operator
from spa_graph.runtime.calibration.wanted import Array
from spa_graph.runtime.inputs import Feeds

Probe = Callable[[Feeds, Sequence[str]], list[Array]]
"""Runs the network and returns the named inner values."""

_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
MOST_LAYERS = 24
"""Statistics of at most so many layers are looked at, spread over the network's depth."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A value within the network and what is known of its channels in training.

    mean, deviation: per channel; None where only its deviation's order is known, to be 1.
    """

    value: str
    axis: int
    mean: Array | None = None
    deviation: Array | None = None

    def distance(self, mean: Array, deviation: Array) -> float:
        """How far the channels' statistics are from those in training."""
        deviation = np.maximum(deviation, 1e-12)
        if self.mean is None or self.deviation is None:
            return float(np.abs(np.log(deviation)).mean())
        shift = (mean - self.mean) ** 2
        ratio = (deviation**2 + shift) / self.deviation**2
        divergence = np.log(self.deviation / deviation) + (ratio - 1) / 2
        return float(np.log1p(divergence.mean()))


def layers(graph: Graph) -> list[Layer]:
    """Where statistics are looked at: BatchNorms' inputs if there are any, else what is folded."""
    found = list(normalised(graph)) or list(_folded(graph))
    if len(found) <= MOST_LAYERS:
        return found
    return [found[i] for i in np.linspace(0, len(found) - 1, MOST_LAYERS).astype(int)]


def distance(found: Sequence[Layer], batches: Iterable[Feeds], probe: Probe) -> float:
    """How far a network's inner statistics on these inputs are from those in training."""
    names = [layer.value for layer in found]
    with np.errstate(all="ignore"):  # a look at a wrong scale may well overflow
        return _distance(found, names, batches, probe)


def _distance(
    found: Sequence[Layer], names: Sequence[str], batches: Iterable[Feeds], probe: Probe
) -> float:
    sums = [np.zeros((3, 1))] * len(found)  # of x, x^2, 1, per channel
    for feeds in batches:
        for number, (layer, value) in enumerate(zip(found, probe(feeds, names), strict=True)):
            rows = np.moveaxis(value, layer.axis, 0).reshape(value.shape[layer.axis], -1)
            rows = rows.astype(np.float64)
            moments = [rows.mean(1), (rows**2).mean(1)]
            sums[number] = sums[number] + np.stack([*moments, np.ones(len(rows))])
    return float(np.mean([_of_moments(*pair) for pair in zip(found, sums, strict=True)]))


def _of_moments(layer: Layer, sums: Array) -> float:
    mean, square = sums[0] / sums[2], sums[1] / sums[2]
    return layer.distance(mean, np.sqrt(np.maximum(square - mean**2, 0)))


def normalised(graph: Graph) -> Iterator[Layer]:
    """Inputs of BatchNormalizations."""
    for operator in graph.operators:
        statistics = operator.inputs[3:5]
        if operator.op_type != "BatchNormalization" or operator.inputs[0] in graph.inputs:
            continue
        if all(name in graph.parameters for name in statistics):
            mean, variance = (graph.parameters[n].load().astype(np.float64) for n in statistics)
            epsilon = operator.attributes.get("epsilon", 1e-5)
            yield Layer(operator.inputs[0], 1, mean, np.sqrt(variance + epsilon))


def _folded(graph: Graph) -> Iterator[Layer]:
    """Outputs of layers with weights, behind the scale and bias per channel that follow."""
    uses = graph.uses()
    for operator in graph.operators:
        if (
            operator.op_type in ("Conv", "Gemm", "MatMul")
            and operator.inputs[1] in graph.parameters
        ):
            value = _behind_affine(graph, uses, operator.outputs[0])
            shape = graph.shapes.get(value, ())
            if len(shape) > 1 and value not in graph.outputs:
                yield Layer(value, 1 if operator.op_type == "Conv" else len(shape) - 1)


def _behind_affine(
    graph: Graph, uses: Mapping[str, Sequence[tuple[Operator, int]]], value: str
) -> str:
    """Follow a value through the constants per channel that it alone is combined with."""
    while len(readers := uses.get(value, ())) == 1:
        operator, slot = readers[0]
        if operator.op_type not in ("Add", "Sub", "Mul", "Div"):
            break
        parameter = graph.parameters.get(operator.inputs[1 - slot])
        if parameter is None or np.prod(parameter.shape) < 2:
            break
        value = operator.outputs[0]
    return value
