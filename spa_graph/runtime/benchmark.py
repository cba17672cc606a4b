"""Latency of two networks, measured side by side."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spa_graph.runtime.sessions import Feeds, open_session, run


@dataclass(frozen=True, slots=True)
class Latency:
    """Medians over paired, interleaved runs, in milliseconds."""

    before: float
    after: float
    runs: int

    @property
    def speedup(self) -> float:
        """Median of the ratios of the pairs would hide drift; this is the ratio of medians."""
        return self.before / self.after


def measure(before: Path, after: Path, feeds: Feeds, *, seconds: float = 2.0) -> Latency:
    """Run both networks in turn for about `seconds`, at least 5 and at most 200 times each."""
    sessions = [open_session(before), open_session(after)]
    for session in sessions:
        run(session, feeds)  # warm-up: first-run allocations
    times: list[list[float]] = [[], []]
    stop = time.perf_counter() + seconds
    while len(times[1]) < 200 and (len(times[1]) < 5 or time.perf_counter() < stop):
        for session, own in zip(sessions, times, strict=True):
            start = time.perf_counter()
            run(session, feeds)
            own.append(1e3 * (time.perf_counter() - start))
    medians = [float(np.median(own)) for own in times]
    return Latency(before=medians[0], after=medians[1], runs=len(times[1]))
