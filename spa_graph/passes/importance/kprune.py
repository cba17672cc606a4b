"""K-prune: what a channel adds to the results of the layers that read it.

Park, Choi & Kang, "Accurate Retraining-free Pruning for Pretrained Encoder-based Language Models",
ICLR 2024 (arXiv 2308.03449): the *representational knowledge* of a neuron or head is
the squared norm by which a layer's results change without it. For one alone that is E[|x_c W_c|^2],
with all inputs x_c of the channel (a head has many) and their weights W_c.

The paper adds *predictive knowledge*, how the KL divergence of the outputs changes, by gradients.
There are none here: this criterion is the representational part only.

In a convolution x_c are the channel's inputs in one window, whose second moments are taken too.
Several channels of one convolution that go together add up as if they were uncorrelated, and so do
those of a layer too wide for its Gram matrix; all else is exact on what was sampled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph.passes.importance.base import Criterion, Floats, ParameterAxis, criterion
from spa_graph.passes.statistics.layers import Layer, pick

WINDOWS = 1024
"""So many windows of each batch are looked at."""


@criterion
class KPrune(Criterion):
    """Mean squared norm of what a channel adds to a layer's results."""

    name = "kprune"
    needs_data = True

    def __init__(self, seed: int = 0) -> None:
        self._generator = np.random.default_rng(seed)
        self._windows: dict[Layer, tuple[Floats, int]] = {}
        """Second moments within each channel's window, summed, and of how many windows."""

    def observe(self, layer: Layer, features: NDArray[Any]) -> None:
        if layer.map.window == 1:
            return
        count = int(np.prod(layer.map.positions(features)))
        places = pick(self._generator, count, WINDOWS)
        rows = layer.map.rows(features, places)
        split = rows.reshape(*rows.shape[:2], -1, layer.map.window).transpose(0, 2, 3, 1)
        moments = (split @ split.swapaxes(-1, -2)).astype(np.float64)
        total, seen = self._windows.get(layer, (np.zeros_like(moments), 0))
        self._windows[layer] = total + moments, seen + len(places)

    def channels(self, part: ParameterAxis) -> Floats:
        layer = part.layer
        assert layer is not None
        if layer.map.window > 1 or layer.moments.wide:
            return layer.per_position(self.rows(layer))[part.index].sum(1)
        return np.sum([_added(layer, block, part) for block in range(layer.map.groups)], axis=0)

    def rows(self, layer: Layer) -> Floats:
        """What each row of a layer adds alone; (groups, channels)."""
        weights = layer.by_channel.astype(np.float64)
        if layer.map.window == 1:
            return layer.moments.power * np.square(weights).sum(2)
        total, seen = self._windows[layer]
        own = weights.reshape(*total.shape[:3], -1)
        return (own * (total @ own)).sum((2, 3)) / max(seen, 1)


def _added(layer: Layer, block: int, part: ParameterAxis) -> Floats:
    """tr(W_c' E[x_c x_c'] W_c) of every channel, for one of a layer's matrices; (channels,)."""
    mean = layer.moments.mean[block]
    gram = layer.moments.covariance(block) + np.outer(mean, mean)
    own = layer.matrix[block].astype(np.float64)[part.index]  # (channels, k, outputs)
    among = gram[part.index[:, :, None], part.index[:, None, :]]
    return (own * (among @ own)).sum((1, 2))
