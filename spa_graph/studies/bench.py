"""How fast networks are next to each other, and how much memory they take."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from spa_graph.errors import OptionError
from spa_graph.frontends.onnx.sizes import InputShapes
from spa_graph.passes.options import Progress, Timer
from spa_graph.runtime.benchmark import (
    PROFILED,
    Timing,
    interleaved,
    operator_times,
    ratio_interval,
)
from spa_graph.runtime.benchmark.memory import peak_memory
from spa_graph.runtime.benchmark.profile import by_type
from spa_graph.runtime.inputs import Feeds
from spa_graph.runtime.machine import cores, machine, versions
from spa_graph.runtime.providers import provider_named
from spa_graph.runtime.sessions import open_session, run
from spa_graph.studies.opened import Opened, open_network, same_inputs

MOST_RUNS = 1000


def bench(
    models: Sequence[str | os.PathLike[str]],
    *,
    provider: str = "cpu",
    threads: int = 0,
    seconds: float = 5.0,
    batch: int | None = None,
    dynamic: Mapping[str, int] | None = None,
    input_shapes: InputShapes | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure networks that take the same inputs, in turn.

    Args:
        models: paths; ratios are those to the first.
        provider: an execution provider of the installed onnxruntime, such as "cuda".
        threads: 0 stands for all cores that this process may use.
        seconds: how long to measure, at most 1000 runs of each; warm-up, memory and profiles aside.
        batch, dynamic, input_shapes: sizes of the inputs, see `open_network`.

    Returns:
        Times in milliseconds, throughput in samples per second, peak memory in bytes, times per
        operator, ratios with their 95% confidence intervals, the machine and versions.

    Raises:
        OptionError: there is no such provider, or an input has no such axis.
        ModelError: a network can't be read or run.
    """
    if not models:
        raise OptionError("give at least one network")
    kind = provider_named(provider)
    timer = Timer(progress)
    with timer.step("load"):
        opened = [
            open_network(each, input_shapes=input_shapes, batch=batch, dynamic=dynamic)
            for each in models
        ]
        feeds = opened[0].random_feeds()
        for each in opened[1:]:
            same_inputs(opened[0], each)
        chosen: dict[str, Any] = {"provider": kind, "threads": threads}
        sessions = [open_session(each.path, **chosen) for each in opened]
    with timer.step("measure") as step:
        functions = [partial(run, session, feeds) for session in sessions]
        timings = interleaved(functions, seconds=seconds, most=MOST_RUNS, progress=step)
    del functions, sessions
    return {
        "machine": machine(),
        "versions": versions(),
        "provider": kind,
        "threads": threads or cores(),
        "inputs": {name: list(array.shape) for name, array in feeds.items()},
        "batch": opened[0].batch,
        "runs": len(timings[0].ms),
        "models": _details(opened, timings, feeds, chosen, PROFILED * seconds, timer),
        "ratios": [_ratio(timings[0], timing) for timing in timings[1:]],
    }


def _details(
    opened: Sequence[Opened],
    timings: Sequence[Timing],
    feeds: Feeds,
    chosen: Mapping[str, Any],
    seconds: float,
    timer: Timer,
) -> list[dict[str, Any]]:
    found = []
    for network, timing in zip(opened, timings, strict=True):
        with timer.step("memory"):
            memory = peak_memory(network.path, feeds, **chosen)
        with timer.step("profile"):
            times = operator_times(network.path, feeds, seconds=seconds, **chosen)
        found.append(
            {
                "file": os.fspath(network.path),
                "bytes": network.bytes,
                "median_ms": timing.median,
                "quartiles_ms": list(timing.quartiles),
                "throughput": 1e3 * network.batch / timing.median,
                "peak_memory": memory,
                "operator_types": by_type(times),
                "operators": [asdict(each) for each in times],
            }
        )
    return found


def _ratio(first: Timing, other: Timing) -> dict[str, Any]:
    return {"median": other.median / first.median, "interval": list(ratio_interval(first, other))}
