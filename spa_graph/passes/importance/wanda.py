"""Wanda: weights by the features that they meet.

Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024,
equation 1: |W| times the norm of the input feature; summed over a channel's weights.
"""

from __future__ import annotations

import numpy as np

from spa_graph.passes.importance.base import Criterion, Floats, criterion
from spa_graph.passes.statistics.layers import Layer


@criterion
class Wanda(Criterion):
    """Sum of |weight| x root mean square of the feature that it meets."""

    name = "wanda"
    needs_data = True

    def rows(self, layer: Layer) -> Floats:
        return np.abs(layer.by_channel).sum(2) * np.sqrt(layer.moments.power)
