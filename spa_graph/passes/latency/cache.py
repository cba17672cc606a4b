"""Measurements that are kept in the user's cache folder: they hold for one network's structure on
one machine, under one provider, number of threads, and sizes of inputs."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from spa_graph.frontends.onnx import files
from spa_graph.passes.latency.laboratory import Conditions, Observation
from spa_graph.passes.network import Analysis
from spa_graph.runtime.benchmark.profile import NodeTime
from spa_graph.runtime.machine import machine, versions

FORMAT = 1


@dataclass(frozen=True, slots=True, eq=False)
class Measurements:
    """Candidates of one network, and what their counts are multiples of.

    original_ms: what the original took then.
    """

    unit: int
    original_ms: float
    observations: list[Observation]


def cached(path: Path) -> Measurements | None:
    """What was measured before, if that can be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        data = json.loads(path.read_text(encoding="utf-8"))
        observations = [_observation(each) for each in data["observations"]]
        return Measurements(int(data["unit"]), float(data["original_ms"]), observations)
    return None


def keep(path: Path, found: Measurements) -> None:
    """Write it; a cache that can't be written is none."""
    observations = [
        {"counts": each.counts.tolist(), "ms": each.ms, "nodes": [asdict(n) for n in each.nodes]}
        for each in found.observations
    ]
    data = {"unit": found.unit, "original_ms": found.original_ms, "observations": observations}
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.staged(path) as draft:
            draft.write_text(json.dumps(data), encoding="utf-8")


def place(analysis: Analysis, conditions: Conditions, choices: Sequence[Any]) -> Path:
    """The file for a network under these conditions; `choices` are what else decides about it."""
    graph = analysis.graph
    operators = [
        (o.kind, o.inputs, o.outputs, sorted((k, str(v)) for k, v in o.attributes.items()))
        for o in graph.operators
    ]
    told = [
        FORMAT, machine(), versions()["onnxruntime"], conditions.provider, conditions.threads,
        {name: array.shape for name, array in conditions.feeds.items()}, operators,
        graph.shapes,
        {name: parameter.shape for name, parameter in graph.parameters.items()},
        [(group.name, group.size, group.least) for group in analysis.groups], choices,
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(told, default=str).encode()).hexdigest()[:32]
    return Path(platformdirs.user_cache_dir("spa-prune")) / "latency" / f"{key}.json"


def _observation(data: dict[str, Any]) -> Observation:
    nodes = [
        NodeTime(n["name"], n["type"], n["ms"], _shapes(n["inputs"]), _shapes(n["outputs"]))
        for n in data["nodes"]
    ]
    return Observation(np.array(data["counts"], np.int64), float(data["ms"]), nodes)


def _shapes(listed: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shape) for shape in listed)
