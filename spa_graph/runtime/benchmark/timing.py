"""Timing functions in turn, so that what slows the machine down slows all of them down."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEAST, MOST = 5, 200
CONFIDENCE = 0.95
RESAMPLES = 2000
WARM_UP = 0.1
"""The share of the time that runs which don't count may take; the first run never counts."""


@dataclass(frozen=True, slots=True, eq=False)
class Timing:
    """The times of one function, in milliseconds, in the order of the runs; (runs,)."""

    ms: NDArray[np.float64]

    @property
    def median(self) -> float:
        return float(np.median(self.ms))

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the runs took less than the first, a quarter more than the second."""
        low, high = np.percentile(self.ms, (25, 75))
        return float(low), float(high)


def interleaved(
    functions: Sequence[Callable[[], object]],
    *,
    seconds: float,
    most: int = MOST,
    progress: Callable[[int, int], None] | None = None,
) -> list[Timing]:
    """Run functions in turn for about `seconds`, at least 5 and at most `most` times each.

    Every second round goes backwards, so that none always runs behind the same other one.
    """
    _warm_up(functions, WARM_UP * seconds)
    times: list[list[float]] = [[] for _ in functions]
    start = time.perf_counter()
    rounds = 0
    while rounds < most and (rounds < LEAST or time.perf_counter() - start < seconds):
        order = range(len(functions))
        for number in order if rounds % 2 == 0 else reversed(order):
            times[number].append(_milliseconds(functions[number]))
        rounds += 1
        if progress:
            spent = (time.perf_counter() - start) / seconds if seconds else 1.0
            progress(int(100 * min(max(spent, rounds / most), 1)), 100)
    return [Timing(np.array(own)) for own in times]


def _warm_up(functions: Sequence[Callable[[], object]], seconds: float) -> None:
    stop = time.perf_counter() + seconds
    for number in range(LEAST):
        if number and time.perf_counter() > stop:
            return
        for function in functions:
            function()


def _milliseconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return 1e3 * (time.perf_counter() - start)


def ratio_interval(before: Timing, after: Timing) -> tuple[float, float]:
    """A 95% confidence interval of the ratio of medians, after / before, over paired runs.

    Bootstrap of the pairs, percentile method (Efron and Tibshirani 1993, chapter 13).
    """
    runs = len(before.ms)
    # scipy.stats has this too, but every prune would pay for importing it
    pairs = np.random.default_rng(0).integers(0, runs, (RESAMPLES, runs))
    medians = [np.median(timing.ms[pairs], axis=1) for timing in (before, after)]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(medians[1] / medians[0], (tail, 100 - tail))
    return float(low), float(high)
