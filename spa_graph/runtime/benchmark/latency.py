"""Latency of two networks, measured side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spa_graph.runtime.benchmark.timing import Timing, interleaved, ratio_interval
from spa_graph.runtime.providers import CPU
from spa_graph.runtime.sessions import Feeds, open_session, run


@dataclass(frozen=True, slots=True, eq=False)
class Latency:
    """Two networks' times over paired, interleaved runs."""

    timings: tuple[Timing, Timing]

    @property
    def before(self) -> float:
        """The median, in milliseconds."""
        return self.timings[0].median

    @property
    def after(self) -> float:
        """The median, in milliseconds."""
        return self.timings[1].median

    @property
    def runs(self) -> int:
        return len(self.timings[0].ms)

    @property
    def speedup(self) -> float:
        """Median of the ratios of the pairs would hide drift; this is the ratio of medians."""
        return self.before / self.after

    @property
    def interval(self) -> tuple[float, float]:
        """Where after / before lies with 95% confidence."""
        return ratio_interval(*self.timings)


def measure(
    before: Path,
    after: Path,
    feeds: Feeds,
    *,
    seconds: float = 2.0,
    provider: str = CPU,
    threads: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Latency:
    """Run both networks in turn for about `seconds`, at least 5 and at most 200 times each."""
    sessions = [open_session(path, provider=provider, threads=threads) for path in (before, after)]
    first, second = interleaved(
        [partial(run, session, feeds) for session in sessions],
        seconds=seconds,
        progress=progress,
    )
    return Latency((first, second))
