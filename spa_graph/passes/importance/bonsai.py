"""Bonsai: what random sub-networks lose says what each channel is worth.

Dery et al., "Everybody Prune Now: Structured Pruning of LLMs with only Forward Passes", arXiv
2402.05406: the utilities of random sub-networks are regressed, with an L2 penalty, on
which channels they have; a channel's importance is its coefficient. What differs here:

* Utility is minus the distortion of the outputs: there are no labels.
* A sub-network lacks channels of one group, each as often as any other. If it lacks some of all
  groups, as in the paper, what it loses drowns what each channel is worth: on the demo network
  the rank correlation with the distortion without one channel was 0.1 to 0.3, not 0.8.
* There is one round, and no prior; channels are pulled towards the mean of their group.

The L2 penalty is the one with the least squared error where each sub-network is predicted by the
others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from spa_graph.passes.importance.base import Floats, Gated, criterion
from spa_graph.passes.importance.probed import Probed, Progress, shared_out

SUBNETWORKS = 512
"""How many random sub-networks are run, shared out to the groups by size."""
SHARE = 0.05
"""The share of its group that a sub-network lacks; more, if else some channel were never absent."""
PENALTIES = np.logspace(-4, 4, 33)
"""L2 penalties that are tried, as shares of the mean eigenvalue of what is regressed on."""

Masks = NDArray[np.bool_]


@criterion
class Bonsai(Probed):
    """The coefficient of each channel in a ridge regression of distortions on random masks."""

    name = "bonsai"

    def measured(self, network: Gated, progress: Progress) -> Floats:
        scores = np.zeros(len(network.gated))
        groups = shared_out(network, SUBNETWORKS)
        done, total = 0, sum(count for _, count in groups)
        for own, count in groups:
            gone = masks(self.generator, own.stop - own.start, count)
            losses = np.empty(count)
            for number, without in enumerate(gone):
                gates = np.ones(len(scores))
                gates[own] = ~without
                losses[number] = network.distortion(gates)
                done += 1
                progress(done, total)
            comparable = np.isfinite(losses)
            scores[own] = ridge(gone[comparable], losses[comparable])
        return scores


def masks(generator: np.random.Generator, size: int, count: int) -> Masks:
    """What each of `count` sub-networks lacks: equally many, and each channel equally often."""
    lacks = max(round(SHARE * size), -(-size // count))
    rounds = [generator.permutation(size) for _ in range(-(-count * lacks // size))]
    channels = np.concatenate(rounds)[: count * lacks].reshape(count, lacks)
    gone = np.zeros((count, size), bool)
    np.put_along_axis(gone, channels, True, axis=1)
    return gone


def ridge(gone: Masks, losses: Floats) -> Floats:
    """The coefficients of a ridge regression, pulled towards what all channels lose on average.

    Args:
        gone: which channels each sub-network lacks, equally many; (sub-networks, channels).
        losses: what it loses; (sub-networks,).
    """
    if not len(losses):
        return np.zeros(gone.shape[1])
    inputs, centred = gone - gone.mean(0), losses - losses.mean()
    values, vectors = np.linalg.eigh(inputs @ inputs.T)
    values = np.maximum(values, 0)
    turned = vectors.T @ centred
    best, least = np.zeros_like(losses), np.inf
    for penalty in PENALTIES * (values.mean() or 1.0):
        shrunk = 1 / (values + penalty)
        dual = vectors @ (shrunk * turned)
        # what is left of each without itself; the mean takes 1 / n of it too
        own = np.square(vectors) @ shrunk - 1 / (len(losses) * penalty)
        error = float(np.square(dual / own).sum()) if len(losses) > 1 else np.inf
        if error < least:
            best, least = dual, error
    slopes = inputs.T @ best
    intercept = losses.mean() - gone.mean(0) @ slopes  # each lacks equally many: all share it
    return slopes + intercept / gone[0].sum()
