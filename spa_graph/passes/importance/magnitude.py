"""Weight magnitude: L1, L2 and L-infinity norms of a channel's weights.

Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (L1); the group form is SPA's.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spa_graph.passes.importance.base import Criterion, Floats, ParameterAxis, criterion

Block = NDArray[np.float32]


def _absolute(sums: Floats, block: Block) -> Floats:
    return sums + np.abs(block).sum((0, 2))


def _squares(sums: Floats, block: Block) -> Floats:
    return sums + np.square(block).sum((0, 2))


def _largest(largest: Floats, block: Block) -> Floats:
    return np.maximum(largest, np.abs(block).max((0, 2)))


@criterion
class L1(Criterion):
    """Sum of absolute weights."""

    name = "l1"

    def channels(self, part: ParameterAxis) -> Floats:
        return part.of_positions("l1", 0, _absolute)[part.index].sum(1)


@criterion
class L2(Criterion):
    """Euclidean norm of the weights."""

    name = "l2"

    def channels(self, part: ParameterAxis) -> Floats:
        return np.sqrt(part.of_positions("l2", 0, _squares)[part.index].sum(1))


@criterion
class LInf(Criterion):
    """Largest absolute weight."""

    name = "linf"

    def channels(self, part: ParameterAxis) -> Floats:
        return part.of_positions("linf", 0, _largest)[part.index].max(1)
