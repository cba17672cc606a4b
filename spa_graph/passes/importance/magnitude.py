"""Weight magnitude: L1, L2 and L-infinity norms of a channel's weights.

Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017 (L1); the group form is SPA's.
"""

from __future__ import annotations

import numpy as np

from spa_graph.passes.importance.base import Criterion, Floats, ParameterAxis, criterion


def _sums(part: ParameterAxis, power: int) -> Floats:
    totals = np.zeros(part.weights.shape[part.axis])
    for where, block in part.blocks():
        powered = np.abs(block) if power == 1 else np.square(block)
        totals[where] += powered.sum((0, 2))
    return totals[part.index].sum(1)


@criterion
class L1(Criterion):
    """Sum of absolute weights."""

    name = "l1"

    def channels(self, part: ParameterAxis) -> Floats:
        return _sums(part, 1)


@criterion
class L2(Criterion):
    """Euclidean norm of the weights."""

    name = "l2"

    def channels(self, part: ParameterAxis) -> Floats:
        return np.sqrt(_sums(part, 2))


@criterion
class LInf(Criterion):
    """Largest absolute weight."""

    name = "linf"

    def channels(self, part: ParameterAxis) -> Floats:
        largest = np.zeros(part.weights.shape[part.axis])
        for where, block in part.blocks():
            largest[where] = np.maximum(largest[where], np.abs(block).max((0, 2)))
        return largest[part.index].max(1)
