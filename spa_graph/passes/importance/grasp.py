"""GraSP: what a weight does for the flow of gradients, before training.

Wang, Zhang & Grosse, "Picking Winning Tickets Before Training by Preserving Gradient Flow", ICLR
2020, equation 8: without a weight the squared norm of the gradient changes by about -2 w (H g), and
those are removed for which -w (H g) is largest. Importance is w (H g), which may be negative: such
weights stand in the way of training. `--aggregate prod` and `l2` don't know of signs.
"""

from __future__ import annotations

from spa_graph.passes.importance.base import criterion
from spa_graph.passes.importance.differential import Arrays, Differentiable, PerWeight, Progress


@criterion
class GraSP(PerWeight):
    """Sum of w (H g), with g the gradient of the loss and H its Hessian."""

    name = "grasp"

    def saliency(self, network: Differentiable, progress: Progress) -> Arrays:  # noqa: ARG002
        weights, flow = network.weights(), network.product(network.gradient())
        return {name: weights[name] * flow[name] for name in weights}
