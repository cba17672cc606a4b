"""First and second moments of channels, summed up batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.float32]
Allocate = Callable[[tuple[int, ...]], NDArray[np.float64]]
"""Gives an array of zeros: in memory, or in a file where there are too many."""

WIDE = 8192
"""Layers with more inputs than this have only the diagonal of their Gram matrix measured: the
whole would take gigabytes."""


class Moments:
    """Moments of rows (groups, positions, inputs); the groups of a convolution are apart.

    Products are taken in single precision per batch, around the mean of the first batch, and added
    up in double precision, so that large means don't drown the variances.
    """

    def __init__(self, allocate: Allocate = np.zeros) -> None:
        self.count = 0
        self._allocate = allocate
        self._shift: Any = None
        self._sum: Any = 0.0
        self._products: Any = None

    def add(self, rows: Rows) -> None:
        """Take in a batch."""
        groups, positions, inputs = rows.shape
        if self._products is None:
            self._shift = rows.mean(1, keepdims=True)
            square = (groups, inputs) if inputs > WIDE else (groups, inputs, inputs)
            self._products = self._allocate(square)
        rows = rows - self._shift
        self.count += positions
        self._sum = self._sum + rows.sum(1, dtype=np.float64)
        if self.wide:
            self._products += np.square(rows).sum(1, dtype=np.float64)
        else:
            self._products += rows.transpose(0, 2, 1) @ rows

    @property
    def wide(self) -> bool:
        """Whether only the diagonal is measured."""
        return self._products is not None and self._products.ndim == 2

    @property
    def mean(self) -> Floats:
        """E[x]; (groups, inputs)."""
        return self._sum / self.count + np.asarray(self._shift, np.float64)[:, 0]

    @property
    def variance(self) -> Floats:
        """The variance of each input; (groups, inputs)."""
        squares = self._products if self.wide else np.diagonal(self._products, axis1=1, axis2=2)
        return np.maximum(squares / self.count - (self._sum / self.count) ** 2, 0)

    @property
    def power(self) -> Floats:
        """E[x^2] of each input; (groups, inputs)."""
        return self.variance + self.mean**2

    def covariance(self, group: int) -> Floats:
        """E[x x'] around the mean, for one group; (inputs, inputs), diagonal where it is wide."""
        if self.wide:
            return np.diag(self.variance[group])
        x = self._sum[group] / self.count
        return self._products[group] / self.count - np.outer(x, x)

    def shrunk(self, group: int) -> Floats:
        """The covariance, drawn towards a scaled identity as far as positions are few.

        Oracle approximating shrinkage: Chen, Wiesel, Eldar & Hero, "Shrinkage Algorithms for MMSE
        Covariance Estimation", IEEE TSP 58 (2010), equation 23.
        """
        gram = self.covariance(group)
        size = len(gram)
        trace = float(np.trace(gram))
        squares = float(np.square(gram).sum())
        spread = (self.count + 1 - 2 / size) * (squares - trace**2 / size)
        share = ((1 - 2 / size) * squares + trace**2) / spread if spread > 0 else 1.0
        share = min(max(share, ROUNDING), 1.0)
        gram *= 1 - share
        gram[np.diag_indices(size)] += share * (trace / size or 1.0)
        return gram


ROUNDING = 1e-6
"""The least shrinkage: products of single precision say no more."""
