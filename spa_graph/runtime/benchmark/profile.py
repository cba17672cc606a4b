"""Time per operator, from ONNX Runtime's own profile of the network as it runs it.

ONNX Runtime fuses and reorders operators first, so that names and types are those of what runs,
which aren't always those of the file.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spa_graph.runtime.benchmark.timing import LEAST, MOST
from spa_graph.runtime.providers import CPU
from spa_graph.runtime.sessions import Feeds, open_session, run

PROFILED = 0.25
"""The share of the time for latency that each network is profiled for, besides."""
_SUFFIX = "_kernel_time"


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """What one operator takes in a run of the network, in milliseconds: the median."""

    name: str
    type: str
    ms: float


def operator_times(
    model: Path, feeds: Feeds, *, seconds: float, provider: str = CPU, threads: int = 0
) -> list[OperatorTime]:
    """Profile a network for about `seconds`; in the order in which its operators run.

    Profiling itself takes time, a few microseconds per operator: the sum is more than the latency.
    """
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "profile"
        session = open_session(model, provider=provider, threads=threads, profile=prefix)
        stop = time.perf_counter() + seconds
        runs = 0
        while runs <= LEAST or (runs <= MOST and time.perf_counter() < stop):
            run(session, feeds)
            runs += 1
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return _per_operator(events, runs)


def _per_operator(events: Iterable[Mapping[str, Any]], runs: int) -> list[OperatorTime]:
    """The medians over runs but the first; an operator in a loop runs several times in each."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            key = event["name"].removesuffix(_SUFFIX), event["args"]["op_name"]
            times[key].append(event["dur"] / 1e3)
    found = []
    for (name, kind), own in times.items():
        per_run = len(own) / runs
        if per_run.is_integer():
            ms = float(np.median(np.reshape(own, (runs, -1))[1:].sum(1)))
        else:  # it doesn't run as often in each
            ms = float(np.sum(own)) / runs
        found.append(OperatorTime(name, kind, ms))
    return found


def by_type(times: Iterable[OperatorTime]) -> dict[str, float]:
    """Milliseconds per operator type, the largest first."""
    sums: dict[str, float] = defaultdict(float)
    for each in times:
        sums[each.type] += each.ms
    return dict(sorted(sums.items(), key=lambda item: -item[1]))
