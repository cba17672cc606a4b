"""FLAP: features that fluctuate can't be replaced by a bias.

An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024,
equation 5: the variance of the input feature times the squared norm of the weights that it meets.
"""

from __future__ import annotations

import numpy as np

from spa_graph.passes.importance.base import Criterion, Floats, criterion
from spa_graph.passes.statistics.layers import Layer


@criterion
class FLAP(Criterion):
    """Variance of the feature x squared norm of its weights."""

    name = "flap"
    needs_data = True

    def rows(self, layer: Layer) -> Floats:
        return layer.moments.variance * np.square(layer.by_channel.astype(np.float64)).sum(2)
