"""MINI-LLM: weight x gradient x feature.

Cheng, Zhang & Shi, "MINI-LLM: Memory-Efficient Structured Pruning for Large Language Models", arXiv
2407.11681, section 3: the feature map sensitivity |W| |g| |X|, with X the feature that a weight
meets. What differs here: gradients are computed by backward passes, not estimated by forward
passes; and the norm of a feature is its root mean square, so that layers compare, which changes no
order within one.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from spa_graph.coupling.analysis import Member
from spa_graph.passes.importance.base import Floats, ParameterAxis, criterion
from spa_graph.passes.importance.differential import (
    Arrays,
    Differentiable,
    FromGradients,
    Progress,
)


@criterion
class MiniLLM(FromGradients):
    """Sum of |w dL/dw| x root mean square of the feature that the weight meets."""

    name = "mini-llm"
    reads = True

    def __init__(self) -> None:
        super().__init__()
        self._slopes: Arrays = {}
        self._powers: Mapping[Member, Floats] = {}

    def measure(self, network: Differentiable, progress: Progress) -> None:  # noqa: ARG002
        weights = network.weights()
        self._slopes = {name: abs(weights[name] * g) for name, g in network.gradient().items()}
        self._powers = network.powers()

    def channels(self, part: ParameterAxis) -> Floats:
        slopes = np.moveaxis(self._slopes[part.name], part.axis, 0)
        met = slopes.reshape(len(slopes), -1).sum(1, dtype=np.float64) * self._powers[part.member]
        return met[part.index].sum(1)
