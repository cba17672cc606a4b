"""How far a network's outputs are from what they should be, as one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from spa_graph.runtime.verify import Array

Outputs = Sequence[Sequence[Array]]
"""Per batch, all outputs of the network."""


def distortion(want: Outputs, got: Outputs) -> float:
    """The squared error of all floating-point outputs as a share of their variance over samples.

    Each output counts alike: its error is divided by its own variance. 0 is equality, 1 is what a
    constant output would give.
    """
    return _over_outputs(_share, want, got)


def alignment(want: Outputs, got: Outputs) -> float:
    """The correlation over samples of all floating-point outputs with what they should be.

    Unlike `distortion`, it doesn't mind their scale: outputs that hardly vary any more have a small
    error, and say nothing. Each output counts alike; 0 where one doesn't vary, or has another
    shape.
    """
    return _over_outputs(_correlation, want, got)


def _over_outputs(
    measure: Callable[[Sequence[Array], Sequence[Array]], float], want: Outputs, got: Outputs
) -> float:
    """The mean over floating-point outputs of something that compares one; 0 if there is none."""
    found = [
        measure(first, second)
        for first, second in zip(zip(*want, strict=True), zip(*got, strict=True), strict=True)
        if first[0].dtype.kind == "f"
    ]
    return float(np.mean(found)) if found else 0.0


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


def _share(want: Sequence[Array], got: Sequence[Array]) -> float:
    """The share of one output; (batches)."""
    error = 0.0
    for first, second in zip(want, got, strict=True):
        if first.shape != second.shape:
            return np.inf
        error += float(np.square(first.astype(np.float64) - second).sum())
    whole = spread(want)
    return error / whole if whole > 0 else float(error > 0)


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
