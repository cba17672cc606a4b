"""What differs between two networks: weights, costs, and what they compute."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from spa_graph.errors import ModelError, OptionError
from spa_graph.frontends.onnx.sizes import InputShapes
from spa_graph.passes.cost import counts_as_weight
from spa_graph.passes.network import Analysis, prepare
from spa_graph.passes.options import Options, Progress, Timer
from spa_graph.passes.report import inspection
from spa_graph.passes.statistics.distortion import alignment, distortion
from spa_graph.runtime.calibration import calibration, check_source, to_be_matched
from spa_graph.runtime.inputs import Feeds
from spa_graph.runtime.machine import versions
from spa_graph.runtime.sessions import open_session, run
from spa_graph.runtime.verify import Array
from spa_graph.studies.opened import Opened, open_network, same_inputs

RANDOM_RUNS = 16
"""How many runs on random inputs outputs are compared on, where no data is given."""


def compare(
    before: str | os.PathLike[str],
    after: str | os.PathLike[str],
    *,
    data: Any = None,
    samples: int = 256,
    preprocess: str | None = None,
    seed: int = 0,
    input_shapes: InputShapes | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare two networks with the same inputs and outputs.

    Args:
        before, after: paths. Operators are matched by the name of their first output, weights by
            their names, neither of which pruning changes.
        data: samples to compare outputs on, as `calibrate` of `prune`; random inputs if None.
        samples, preprocess, seed: of the data.
        input_shapes: sizes of inputs by name, where a guess wouldn't fit.

    Raises:
        OptionError: they take other inputs or give other outputs, or the data doesn't fit.
        ModelError: a network can't be read or run.
    """
    check(data, preprocess)
    timer = Timer(progress)
    options = Options(input_shapes=input_shapes or {})
    with timer.step("load"):
        opened = [open_network(path, input_shapes=input_shapes) for path in (before, after)]
        same_inputs(*opened)
    analyses = [prepare(each.model, options, timer) for each in opened]
    with timer.step("compare") as step:
        batches = _batches(opened[0], data, samples, preprocess, seed)
        outputs = _outputs(opened, batches, step)
    counts = [inspection(analysis) for analysis in analyses]
    totals = [
        {
            "file": os.fspath(each.path),
            "bytes": each.bytes,
            "flops": count["flops"],
            "params": int(count["params"]),
            "operators": count["model"]["operators"],
        }
        for each, count in zip(opened, counts, strict=True)
    ]
    return {
        "versions": versions(),
        "before": totals[0],
        "after": totals[1],
        "ratio": {
            key: totals[1][key] / totals[0][key] if totals[0][key] else 1.0
            for key in ("bytes", "flops", "params")
        },
        "weights": list(_weights(*analyses)),
        "operators": _operators(*(count["operators"] for count in counts)),
        "data": "random input" if data is None else batches.source,
        "outputs": outputs,
    }


def check(data: Any, preprocess: str | None) -> None:
    """All that can be said against samples before the networks are read.

    Raises:
        OptionError: they can't be had.
    """
    if data is not None:
        check_source(data, preprocess)
    if to_be_matched(data):
        raise OptionError(f"{data} is for pruning; compare on data-free, or on a file")


@dataclass(frozen=True, slots=True, eq=False)
class _Random:
    """Random inputs, a run for each seed."""

    network: Opened
    seed: int

    source = "random input"

    def __len__(self) -> int:
        return RANDOM_RUNS

    def __iter__(self) -> Iterator[Feeds]:
        return (self.network.random_feeds(self.seed + n) for n in range(RANDOM_RUNS))


def _batches(network: Opened, data: Any, samples: int, preprocess: str | None, seed: int) -> Any:
    if data is None:
        return _Random(network, seed)
    return calibration(
        data,
        network.graph,
        samples=samples,
        seed=seed,
        preprocess=preprocess,
        model=network.model,
    )


