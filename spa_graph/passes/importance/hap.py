"""HAP: the mean curvature of a channel's weights times their squared norm.

Yu, Yao, Gholami, Dong, Kim, Mahoney & Keutzer, "Hessian-Aware Pruning and Optimal Neural Implant",
WACV 2022, equation 9: Trace(H_cc) / (2 p) |w_c|^2, with H_cc the block of the Hessian of the p
weights of a channel, and the trace estimated (`hutchinson.py`). A negative trace counts by its
absolute value, for the reason given in `obd.py`.
"""

from __future__ import annotations

import numpy as np

from spa_graph.passes.importance.base import Floats, ParameterAxis, criterion
from spa_graph.passes.importance.differential import (
    Arrays,
    Differentiable,
    FromGradients,
    Progress,
    channel_sums,
)
from spa_graph.passes.importance.hutchinson import diagonal


@criterion
class HAP(FromGradients):
    """|Trace of the channel's block of the Hessian| over twice its size, times |w|^2."""

    name = "hap"

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._seed = seed
        self._curvature: Arrays = {}
        self._weights: Arrays = {}

    def measure(self, network: Differentiable, progress: Progress) -> None:
        self._weights = network.weights()
        self._curvature = diagonal(network, self._seed, progress)

    def channels(self, part: ParameterAxis) -> Floats:
        weights = self._weights[part.name]
        size = weights.size / weights.shape[part.axis] * part.index.shape[1]
        trace = channel_sums(self._curvature[part.name], part)
        return np.abs(trace) / (2 * size) * channel_sums(weights**2, part)
