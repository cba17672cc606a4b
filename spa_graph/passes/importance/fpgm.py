"""Filter pruning via geometric median: channels close to all others are replaceable.

He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks
Acceleration", CVPR 2019, equation 6: the sum of Euclidean distances to the other filters.
"""

from __future__ import annotations

import numpy as np

from spa_graph.passes.importance.base import Criterion, Floats, ParameterAxis, criterion


@criterion
class FPGM(Criterion):
    """Sum of distances between a channel's weights and every other channel's."""

    name = "fpgm"
    roles = frozenset({"weight", "table"})

    @np.errstate(invalid="ignore", over="ignore")  # weights that are no numbers are found later
    def channels(self, part: ParameterAxis) -> Floats:
        count = len(part.index)
        products = np.zeros((count, count))
        # |a - b|^2 = |a|^2 + |b|^2 - 2ab; products of slices add up over the rest of the tensor
        moved = np.moveaxis(part.weights, part.axis, 0)
        for column in part.index.T:
            flat = moved[column].reshape(count, -1).astype(np.float32, copy=False)
            products += flat @ flat.T
        squares = np.diag(products)
        distances = squares[:, None] + squares[None, :] - 2 * products
        return np.sqrt(np.maximum(distances, 0)).sum(1)
