"""Layer-adaptive magnitude: a channel's share of what would be left of its group.

Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021, equation 4, on the
squared norms of channels instead of single weights.
"""

from __future__ import annotations

import numpy as np

from spa_graph.passes.importance.base import Criterion, Floats, ParameterAxis, criterion
from spa_graph.passes.importance.magnitude import L2


@criterion
class LAMP(Criterion):
    """Squared norm over the sum of all squared norms that are at least as large."""

    name = "lamp"

    def channels(self, part: ParameterAxis) -> Floats:
        return L2().channels(part)

    def finish(self, scores: Floats) -> Floats:
        order = np.argsort(scores, kind="stable")
        squares = scores[order] ** 2
        remaining = np.cumsum(squares[::-1])[::-1]
        shares = np.empty_like(squares)
        shares[order] = np.divide(
            squares, remaining, out=np.zeros_like(squares), where=remaining > 0
        )
        return shares
