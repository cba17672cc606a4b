"""How far a network's outputs are from what they should be, as one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from spa_graph.runtime.verify import Array

Floats = NDArray[np.float64]
Result = TypeVar("Result")
Outputs = Sequence[Sequence[Array]]
"""Per batch, all outputs of the network."""


def distortion(want: Outputs, got: Outputs) -> float:
    """The squared error of all floating-point outputs as a share of their variance over samples.

    Each output counts alike: its error is divided by its own variance. 0 is equality, 1 is what a
    constant output would give.
    """
    return float(by_sample(want, got).sum())


def by_sample(want: Outputs, got: Outputs, *, scaled: bool = False) -> Floats:
    """What each sample adds to the distortion; each batch, where outputs don't go by samples.

    Args:
        scaled: of outputs that were shifted and scaled to what they should be, each as a whole: the
            sum over an output is 1 - r^2 then, r being its correlation (`alignment`), or 0 below.
    """
    shares = _per_output(_scaled_shares if scaled else _shares, want, got)
    if len({tuple(map(len, rows)) for rows in shares}) > 1:
        shares = [[row.sum(keepdims=True) for row in rows] for rows in shares]
    return np.mean([np.concatenate(rows) for rows in shares], 0) if shares else np.zeros(1)


def alignment(want: Outputs, got: Outputs) -> float:
    """The correlation over samples of all floating-point outputs with what they should be.

    Unlike `distortion`, it doesn't mind their scale: outputs that hardly vary any more have a small
    error, and say nothing. Each output counts alike; 0 where one doesn't vary, or has another
    shape.
    """
    found = _per_output(_correlation, want, got)
    return float(np.mean(found)) if found else 0.0


def _per_output(
    measure: Callable[[Sequence[Array], Sequence[Array]], Result], want: Outputs, got: Outputs
) -> list[Result]:
    """Something that compares one output, for each floating-point one."""
    return [
        measure(first, second)
        for first, second in zip(zip(*want, strict=True), zip(*got, strict=True), strict=True)
        if first[0].dtype.kind == "f"
    ]


def _correlation(want: Sequence[Array], got: Sequence[Array]) -> float:
    """That of one output; (batches)."""
    if [first.shape for first in want] != [second.shape for second in got]:
        return 0.0
    means = _mean(want), _mean(got)
    both = sum(
        float(((x.astype(np.float64) - means[0]) * (y.astype(np.float64) - means[1])).sum())
        for x, y in zip(want, got, strict=True)
    )
    whole = float(np.sqrt(spread(want) * spread(got)))
    return both / whole if whole > 0 else 0.0


def _shares(want: Sequence[Array], got: Sequence[Array]) -> list[Floats]:
    """The squared error of one output for each batch's samples, as shares of its variance."""
    rows = [_squares(x, y) for x, y in zip(want, got, strict=True)]
    error = sum(float(row.sum()) for row in rows)
    whole = spread(want) or (error if 0 < error < np.inf else 1.0)
    return [row / whole for row in rows]


def _scaled_shares(want: Sequence[Array], got: Sequence[Array]) -> list[Floats]:
    """The same after the shift and the scale, of at least 0, that lessen it most."""
    deviation = spread(got)
    alike = [first.shape for first in want] == [second.shape for second in got]
    if not alike or not np.isfinite(deviation):
        return _shares(want, got)
    scale = max(_correlation(want, got), 0.0) * np.sqrt(spread(want) / (deviation or 1.0))
    middle, wanted = _mean(got), _mean(want)
    return _shares(want, [wanted + scale * (each.astype(np.float64) - middle) for each in got])


def _squares(want: Array, got: Array) -> Floats:
    """The squared errors of a batch's samples; infinite if the shapes differ."""
    if want.shape != got.shape:
        return np.full(len(want) if want.ndim else 1, np.inf)
    errors = np.square(want.astype(np.float64) - got)
    return np.asarray(errors.reshape(len(want) if want.ndim else 1, -1).sum(1))


def spread(batches: Sequence[Array]) -> float:
    """The squared distance of one output from its mean, summed over all samples."""
    mean = _mean(batches)
    return sum(float(np.square(each.astype(np.float64) - mean).sum()) for each in batches)


def _mean(batches: Sequence[Array]) -> Array | float:
    """The mean over samples; over everything, where they differ in shape or there is only one."""
    samples = sum(len(batch) if batch.ndim else 1 for batch in batches)
    alike = len({batch.shape[1:] for batch in batches}) == 1
    if alike and batches[0].ndim > 1 and samples > 1:
        total = sum(batch.sum(0, dtype=np.float64) for batch in batches)
        return np.asarray(total) / samples
    count = sum(batch.size for batch in batches)
    return float(sum(batch.sum(dtype=np.float64) for batch in batches)) / max(count, 1)
