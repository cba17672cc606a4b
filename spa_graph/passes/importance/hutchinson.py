"""The diagonal of the Hessian, estimated; and two criteria that need it.

Hutchinson, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing
splines", 1990; Bekas, Kokiopoulou & Saad, "An estimator for the diagonal of a matrix", 2007: with
random signs z, E[z * (H z)] is the diagonal of H, and the sum over some weights the trace of their
block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph.passes.importance.differential import Arrays, Differentiable, Progress

PROBES = 16
"""Random vectors, each of which costs two backward passes over the data."""


def diagonal(network: Differentiable, seed: int, progress: Progress) -> Arrays:
    """The estimated diagonal of the Hessian."""
    generator = np.random.default_rng(seed)
    weights = network.weights()
    totals: dict[str, NDArray[Any]] = {
        name: np.zeros(each.shape, np.float64) for name, each in weights.items()
    }
    for number in range(PROBES):
        signs = {
            name: generator.choice((-1.0, 1.0), each.shape).astype(each.dtype)
            for name, each in weights.items()
        }
        for name, curved in network.product(signs).items():
            totals[name] += signs[name] * curved
        progress(number + 1, PROBES)
    return {name: total / PROBES for name, total in totals.items()}
