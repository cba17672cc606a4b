"""SynFlow: the synaptic flow through a weight; needs neither data nor a loss.

Tanaka, Kunin, Yamins & Ganguli, "Pruning neural networks without any data by iteratively conserving
synaptic flow", NeurIPS 2020, equation 1 and algorithm 1: w dR/dw, with R the sum of the outputs for
inputs of ones where every weight is replaced by its absolute value. Pruned in 100 rounds, each of
which keeps the same share of what the one before did: no layer vanishes.
"""

from __future__ import annotations

from spa_graph.passes.importance.base import criterion
from spa_graph.passes.importance.differential import Arrays, Differentiable, PerWeight, Progress


@criterion
class SynFlow(PerWeight):
    """Sum of |w| dR/d|w|."""

    name = "synflow"
    rounds = 100
    needs_loss = False

    def saliency(self, network: Differentiable, progress: Progress) -> Arrays:  # noqa: ARG002
        weights = network.weights()
        return {name: abs(weights[name]) * slope for name, slope in network.flow().items()}
