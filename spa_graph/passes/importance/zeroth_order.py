"""Zeroth-order: how the outputs move when gates on the channels are perturbed, without gradients.

Simultaneous perturbation (SPSA; Spall, IEEE TAC 1992; Malladi et al., "Fine-Tuning Language Models
with Just Forward Passes" (MeZO), NeurIPS 2023): along a random direction z, the
slope of f times z estimates the gradient with respect to the gates; the mean over directions is
taken. What differs here:

* A loss against the network's own outputs has no gradient where all gates are 1: it is least there.
  So f is the outputs themselves, scaled as their distortion is, and a channel's importance is the
  squared norm of their derivative by its gate: the diagonal of the Gauss-Newton matrix of the
  distortion, or how much distortion a gate costs that is a little off 1, per squared step.
* Directions move the gates of one group, and are orthogonal (Choromanski et al., "Structured
  Evolution with Compact Architectures for Scalable Policy Optimization", ICML 2018): with as many
  as the group has channels the derivative is exact, and more are never taken.
* Slopes are one-sided, [f(1 + e z) - f(1)] / e: for the same number of runs there are twice as many
  directions, which matters more than the error of the slope.
"""

from __future__ import annotations

import numpy as np

from spa_graph.errors import ModelError
from spa_graph.passes.importance.base import Floats, Gated, criterion
from spa_graph.passes.importance.probed import Probed, Progress, shared_out
from spa_graph.passes.statistics.layers import pick

DIRECTIONS = 512
"""The network is run once for each; they are shared out to the groups by size."""
STEP = 0.02
"""How far gates move, root mean square: less drowns in half precision, more is no derivative."""
ELEMENTS = 1 << 14
"""So many elements of the outputs are looked at; chosen at random if there are more."""


@criterion
class ZerothOrder(Probed):
    """Squared norm of the outputs' derivative by each channel's gate, by SPSA."""

    name = "zeroth-order"

    def measured(self, network: Gated, progress: Progress) -> Floats:
        scores = np.zeros(len(network.gated))
        whole = network.outputs(np.ones(len(scores)))
        places = pick(self.generator, len(whole), ELEMENTS)
        groups = [
            (own, directions(self.generator, own.stop - own.start, count))
            for own, count in shared_out(network, DIRECTIONS)
        ]
        done, total = 0, sum(len(ways) for _, ways in groups)
        for own, ways in groups:
            slopes = np.empty((len(ways), len(places)))
            for number, way in enumerate(ways):
                gates = np.ones(len(scores))
                gates[own] += STEP * way
                moved = network.outputs(gates)
                if len(moved) != len(whole):
                    raise ModelError(
                        "criterion `zeroth-order` can't be used: how many outputs this network "
                        "has depends on its data; choose another criterion"
                    )
                slopes[number] = (moved - whole)[places] / STEP
                done += 1
                progress(done, total)
            # |ways' slopes / n|^2 of each channel, without that large product
            scores[own] = (ways * (slopes @ slopes.T @ ways)).sum(0) / len(ways) ** 2
        return scores


def directions(generator: np.random.Generator, size: int, count: int) -> Floats:
    """Random orthogonal directions with a mean square of 1; (count, size), or size if that is less.

    With all of them the mean of z z' is the identity; with fewer it is so on average.
    """
    normal = generator.standard_normal((size, min(count, size)))
    return np.linalg.qr(normal)[0].T * size**0.5
