"""Measuring candidates on this machine: the network's latency, and how its nodes share it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spa_graph.frontends.onnx import files
from spa_graph.frontends.onnx.sizes import InputShapes
from spa_graph.passes.network import Analysis, cut
from spa_graph.passes.options import StepProgress
from spa_graph.passes.sizes import Counts
from spa_graph.plan import Kept
from spa_graph.runtime.benchmark.profile import NodeTime, profiling
from spa_graph.runtime.benchmark.timing import interleaved
from spa_graph.runtime.providers import CPU
from spa_graph.runtime.sessions import Feeds, Session, open_session, run

TOGETHER = 8
"""So many networks run in turn, next to the original."""
OPENED = 1 << 30
"""Bytes of networks that are open at once."""
SECONDS = 0.2
"""How long each candidate runs for its latency, and again for its profile."""
MOST_RUNS, LEAST_RUNS = 100, 7


@dataclass(frozen=True, slots=True)
class Conditions:
    """What latency is measured under: inputs, ONNX Runtime's provider, threads (0: all cores)."""

    feeds: Feeds
    provider: str = CPU
    threads: int = 0

    def open(self, path: Path) -> Session:
        return open_session(path, provider=self.provider, threads=self.threads)


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """A candidate that was measured.

    counts: how many channels each group keeps, (groups,).
    ms: the network's latency, at a speed of the machine at which the original takes what it did at
        first.
    nodes: the times of what ONNX Runtime makes of it.
    """

    counts: Counts
    ms: float
    nodes: list[NodeTime] = field(default_factory=list)


class Laboratory:
    """Cuts candidates and measures them next to the original.

    Args:
        scratch: a folder for their files.
        order: per group its channels, from most to least important; the first ones are kept.
    """

    def __init__(
        self,
        analysis: Analysis,
        conditions: Conditions,
        scratch: Path,
        order: Sequence[NDArray[np.int64]],
        input_shapes: InputShapes,
    ) -> None:
        self.analysis = analysis
        self.conditions = conditions
        self._scratch = scratch
        self._order = order
        self._input_shapes = input_shapes
        self._original = scratch / "latency-original.onnx"
        files.write(analysis.original, self._original)
        functions = [partial(run, conditions.open(self._original), conditions.feeds)]
        self.original_ms = interleaved(functions, seconds=4 * SECONDS)[0].median

    def observe(
        self,
        candidates: Sequence[Counts],
        progress: StepProgress | None = None,
        seconds: float = SECONDS,
    ) -> list[Observation]:
        """Measure candidates, each given by its kept counts.

        Raises:
            RewriteError: one can't be built.
            ModelError: ONNX Runtime rejects one.
        """
        found: list[Observation] = []
        for batch in self._batches(candidates):
            found += self._measured(batch, seconds)
            if progress:
                progress(len(found), len(candidates))
        return found

    def kept(self, counts: Counts) -> Kept:
        """The most important channels of each group; (channels,)."""
        kept = np.zeros(self.analysis.coupling.count, bool)
        for order, count in zip(self._order, counts.tolist(), strict=True):
            kept[order[:count]] = True
        return kept

    def _batches(self, candidates: Sequence[Counts]) -> Iterator[Sequence[Counts]]:
        size = int(np.clip(OPENED // max(files.size(self.analysis.original), 1), 1, TOGETHER))
        for start in range(0, len(candidates), size):
            yield candidates[start : start + size]

    def _measured(self, batch: Sequence[Counts], seconds: float) -> list[Observation]:
        paths = [self._cut(counts, number) for number, counts in enumerate(batch)]
        latencies = self._latencies(paths, seconds)
        return [
            Observation(counts, ms, self._nodes(path))
            for counts, ms, path in zip(batch, latencies, paths, strict=True)
        ]

    def _cut(self, counts: Counts, number: int) -> Path:
        model, _, _ = cut(self.analysis, self.kept(counts), self._input_shapes)
        path = self._scratch / f"latency-{number}.onnx"
        files.write(model, path)
        return path

    def _latencies(self, paths: Sequence[Path], seconds: float) -> list[float]:
        """Medians; where the original was slower or faster than at first, so were the others."""
        conditions = self.conditions
        sessions = [conditions.open(path) for path in (self._original, *paths)]
        functions = [partial(run, session, conditions.feeds) for session in sessions]
        timings = interleaved(functions, seconds=seconds * len(functions), most=MOST_RUNS)
        original, *others = (timing.median for timing in timings)
        return [ms * self.original_ms / original for ms in others]

    def _nodes(self, path: Path) -> list[NodeTime]:
        provider, threads = self.conditions.provider, self.conditions.threads
        with profiling(path, provider=provider, threads=threads) as profiled:
            stop, runs = time.perf_counter() + SECONDS, 0
            while runs < LEAST_RUNS or (runs < MOST_RUNS and time.perf_counter() < stop):
                run(profiled.session, self.conditions.feeds)
                runs += 1
            return profiled.times(runs)
