"""HRank: channels whose feature maps have a low rank hold little information.

Lin et al., "HRank: Filter Pruning using High-Rank Feature Map", CVPR 2020: the rank of a
channel's feature map (H x W), averaged over samples; here as the layers that read it see it.

Features that aren't maps:
* volumes (D x H x W): the mean rank of their slices,
* sequences (one axis of positions): a vector has rank 1 at most, so the rank of the matrix of
  samples x positions is taken, of every batch,
* features without positions: maps of 1 x 1, whose rank says whether they are zero.

Ranks change little with the number of samples, as the paper shows, and each takes a singular value
decomposition: few are looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph.passes.importance.base import Floats, criterion
from spa_graph.passes.importance.observed import Observed
from spa_graph.passes.statistics.layers import Layer

SAMPLES = 32
"""A layer's features are looked at for so many samples of the first batches..."""
PER_BATCH = 8
"""... and of each batch for so many."""
SIDE = 64
"""Of maps with longer sides every second, third, ... row and column is looked at."""


@criterion
class HRank(Observed):
    """The average rank of a channel's feature map."""

    name = "hrank"

    def observe(self, layer: Layer, features: NDArray[Any]) -> None:
        _, count = self._seen.get(layer, (None, 0))
        if count < SAMPLES:
            super().observe(layer, features)

    def of_samples(self, maps: NDArray[Any]) -> Floats:
        steps = (slice(None, None, max(-(-size // SIDE), 1)) for size in maps.shape[2:])
        few = maps[:PER_BATCH, :, *steps].astype(np.float32)
        if not few.size or not np.isfinite(few).all():  # has no rank; NaN is reported by name
            return np.full((min(few.size, 1), few.shape[1]), np.nan)
        if few.ndim == 2:
            return (few != 0).astype(np.float64)
        if few.ndim == 3:
            return np.linalg.matrix_rank(few.transpose(1, 0, 2))[None].astype(np.float64)
        ranks = np.linalg.matrix_rank(few)
        return ranks.mean(tuple(range(2, ranks.ndim)), dtype=np.float64)
