"""Readers: the layers that sum over a group's channels, and what they lose without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.analysis import ChannelGroup
from spa_graph.passes.statistics.layers import Layer
from spa_graph.passes.statistics.moments import Floats

Ints = NDArray[np.int64]
Layers = Mapping[tuple[int, int], Layer]
"""Linear operators by (operator, input of the weight)."""


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """One matrix of a layer whose inputs belong to a group.

    rows: the rows of the matrix that go with each coupled channel; (channels, k).
    """

    layer: Layer
    block: int
    rows: Ints

    @property
    def gram(self) -> Floats:
        """E[x x'], shrunk; (inputs, inputs)."""
        return self.layer.moments.shrunk(self.block)

    @property
    def matrix(self) -> Floats:
        """The weight, scaled so that the variances of the layer's results sum to 1."""
        matrix = self.layer.by_channel[self.block].astype(np.float64)
        return matrix / np.sqrt(variance(self.layer))

    @property
    def separate(self) -> Floats:
        """What the results lose without each channel, if no other takes over; (channels,)."""
        lost = separate(self.layer)[self.block] / variance(self.layer)
        return np.asarray(lost[self.rows].sum(1))


def variance(layer: Layer) -> float:
    """The variance of a layer's results, summed over them."""
    if layer.moments.wide:
        return float(separate(layer).sum()) or 1.0
    total = 0.0
    for block, matrix in enumerate(layer.by_channel.astype(np.float64)):
        total += float((matrix * (layer.moments.covariance(block) @ matrix)).sum())
    return total or 1.0


def separate(layer: Layer) -> Floats:
    """What the results lose without each row, if no other takes over; (groups, inputs)."""
    return layer.moments.variance * np.square(layer.by_channel.astype(np.float64)).sum(2)


def readers(layers: Layers, group: ChannelGroup) -> list[Reader]:
    """The matrices that sum over a group's channels; one that several operators use counts once."""
    found: dict[tuple[str, int], Reader] = {}
    for member in group.members:
        layer = layers.get((member.operator, member.slot))
        if layer is not None and member.axis == layer.linear.inputs:
            for block in range(layer.blocks):
                found.setdefault((layer.weight, block), Reader(layer, block, member.index))
    return list(found.values())


def error_curve(found: Sequence[Reader], order: Ints) -> Floats:
    """What the readers lose when channels go in this order and the others take over.

    With H = L L' (Cholesky, the channels that stay longest first), removing the last inputs and
    refitting the rest by least squares changes the results by the squared norm of those columns of
    M' L: the Schur complement of what stays is the last block of L. So one factorisation gives the
    error of every count.

    Returns:
        The error after removing 0, 1, ... channels, as shares of the readers' variances; the sum
        over readers; (channels + 1,).
    """
    total = np.zeros(len(order) + 1)
    for reader in found:
        if reader.layer.moments.wide:
            total[1:] += np.cumsum(reader.separate[order])
            continue
        gram, matrix = reader.gram, reader.matrix
        last = reader.rows[order[::-1]]
        others = np.setdiff1d(np.arange(len(gram)), last.reshape(-1))
        turned = np.concatenate([others, last.reshape(-1)])
        factor = np.linalg.cholesky(gram[np.ix_(turned, turned)])
        lost = np.square(matrix[turned].T @ factor).sum(0)[len(others) :]
        total[1:] += np.cumsum(lost.reshape(last.shape).sum(1)[::-1])
    return total


def taken_over(layer: Layer, stays: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """The weight that is left, refitted on the dense network's statistics, and its new bias.

    A channel that is gone is replaced by what the others say of it at the same position.

    Args:
        stays: which channels are left; (groups, channels), equally many in each group.

    Returns:
        The matrices (groups, inputs left, outputs), and what to add to the bias (groups, outputs).
    """
    matrices, biases = [], []
    for block, (whole, left) in enumerate(zip(layer.by_channel, stays, strict=True)):
        matrix, mean = whole.astype(np.float64), layer.moments.mean[block]
        if layer.moments.wide:  # without its Gram matrix only the means are known
            fitted = matrix[left]
        else:
            gram = layer.moments.shrunk(block)
            fitted = np.linalg.solve(gram[np.ix_(left, left)], gram[left] @ matrix)
        matrices.append(fitted.reshape(-1, layer.map.outputs))
        lost = mean @ matrix - mean[left] @ fitted
        biases.append(lost.reshape(layer.map.window, -1).sum(0))
    return np.stack(matrices), np.stack(biases)
