"""The least-squares update of a layer's weights, with its damping chosen on held-out data.

With x a row of inputs and r what is missing at the outputs, both centred if the layer has a bias,
the update that minimises E |r - D'x|^2 + damping |S^1/2 D|^2 is

    D = (E[x x'] + damping S)^-1 E[x r']

with S a diagonal that gives each input its share (`_scale`).

It is optimal brain surgery in closed form. The damping pulls towards the weights that are there,
not towards zero: directions that the calibration data doesn't show keep what training gave them.
Each damping is tried on rows that were not fitted to, and so is the share of the update that is
made (`trial.py`); if none helps there, the layer stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from spa_graph.passes.reconstruct.trial import Outcome, Trial
from spa_graph.passes.statistics.moments import Floats, Rows

DAMPINGS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Tried in turn, as shares of the mean E[x^2] (`_scale`)."""

LEAST = 1e-3
"""Inputs that vary less than this share of the mean are damped as if they didn't."""


def _lowest(trial: Callable[[float], Trial]) -> tuple[float, Trial]:
    """The damping whose trial leaves the lowest error; each costs a factorisation.

    The error falls, then rises as the damping grows: walk downhill from the middle.
    """
    at = len(DAMPINGS) // 2
    found = {at: trial(DAMPINGS[at])}
    for step in (1, -1):
        while 0 <= at + step < len(DAMPINGS):
            found[at + step] = trial(DAMPINGS[at + step])
            if found[at + step].left >= found[at].left:
                break
            at += step
        if len(found) > 2:
            break  # it fell on this side, so it rises on the other
    return DAMPINGS[at], found[at]


class GramRegression:
    """From sums of products: for layers that see more positions than they have inputs."""

    def __init__(self, *, bias: bool) -> None:
        self._bias = bias
        self._shift: Any = None
        self._gap: Any = None  # what inputs and residuals are shifted by, for precision
        self._parts = (_Sums(), _Sums())

    def add(self, rows: Rows, residual: Rows, *, held_out: bool) -> None:
        """Take in rows (groups, positions, inputs) and what is missing (.., positions, outputs)."""
        if self._shift is None:
            self._shift = rows.mean(1, keepdims=True) * self._bias
            self._gap = residual.mean(1, keepdims=True) * self._bias
        self._parts[held_out].add(rows - self._shift, residual - self._gap)

    def solve(self) -> Outcome:
        fitting, held = self._parts
        gap = self._gap[:, 0].astype(np.float64)

        def trial(damping: float) -> Trial:
            return held.trial(*self._fit(fitting, damping), gap)

        damping, found = _lowest(trial)
        if not found.helps:
            return found.nothing
        matrix, bias = self._fit(fitting.plus(held), damping)
        bias = gap + bias - np.einsum("gk,gko->go", self._shift[:, 0].astype(np.float64), matrix)
        return found.outcome(matrix, bias, damping)

    def _fit(self, sums: _Sums, damping: float) -> tuple[Floats, Floats]:
        n = sums.count
        x, r = (sums.x / n, sums.r / n) if self._bias else (0 * sums.x, 0 * sums.r)
        gram = sums.xx / n - x[:, :, None] * x[:, None, :]
        cross = sums.xr / n - x[:, :, None] * r[:, None, :]
        every = np.arange(gram.shape[-1])
        gram[:, every, every] += damping * _scale(gram[:, every, every])
        matrix = np.linalg.solve(gram, cross) if len(gram) > 1 else _cholesky(gram, cross)
        return matrix, r - np.einsum("gk,gko->go", x, matrix)


def _scale(variances: Floats) -> Floats:
    """How strongly each input is damped, before the common factor; (groups, inputs).

    Between two rules: alike for all inputs, which hardly damps those that vary much, and in
    proportion to their variance, which hardly damps those that vary little. Their geometric mean
    measured best (docs/accuracy.md).
    """
    mean = variances.mean(1, keepdims=True)
    mean[mean <= 0] = 1.0
    return np.sqrt(mean * np.maximum(variances, LEAST * mean))


