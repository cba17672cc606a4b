"""Taylor: how the loss changes without a channel, to first order.

Molchanov, Mallya, Tyree, Frosio & Kautz, "Importance Estimation for Neural Network Pruning", CVPR
2019, equations 8 and 9: the squared change, with the contributions of all weights of a channel
added up before squaring; averaged over batches (section 3.2), as the loader gives them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from spa_graph.passes.importance.base import Floats, criterion
from spa_graph.passes.importance.differential import Differentiable, Effects, PerChannel


@criterion
class Taylor(PerChannel):
    """Mean over batches of (sum of w dL/dw)^2."""

    name = "taylor"

    def effects(self, network: Differentiable) -> Iterator[Effects]:
        return network.effects("batch")

    def of(self, effects: Floats) -> Floats:
        return np.square(effects)
