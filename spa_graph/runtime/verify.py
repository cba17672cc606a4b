"""Comparing two networks on the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph.errors import VerificationError

Array = NDArray[Any]

RELATIVE = {"e": 2e-2, "f": 2e-4, "d": 1e-9}
"""Largest difference allowed, as a share of the output's spread, by floating-point type."""
ROUNDING = 256
"""... plus this many units of rounding of the output's largest value, which no order of
summation avoids."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far an output is from its reference.

    error: the largest absolute difference, in units of the spread of the reference output.
    tolerated: the largest error that passes.
    """

    output: str
    error: float
    tolerated: float

    @property
    def share(self) -> float:
        """The error as a share of what is tolerated."""
        return self.error / self.tolerated


def compare(names: Sequence[str], got: Sequence[Array], want: Sequence[Array]) -> Agreement:
    """The worst output; floats within tolerance, anything else equal.

    Raises:
        VerificationError: an output differs, or the reference is all NaN so nothing is shown.
    """
    found = [_compare_output(*each) for each in zip(names, got, want, strict=True)]
    return max(found, key=lambda agreement: agreement.share)


def varies(output: Array) -> bool:
    """Whether an output shows anything: it has two different numbers."""
    return output.size > 1 and bool((output != output.flat[0]).any())


def _compare_output(name: str, got: Array, want: Array) -> Agreement:
    if got.shape != want.shape or got.dtype != want.dtype:
        raise VerificationError(
            f"output `{name}` is {got.dtype}{list(got.shape)} instead of {want.dtype}{list(want.shape)}"
        )
    if got.dtype.kind != "f":
        if not np.array_equal(got, want):
            share = float(np.mean(got != want))
            raise VerificationError(f"output `{name}` differs in {share:.1%} of its elements")
        return Agreement(name, 0.0, 1.0)
    if not want.size:
        return Agreement(name, 0.0, 1.0)
    return _compare_floats(name, got, want)


def _compare_floats(name: str, got: Array, want: Array) -> Agreement:
    finite = np.isfinite(want)
    if not finite.any():
        raise VerificationError(f"output `{name}` is NaN or infinite on random input: no proof")
    if not np.array_equal(finite, np.isfinite(got)):
        raise VerificationError(f"output `{name}` has NaN or infinity in other places")
    first, second = got[finite].astype(np.float64), want[finite].astype(np.float64)
    spread = float(second.max() - second.min()) or float(np.abs(second).max()) or 1.0
    precision = float(np.finfo(want.dtype).eps) * float(np.abs(second).max())
    tolerated = RELATIVE[want.dtype.char] + ROUNDING * precision / spread
    error = float(np.abs(first - second).max()) / spread
    if error > tolerated:
        raise VerificationError(
            f"output `{name}` differs by {error:.2g} of its spread (tolerated: {tolerated:.2g})"
        )
    return Agreement(name, error, tolerated)
