"""Random importance: the baseline that every criterion has to beat."""

from __future__ import annotations

import numpy as np

from spa_graph.passes.importance.base import Criterion, Floats, ParameterAxis, criterion
from spa_graph.passes.importance.magnitude import L1


@criterion
class Random(Criterion):
    """Uniform in [0, 1), from a seed; NaN where the weights are, as every criterion."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)

    def channels(self, part: ParameterAxis) -> Floats:
        broken = ~np.isfinite(L1().channels(part))
        return np.where(broken, np.nan, self._generator.random(len(part.index)))