class _Sums:
    """Sums over positions of products of inputs x and residuals r."""

    def __init__(self) -> None:
        self.count = 0
        self.x: Any = 0.0
        self.r: Any = 0.0
        self.xx: Any = 0.0
        self.xr: Any = 0.0
        self.rr: Any = 0.0

    def add(self, rows: Rows, residual: Rows) -> None:
        turned = rows.transpose(0, 2, 1)
        self.count += rows.shape[1]
        self.x = self.x + rows.sum(1, dtype=np.float64)
        self.r = self.r + residual.sum(1, dtype=np.float64)
        self.xx = self.xx + (turned @ rows).astype(np.float64)
        self.xr = self.xr + (turned @ residual).astype(np.float64)
        self.rr = self.rr + np.square(residual).sum(1, dtype=np.float64)

    def plus(self, other: _Sums) -> _Sums:
        both = _Sums()
        for name in vars(self):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        return both

    def trial(self, matrix: Floats, bias: Floats, gap: Floats) -> Trial:
        """How an update does here, whose inputs and residuals are these without their shifts.

        Args:
            gap: what the residuals are shifted by; (groups, outputs).
        """
        n = self.count
        mean, const = self.r / n, gap + bias
        by_inputs = np.einsum("gk,gko->go", self.x / n, matrix)
        missing = self.rr / n + 2 * gap * mean + gap**2
        shared = (matrix * self.xr / n).sum(1) + gap * by_inputs + const * (mean + gap)
        added = (matrix * (self.xx / n @ matrix)).sum(1) + 2 * const * by_inputs + const**2
        return Trial(float(missing.sum()), float(shared.sum()), float(added.sum()))


def _cholesky(gram: Floats, cross: Floats) -> Floats:
    """Solve the only group; where rounding made its matrix indefinite, by least squares."""
    try:
        return cho_solve(cho_factor(gram[0], lower=True, check_finite=False), cross[0])[None]
    except LinAlgError:
        return np.linalg.lstsq(gram[0], cross[0], rcond=None)[0][None]


class RowRegression:
    """From the rows themselves: for layers that have more inputs than positions are seen.

    With X the n rows, D = X'(X X' + n damping)^-1 R: the update from a matrix of positions. All
    inputs are damped alike: so few positions tell little about the variance of each.
    """

    def __init__(self, *, bias: bool) -> None:
        self._bias = bias
        self._rows: tuple[list[Rows], list[Rows]] = ([], [])
        self._residuals: tuple[list[Rows], list[Rows]] = ([], [])

    def add(self, rows: Rows, residual: Rows, *, held_out: bool) -> None:
        """Take in rows (1, positions, inputs) and what is missing (1, positions, outputs)."""
        self._rows[held_out].append(rows[0])
        self._residuals[held_out].append(residual[0])

    def solve(self) -> Outcome:
        (x, r), (held, missing) = (
            (np.concatenate(a), np.concatenate(b))
            for a, b in zip(self._rows, self._residuals, strict=True)
        )
        centre, gap = self._means(x, r)
        cross = (held - centre) @ (x - centre).T
        solution = self._solver(x - centre, r - gap)
        damping, found = _lowest(lambda tried: _compared(missing, gap + cross @ solution(tried)))
        if not found.helps:
            return found.nothing
        x, r = np.concatenate([x, held]), np.concatenate([r, missing])
        centre, gap = self._means(x, r)
        matrix = (x - centre).T @ self._solver(x - centre, r - gap)(damping)
        return found.outcome(matrix[None], (gap - centre @ matrix).reshape(1, -1), damping)

    def _means(self, x: Rows, r: Rows) -> tuple[Rows, Rows]:
        return x.mean(0) * self._bias, r.mean(0) * self._bias

    @staticmethod
    def _solver(x: Rows, r: Rows) -> Callable[[float], Floats]:
        """(X X' + n damping)^-1 R as a function of the damping, a share of the mean E[x^2]."""
        values, vectors = np.linalg.eigh((x @ x.T).astype(np.float64))
        values = np.maximum(values, 0)
        scale = float(values.sum()) / x.shape[1] or 1.0
        turned = vectors.T @ r
        return lambda damping: vectors @ (turned / (values + damping * scale)[:, None])


def _compared(missing: Rows, added: Floats) -> Trial:
    """What is missing, and what an update adds there; (positions, outputs)."""
    r, p = missing.astype(np.float64), added
    return Trial(*(float(each.sum()) / len(r) for each in (r * r, r * p, p * p)))
