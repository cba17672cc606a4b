"""Repairs of each result by itself: its mean, or its mean and its variance."""

from __future__ import annotations

from typing import Any

import numpy as np

from spa_graph.passes.reconstruct.trial import Outcome, Trial
from spa_graph.passes.statistics.moments import Floats, Rows


class BiasRegression:
    """Bias compensation: give back the mean that the removed inputs added.

    An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI 2024,
    equation 4.
    """

    scales = False

    def __init__(self, matrix: Rows, *, bias: bool) -> None:
        self._matrix = matrix
        self._bias = bias
        self._parts = (_Results(), _Results())

    def add(self, rows: Rows, residual: Rows, *, held_out: bool) -> None:
        """Take in rows (groups, positions, inputs) and what is missing (.., positions, outputs)."""
        results = rows @ self._matrix
        self._parts[held_out].add(results, results + residual)

    def solve(self) -> Outcome:
        fitting, held = self._parts
        found = held.trial(*self._fit(fitting))
        if not self._bias or not found.helps:
            return found.nothing
        scale, shift = self._fit(fitting.plus(held))
        return found.outcome((scale - 1)[:, None, :] * self._matrix, shift, 0.0)

    def _fit(self, part: _Results) -> tuple[Floats, Floats]:
        """What results are multiplied by, and what is added then; (groups, outputs)."""
        scale = part.scale if self.scales else np.ones_like(part.got)
        return scale, (part.wanted - scale * part.got) / part.count


class BatchNormRegression(BiasRegression):
    """Re-estimation of BatchNorm, folded or not: results get back their mean and their variance.

    Scaling a convolution's weights by s is dividing the running deviation behind it by s.
    """

    scales = True


class _Results:
    """Sums over positions of what a layer gives and of what is wanted, per output."""

    def __init__(self) -> None:
        self.count = 0
        self.got: Any = 0.0
        self.wanted: Any = 0.0
        self.got2: Any = 0.0
        self.wanted2: Any = 0.0
        self.both: Any = 0.0

    def add(self, got: Rows, wanted: Rows) -> None:
        first, second = got.astype(np.float64), wanted.astype(np.float64)
        self.count += got.shape[1]
        self.got = self.got + first.sum(1)
        self.wanted = self.wanted + second.sum(1)
        self.got2 = self.got2 + np.square(first).sum(1)
        self.wanted2 = self.wanted2 + np.square(second).sum(1)
        self.both = self.both + (first * second).sum(1)

    def plus(self, other: _Results) -> _Results:
        both = _Results()
        for name in vars(self):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    @property
    def scale(self) -> Floats:
        """The ratio of standard deviations, 1 where a result doesn't vary."""
        n = self.count
        got = self.got2 / n - (self.got / n) ** 2
        wanted = self.wanted2 / n - (self.wanted / n) ** 2
        floor = 1e-6 * np.maximum(self.got2 / n, np.finfo(np.float64).tiny)
        ratio = np.divide(np.maximum(wanted, 0), got, out=np.ones_like(got), where=got > floor)
        return np.asarray(np.sqrt(ratio))

    def trial(self, scale: Floats, shift: Floats) -> Trial:
        """How it does here to add (scale - 1) * got + shift to what the layer gives."""
        n, grown = self.count, scale - 1
        lost = self.wanted - self.got
        missing = (self.wanted2 - 2 * self.both + self.got2) / n
        shared = (grown * (self.both - self.got2) + shift * lost) / n
        added = (grown**2 * self.got2 + 2 * grown * shift * self.got) / n + shift**2
        return Trial(float(missing.sum()), float(shared.sum()), float(added.sum()))
