"""Sizes of Dims as functions of kept counts.

The size of a Dim is linear in the kept counts of the groups that run through it, so that sizes of
any number of candidates are one product with a sparse matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from spa_graph.coupling.analysis import Coupling
from spa_graph.coupling.relations import Axis

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


class Sizes:
    """A table of Dims; row 0 is a dummy of size 1."""

    def __init__(self, coupling: Coupling) -> None:
        self._coupling = coupling
        self._rows: dict[Axis, int] = {}
        self._base: list[float] = [1.0]
        self._terms: list[tuple[int, int, int]] = []
        self._compiled: tuple[Floats, csr_array] | None = None

    def of(self, counts: Counts) -> Floats:
        """The size of every row where groups keep so many channels.

        Args:
            counts: (groups,), or (groups, m) for m candidates.

        Returns:
            (rows,) or (rows, m).
        """
        if self._compiled is None:
            rows, groups, per_channel = np.array(self._terms, np.int64).reshape(-1, 3).T
            shape = (len(self._base), len(self._coupling.groups))
            matrix = coo_array((per_channel.astype(float), (rows, groups)), shape=shape).tocsr()
            self._compiled = np.array(self._base), matrix
        base, matrix = self._compiled
        sizes: Floats = (base if counts.ndim == 1 else base[:, None]) + matrix @ counts
        return sizes

    def product(self, axes: Sequence[Axis]) -> tuple[float, tuple[int, ...]]:
        """What the axes' sizes multiply to: the product of those that stay, and others' rows."""
        fixed, rows = 1.0, []
        for axis in axes:
            if self._coupling.channel_of(axis) is None:
                fixed *= self._coupling.size(axis)
            else:
                rows.append(self.row(axis))
        return fixed, tuple(rows)

    def row(self, axis: Axis) -> int:
        """The row of an axis that some channels run through; it is made if it isn't there."""
        dim = self._coupling.relations.dim(axis)
        if dim not in self._rows:
            self._compiled = None
            self._rows[dim] = row = len(self._base)
            channel = self._coupling.channels.of_element[dim]
            bounds = self._coupling.channels.bounds
            group = np.searchsorted(bounds, channel[channel >= 0], side="right") - 1
            elements = np.bincount(group, minlength=len(bounds) - 1)
            self._base.append(float((channel < 0).sum()))
            for own in np.flatnonzero(elements).tolist():
                size = int(bounds[own + 1] - bounds[own])
                self._terms.append((row, own, int(elements[own]) // size))
        return self._rows[dim]
