"""APoZ: channels that are mostly zero behind a ReLU matter little.

Hu, Peng, Tai & Tang, "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient
Deep Architectures", arXiv 1607.03250: the average percentage of zeros of a channel's
features, over samples and positions. Importance is the rest: the share that is not zero.
Behind activations that are never exactly zero (GELU, SiLU) all channels are equally important.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph.passes.importance.base import Floats, criterion
from spa_graph.passes.importance.observed import Observed


@criterion
class APoZ(Observed):
    """The share of features that are not zero: 1 - APoZ."""

    name = "apoz"

    def of_samples(self, maps: NDArray[Any]) -> Floats:
        positions = tuple(range(2, maps.ndim))
        return (maps != 0).mean(positions, dtype=np.float64)
