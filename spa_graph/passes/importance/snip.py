"""SNIP: how much the loss minds a weight, before training.

Lee, Ajanthan & Torr, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR
2019, equations 5 and 6: |w dL/dw|, the derivative by a gate on the weight. The paper divides by the
sum over all weights, which changes no order.
"""

from __future__ import annotations

from spa_graph.passes.importance.base import criterion
from spa_graph.passes.importance.differential import Arrays, Differentiable, PerWeight, Progress


@criterion
class SNIP(PerWeight):
    """Sum of |w dL/dw|."""

    name = "snip"

    def saliency(self, network: Differentiable, progress: Progress) -> Arrays:  # noqa: ARG002
        weights = network.weights()
        return {name: abs(weights[name] * slope) for name, slope in network.gradient().items()}
