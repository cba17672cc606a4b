"""Random importance: the baseline that every criterion has to beat."""

from __future__ import annotations

import numpy as np

from spa_graph.passes.importance.base import Criterion, Floats, ParameterAxis, criterion


@criterion
class Random(Criterion):
    """Uniform in [0, 1), from a seed."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)

    def channels(self, part: ParameterAxis) -> Floats:
        return self._generator.random(len(part.index))