def _weights(before: Analysis, after: Analysis) -> Iterator[dict[str, Any]]:
    """Weights whose shapes differ, or that only one network has."""
    shapes = [
        {n: list(p.shape) for n, p in analysis.graph.parameters.items() if counts_as_weight(p)}
        for analysis in (before, after)
    ]
    owners = [_owners(analysis) for analysis in (before, after)]
    for name in dict.fromkeys([*shapes[0], *shapes[1]]):
        first, second = shapes[0].get(name), shapes[1].get(name)
        if first != second:
            owner = owners[0].get(name) or owners[1].get(name, "")
            yield {"name": name, "operator": owner, "before": first, "after": second}


def _owners(analysis: Analysis) -> dict[str, str]:
    """The operator that reads each weight first."""
    owners: dict[str, str] = {}
    for operator in analysis.graph.operators:
        for name in operator.inputs:
            owners.setdefault(name, str(operator))
    return owners


def _operators(
    before: Iterable[dict[str, Any]], after: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """FLOPs and parameters of operators where they differ; None where there is no such operator."""
    rows = [{row["output"]: row for row in side} for side in (before, after)]
    found = []
    for output in dict.fromkeys([*rows[0], *rows[1]]):
        first, second = rows[0].get(output), rows[1].get(output)
        some = first or second or {}
        row = {"name": some["name"], "type": some["type"]}
        for key in ("flops", "params"):
            row[f"{key}_before"] = first[key] if first else None
            row[f"{key}_after"] = second[key] if second else None
        if any(row[f"{key}_before"] != row[f"{key}_after"] for key in ("flops", "params")):
            found.append(row)
    return found


# --- what they compute ----------------------------------------------------------------------------


def _outputs(opened: list[Opened], batches: Any, step: Any) -> list[dict[str, Any]]:
    sessions = [open_session(each.path) for each in opened]
    names = [[value.name for value in session.get_outputs()] for session in sessions]
    if names[0] != names[1]:
        raise OptionError(
            f"{opened[1].path.name} gives {', '.join(names[1])}, {opened[0].path.name} gives "
            f"{', '.join(names[0])}: outputs can't be compared"
        )
    got: list[list[list[Array]]] = [[], []]
    for number, feeds in enumerate(batches):
        for side, session in zip(got, sessions, strict=True):
            side.append(run(session, feeds))
        step(number + 1, len(batches))
    return [
        _difference(name, [batch[n] for batch in got[0]], [batch[n] for batch in got[1]])
        for n, name in enumerate(names[0])
    ]


def _difference(name: str, want: list[Array], got: list[Array]) -> dict[str, Any]:
    if [each.shape for each in want] != [each.shape for each in got]:
        raise ModelError(
            f"output `{name}` has shape {list(got[0].shape)} instead of {list(want[0].shape)}"
        )
    if want[0].dtype.kind != "f":
        unequal = sum(int((x != y).sum()) for x, y in zip(want, got, strict=True))
        return {"name": name, "unequal": unequal / max(sum(x.size for x in want), 1)}
    pairs = [([x], [y]) for x, y in zip(want, got, strict=True)]
    sides = [[pair[side] for pair in pairs] for side in (0, 1)]
    return {
        "name": name,
        "largest": max(
            float(np.abs(x.astype(np.float64) - y).max(initial=0))
            for x, y in zip(want, got, strict=True)
        ),
        "distortion": distortion(*sides),
        "correlation": alignment(*sides),
        **_same_top(want, got),
    }


def _same_top(want: list[Array], got: list[Array]) -> dict[str, float]:
    """How often the largest element along the last axis is the same, where there are several."""
    if want[0].ndim < 2 or want[0].shape[-1] < 2:
        return {}
    same = [x.argmax(-1) == y.argmax(-1) for x, y in zip(want, got, strict=True)]
    return {"same_top": float(np.mean(np.concatenate([each.reshape(-1) for each in same])))}
