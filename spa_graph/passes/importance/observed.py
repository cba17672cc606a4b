"""Criteria that are a mean, over samples, of something in the features of each channel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph.passes.importance.base import Criterion, Floats
from spa_graph.passes.statistics.layers import Layer


class Observed(Criterion):
    """Base of criteria that look at features, not at weights: implement `of_samples`."""

    needs_data = True

    def __init__(self) -> None:
        self._seen: dict[Layer, tuple[Floats, int]] = {}
        """Per layer, the sum over samples, and how many there were."""

    def of_samples(self, maps: NDArray[Any]) -> Floats:
        """A number per sample and channel; some of the samples may be left out.

        Args:
            maps: what a layer reads, in the network's own precision; (samples, channels,
                *positions).
        """
        raise NotImplementedError

    def observe(self, layer: Layer, features: NDArray[Any]) -> None:
        found = self.of_samples(layer.map.maps(features))
        total, count = self._seen.get(layer, (np.zeros(found.shape[1]), 0))
        self._seen[layer] = total + found.sum(0), count + len(found)

    def mean(self, layer: Layer) -> Floats:
        """The mean over all samples; (groups, channels)."""
        total, count = self._seen[layer]
        return np.asarray(layer.map.features_by_group(total / max(count, 1)))

    def rows(self, layer: Layer) -> Floats:
        return self.mean(layer)
