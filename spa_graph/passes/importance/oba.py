"""OBA: the second-order change of the loss that a weight has a share in.

Sun, Fang, Wang, Jiang, Kong, Hu, Fang & Xu, "Optimal Brain Apoptosis", ICLR 2025, arXiv 2502.17941:
the terms d_i d_j d2L/dw_i dw_j of the Taylor expansion are summed over all j, with d = -w, which a
product of the Hessian with the weights gives for all i at once: w (H w). Here every weight of the
network counts, also those of other layers; the paper's own passes for this product aren't needed,
as automatic differentiation gives it exactly. A channel has the absolute value of the sum over its
weights.
"""

from __future__ import annotations

import numpy as np

from spa_graph.passes.importance.base import Floats, ParameterAxis, criterion
from spa_graph.passes.importance.differential import Arrays, Differentiable, PerWeight, Progress


@criterion
class OBA(PerWeight):
    """|Sum of w (H w)| / 2."""

    name = "oba"

    def saliency(self, network: Differentiable, progress: Progress) -> Arrays:  # noqa: ARG002
        weights = network.weights()
        curved = network.product(weights)
        return {name: weights[name] * curved[name] / 2 for name in weights}

    def channels(self, part: ParameterAxis) -> Floats:
        return np.abs(super().channels(part))
