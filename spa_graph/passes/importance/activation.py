"""Activation: channels whose features are small matter little.

Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation" (Minitron),
NeurIPS 2024: the features of a channel, aggregated by their mean absolute value over
the sequence, and by the L2 norm over the batch. The positions of a feature map are its sequence.
The norm is divided by the root of the number of samples, so that layers which split them otherwise
(windows) compare; the order of channels is the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph.passes.importance.base import Floats, criterion
from spa_graph.passes.importance.observed import Observed
from spa_graph.passes.statistics.layers import Layer


@criterion
class Activation(Observed):
    """Root mean square over samples of the mean |feature| over positions."""

    name = "activation"

    def of_samples(self, maps: NDArray[Any]) -> Floats:
        positions = tuple(range(2, maps.ndim))
        return np.square(np.abs(maps).mean(positions, dtype=np.float64))

    def rows(self, layer: Layer) -> Floats:
        return np.sqrt(self.mean(layer))
