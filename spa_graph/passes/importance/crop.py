"""CroP: weights that change the flow of gradients, whichever way, matter; before training.

Rachwan, Zügner, Charpentier, Geisler, Ayle & Günnemann, "Winning the Lottery Ahead of Time:
Efficient Early Network Pruning", ICML 2022, section 3: |w (H g)|, so that training goes as it would
in the whole network. CroP-it prunes in rounds, and looks again at what is left after each.
"""

from __future__ import annotations

from spa_graph.passes.importance.base import criterion
from spa_graph.passes.importance.differential import Arrays, Differentiable, Progress
from spa_graph.passes.importance.grasp import GraSP


@criterion
class CroP(GraSP):
    """Sum of |w (H g)|."""

    name = "crop"

    def saliency(self, network: Differentiable, progress: Progress) -> Arrays:
        return {name: abs(each) for name, each in super().saliency(network, progress).items()}


@criterion
class CroPit(CroP):
    """CroP, taken anew after each of five steps towards the budget."""

    name = "crop-it"
    rounds = 5
