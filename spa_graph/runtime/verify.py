"""Comparing two networks on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph.errors import VerificationError

Array = NDArray[Any]

RELATIVE = {"e": 2e-2, "f": 2e-4, "d": 1e-9}
"""Largest difference allowed, as a share of the spread of what is compared, by type."""
ROUNDING = 256
"""... plus this many units of rounding of its largest value, which no order of summation avoids."""
NOISE = 8
"""... plus this many times what rounding alone was seen to change there, if that was measured."""
NOISE_LIMIT = 5e-2
"""... which may not come to more than this share of the spread: noise proves nothing."""
SATURATED = 1e-6
"""What lies this close to 0, 1 or -1 may be a softmax, sigmoid or tanh that inputs saturated."""
ENOUGH = 32
"""Slices of an output with at least this many elements are compared by their own spread, so that
large numbers (boxes) don't hide small ones (scores) beside them."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far an output is from its reference.

    error: the largest absolute difference, in units of the spread of the reference around it.
    tolerated: the largest error that passes.
    """

    output: str
    error: float
    tolerated: float
    shown: bool = True
    """Whether the reference's output varied: equality of two constants proves little."""
    alive: bool = True
    """Whether outputs still depend on inputs on which those of the unpruned network do."""

    @property
    def share(self) -> float:
        """The error as a share of what is tolerated."""
        return self.error / self.tolerated


def compare(
    names: Sequence[str],
    got: Sequence[Array],
    want: Sequence[Array],
    noise: Sequence[Array | None] | None = None,
) -> Agreement:
    """The worst output; floats within tolerance, anything else equal.

    Args:
        noise: how far each element of `want` moves by rounding alone, where that was measured.

    Raises:
        VerificationError: an output differs, or the reference is all NaN so nothing is shown.
    """
    noise = noise if noise is not None else [None] * len(names)
    found = [_compare_output(*each) for each in zip(names, got, want, noise, strict=True)]
    return max(found, key=lambda agreement: (agreement.share, agreement.shown))


def varies(output: Array) -> bool:
    """Whether an output shows anything: it has two different numbers."""
    return output.size > 1 and bool((output != output.flat[0]).any())


def saturated(output: Array) -> bool:
    """Whether nothing but the ends of a softmax, sigmoid or tanh is seen: differences drown."""
    if output.dtype.kind != "f":
        return False
    whole = np.clip(np.round(output), -1, 1)
    return bool((np.abs(output - whole) <= SATURATED).all())


def _compare_output(name: str, got: Array, want: Array, noise: Array | None) -> Agreement:
    if got.shape != want.shape or got.dtype != want.dtype:
        raise VerificationError(
            f"output `{name}` is {got.dtype}{list(got.shape)} "
            f"instead of {want.dtype}{list(want.shape)}"
        )
    if got.dtype.kind != "f":
        if not np.array_equal(got, want):
            share = float(np.mean(got != want))
            raise VerificationError(f"output `{name}` differs in {share:.1%} of its elements")
        return Agreement(name, 0.0, 1.0, shown=varies(want))
    if not want.size:
        return Agreement(name, 0.0, 1.0, shown=False)
    return _compare_floats(name, got, want, noise)


def _compare_floats(name: str, got: Array, want: Array, noise: Array | None) -> Agreement:
    finite = np.isfinite(want)
    if not finite.any():
        raise VerificationError(f"output `{name}` is NaN or infinite on random input: no proof")
    if not np.array_equal(finite, np.isfinite(got)):
        raise VerificationError(f"output `{name}` has NaN or infinity in other places")
    relative, unit = RELATIVE[want.dtype.char], float(np.finfo(want.dtype).eps)
    first, second = (np.where(finite, each, 0).astype(np.float64) for each in (got, want))
    rounding = np.zeros_like(second) if noise is None else np.where(finite, noise, 0)
    whole = _spread(second.reshape(1, -1))[0]
    found = []
    for rows in _slicings(second):
        wanted, difference, noisy = (rows(x) for x in (second, np.abs(first - second), rounding))
        spread = np.maximum(_spread(wanted), 1e-3 * whole)
        tolerated = relative + ROUNDING * unit * np.abs(wanted).max(1) / spread
        tolerated += np.minimum(NOISE * noisy.max(1) / spread, NOISE_LIMIT)
        error = difference.max(1) / spread
        at = int((error / tolerated).argmax())
        found.append(Agreement(name, float(error[at]), float(tolerated[at]), varies(want)))
    worst = max(found, key=lambda agreement: agreement.share)
    if worst.share > 1:
        raise VerificationError(
            f"output `{name}` differs by {worst.error:.2g} of its spread "
            f"(tolerated: {worst.tolerated:.2g})"
        )
    return worst


def _spread(rows: Array) -> Array:
    spread = rows.max(1) - rows.min(1)
    return np.where(spread > 0, spread, np.maximum(np.abs(rows).max(1), 1e-30))


def _slicings(output: Array) -> list[Callable[[Array], Array]]:
    """Ways to cut an output into rows that are compared each by itself."""

    def along(axis: int) -> Callable[[Array], Array]:
        return lambda values: np.moveaxis(values, axis, 0).reshape(output.shape[axis], -1)

    axes = {1, output.ndim - 1} if output.ndim > 1 else set()
    fine = [axis for axis in sorted(axes) if output.size // output.shape[axis] >= ENOUGH]
    return [along(axis) for axis in fine] or [lambda values: values.reshape(1, -1)]
