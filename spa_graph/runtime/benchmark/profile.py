"""Time per operator, from ONNX Runtime's own profile of the network as it runs it.

ONNX Runtime fuses and reorders operators first, so that names and types are those of what runs,
which aren't always those of the file.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spa_graph.runtime.benchmark.timing import LEAST, MOST
from spa_graph.runtime.providers import CPU
from spa_graph.runtime.sessions import Feeds, Session, open_session, run

PROFILED = 0.25
"""The share of the time for latency that each network is profiled for, besides."""
_SUFFIX = "_kernel_time"
_NUMBER = re.compile(r"(_\d+)+$")


Sizes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class NodeTime:
    """What one operator takes in a run of the network, in milliseconds, and what of.

    inputs, outputs: shapes of the tensors that it reads and writes; weights that ONNX Runtime has
        repacked are missing. Empty for a part of the network that a provider has compiled, since
        what it reads and writes says nothing of what is within.
    """

    name: str
    type: str
    ms: float
    inputs: Sizes
    outputs: Sizes


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
    with profiling(model, provider=provider, threads=threads) as profiled:
        stop = time.perf_counter() + seconds
        runs = 0
        while runs <= LEAST or (runs <= MOST and time.perf_counter() < stop):
            run(profiled.session, feeds)
            runs += 1
        found = profiled.times(runs)
    return [OperatorTime(each.name, each.type, each.ms) for each in found]


class Profiled:
    """A session that ONNX Runtime profiles."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def times(self, runs: int) -> list[NodeTime]:
        """End profiling; in the order in which operators run. `runs` is how many there were."""
        events = json.loads(Path(self.session.end_profiling()).read_text(encoding="utf-8"))
        return _per_operator(events, runs)


@contextmanager
def profiling(model: Path, *, provider: str = CPU, threads: int = 0) -> Iterator[Profiled]:
    """Open a session that is profiled; its file is gone after the block."""
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "profile"
        yield Profiled(open_session(model, provider=provider, threads=threads, profile=prefix))


def _per_operator(events: Iterable[Mapping[str, Any]], runs: int) -> list[NodeTime]:
    """The medians over runs but the first; an operator in a loop runs several times in each."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    shapes: dict[tuple[str, str], tuple[Sizes, Sizes]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            kind, compiled = _type(event["args"])
            key = event["name"].removesuffix(_SUFFIX), kind
            times[key].append(event["dur"] / 1e3)
            if key not in shapes:
                sizes = _shapes(event, "input"), _shapes(event, "output")
                shapes[key] = ((), ()) if compiled else sizes
    found = []
    for (name, kind), own in times.items():
        per_run = len(own) / runs
        if per_run.is_integer():
            ms = float(np.median(np.reshape(own, (runs, -1))[1:].sum(1)))
        else:  # it doesn't run as often in each
            ms = float(np.sum(own)) / runs
        found.append(NodeTime(name, kind, ms, *shapes[name, kind]))
    return found


def _type(node: Mapping[str, Any]) -> tuple[str, bool]:
    """The operator's type; and whether it is none but a part of the network that a provider has
    compiled, which it numbers."""
    kind: str = node["op_name"]
    plain = _NUMBER.sub("", kind) if node.get("provider", CPU) != CPU else kind
    return plain, plain != kind


def _shapes(event: Mapping[str, Any], side: str) -> Sizes:
    """ONNX Runtime lists tensors as {type: shape}."""
    listed = event["args"].get(f"{side}_type_shape", ())
    return tuple(tuple(shape) for tensor in listed for shape in tensor.values())


def by_type(times: Iterable[OperatorTime]) -> dict[str, float]:
    """Milliseconds per operator type, the largest first."""
    sums: dict[str, float] = defaultdict(float)
    for each in times:
        sums[each.type] += each.ms
    return dict(sorted(sums.items(), key=lambda item: -item[1]))
