"""Fisher: optimal brain damage, with the Fisher information for the curvature of the loss.

LeCun, Denker & Solla, "Optimal Brain Damage", NIPS 1989, equation 5: w^2 h / 2, with h the
diagonal of the Hessian. Here it is that of the empirical Fisher information, the mean over samples
of squared gradients (Theis, Korshunova, Tejani & Huszár, "Faster gaze prediction with dense
networks and Fisher pruning", 2018, equation 6); `obd` takes the diagonal itself.
"""

from __future__ import annotations

from spa_graph.passes.importance.base import criterion
from spa_graph.passes.importance.differential import Arrays, Differentiable, PerWeight, Progress


@criterion
class Fisher(PerWeight):
    """Sum of w^2 E[(dL_n/dw)^2] / 2."""

    name = "fisher"

    def saliency(self, network: Differentiable, progress: Progress) -> Arrays:  # noqa: ARG002
        weights = network.weights()
        return {name: weights[name] ** 2 * mean / 2 for name, mean in network.squares().items()}
