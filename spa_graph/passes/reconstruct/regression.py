"""The least-squares update of a layer's weights, with its damping chosen on held-out data.

With x a row of inputs and r what is missing at the outputs, both centred if the layer has a bias,
the update that minimises E |r - D'x|^2 + damping |S^1/2 D|^2 is

    D = (E[x x'] + damping S)^-1 E[x r']

with S a diagonal that gives each input its share (`_scale`).

It is optimal brain surgery in closed form. The damping pulls towards the weights that are there,
not towards zero: directions that the calibration data doesn't show keep what training gave them.
Each damping is tried on the held-out part; if none helps there, the layer stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from spa_graph.passes.statistics.moments import Floats, Rows

DAMPINGS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Tried in turn, as shares of the mean E[x^2] (`_scale`)."""

LEAST = 1e-3
"""Inputs that vary less than this share of the mean are damped as if they didn't."""


@dataclass(frozen=True, slots=True)
class Update:
    """What is added to the matrices (groups, inputs, outputs) and the bias (groups, outputs)."""

    matrix: NDArray[Any]
    bias: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The best update, None if none helps; errors are those of held-out rows, per position."""

    update: Update | None
    before: float
    after: float
    damping: float = np.inf


def _lowest(error: Callable[[float], float]) -> tuple[float, float]:
    """The damping with the lowest error, and that error; each try costs a factorisation.

    The error falls, then rises as the damping grows: walk downhill from the middle.
    """
    at = len(DAMPINGS) // 2
    found = {at: error(DAMPINGS[at])}
    for step in (1, -1):
        while 0 <= at + step < len(DAMPINGS):
            found[at + step] = error(DAMPINGS[at + step])
            if found[at + step] >= found[at]:
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
        before = float(held.error(None, -gap).sum())

        def error(damping: float) -> float:
            return float(held.error(*self._fit(fitting, damping)).sum())

        damping, after = _lowest(error)
        if after >= before:
            return Outcome(None, before, before)
        matrix, bias = self._fit(fitting.plus(held), damping)
        bias = gap + bias - np.einsum("gk,gko->go", self._shift[:, 0].astype(np.float64), matrix)
        return Outcome(Update(matrix, bias), before, after, damping)

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

    def error(self, matrix: Floats | None, bias: Floats) -> Floats:
        """E |r - D'x - c|^2 per output; (groups, outputs). No matrix is one of zeros."""
        seen, missing = 0.0, self.r / self.count
        if matrix is not None:
            seen = (matrix * (self.xx / self.count @ matrix - 2 * self.xr / self.count)).sum(1)
            missing = missing - np.einsum("gk,gko->go", self.x / self.count, matrix)
        return self.rr / self.count + seen - 2 * bias * missing + bias**2


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
        (x, r), (xh, rh) = (
            (np.concatenate(a), np.concatenate(b))
            for a, b in zip(self._rows, self._residuals, strict=True)
        )
        before = float(np.square(rh).sum(1).mean())
        mean, gap = self._means(x, r)
        cross = (xh - mean) @ (x - mean).T
        solution = self._solver(x - mean, r - gap)

        def error(damping: float) -> float:
            return float(np.square(rh - gap - cross @ solution(damping)).sum(1).mean())

        damping, after = _lowest(error)
        if after >= before:
            return Outcome(None, before, before)
        x, r = np.concatenate([x, xh]), np.concatenate([r, rh])
        mean, gap = self._means(x, r)
        matrix = (x - mean).T @ self._solver(x - mean, r - gap)(damping)
        update = Update(matrix[None], (gap - mean @ matrix).reshape(1, -1))
        return Outcome(update, before, after, damping)

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
