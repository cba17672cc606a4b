"""OBD: optimal brain damage.

LeCun, Denker & Solla, "Optimal Brain Damage", NIPS 1989, equation 5: w^2 h / 2, by which the loss
rises without a weight, with h the diagonal of the Hessian. The paper computes it by one backward
pass through networks of a certain kind; here it is estimated (`hutchinson.py`).

At a minimum h is positive, as the paper assumes. Elsewhere, and by the estimate's error, the sum
over a channel may be negative; its absolute value counts. With signs, the largest weights of the
demo network went first: an accuracy of .09 instead of .99 at half of its FLOPs.
"""

from __future__ import annotations

import numpy as np

from spa_graph.passes.importance.base import Floats, ParameterAxis, criterion
from spa_graph.passes.importance.differential import Arrays, Differentiable, PerWeight, Progress
from spa_graph.passes.importance.hutchinson import diagonal


@criterion
class OBD(PerWeight):
    """|Sum of w^2 h / 2|."""

    name = "obd"

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._seed = seed

    def saliency(self, network: Differentiable, progress: Progress) -> Arrays:
        weights = network.weights()
        curvature = diagonal(network, self._seed, progress)
        return {name: weights[name] ** 2 * each / 2 for name, each in curvature.items()}

    def channels(self, part: ParameterAxis) -> Floats:
        return np.abs(super().channels(part))
