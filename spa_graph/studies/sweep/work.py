"""What a worker does: prunes one network by one criterion to some budgets.

It may be another process or machine; all that it says, it says by files in the sweep's folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spa_graph.api import Ready, Result, ready
from spa_graph.errors import OptionError, SpaError, warnings_told
from spa_graph.passes.cost import QUANTITIES
from spa_graph.passes.options import Progress
from spa_graph.passes.report import file_size
from spa_graph.passes.statistics.distortion import Outputs, distortion
from spa_graph.runtime.imported import beside_results, imported, said
from spa_graph.runtime.sessions import open_session, run
from spa_graph.studies.sweep.folder import Folder, Point


def prune_points(
    model: str,
    path: str,
    points: Sequence[Point],
    options: Mapping[str, Any],
    evaluation: str | None,
    progress: Progress | None = None,
) -> None:
    """Prune to each budget and record it; what can't be met or evaluated is recorded, too.

    Args:
        path: the sweep's folder.
        points: of one criterion, so that they share a calibration.
        options: those of `prune` but budget and criterion.
        evaluation: `package.module:function`, see `evaluate`.
    """
    folder, first = Folder(Path(path)), points[0]
    output = folder.model(first)
    with ready(
        model, output=output, criterion=first.criterion, progress=progress, **options
    ) as network:
        want = _outputs(network, Path(model))
        for point in points:
            folder.write_point(
                point, _pruned(network, folder.model(point), point, want, evaluation)
            )


def prune_points_apart(model: str, path: str, *share: Any) -> None:
    """As `prune_points` in a process that nobody looks at: warnings of ours are left as notes."""
    with warnings_told(Folder(Path(path)).write_note):
        prune_points(model, path, *share)


def _pruned(
    network: Ready, output: Path, point: Point, want: Outputs | None, evaluation: str | None
) -> dict[str, Any]:
    budget: dict[str, Any] = {point.quantity: point.asked}
    try:
        result = network.prune(output, **budget)
    except SpaError as error:
        return {"failure": str(error)}
    ratio, measured = result.report["ratio"], result.report.get("latency_budget")
    found: dict[str, Any] = {
        **{quantity: ratio[quantity] for quantity in QUANTITIES if quantity in ratio},
        "bytes": file_size(output),
        "file": output.name,
        "seconds": _seconds(result),
    }
    if measured is not None:
        found["ms"] = measured["measured_ms"]
        found["time"] = found["ms"] / measured["original_ms"]
    if want is not None:
        distance = distortion(want, _outputs(network, output) or [])
        found["error"] = distance if np.isfinite(distance) else None
    if evaluation is not None:
        try:
            found["metric"] = evaluate(evaluation, output)
        except OptionError as error:  # the other networks may do better
            found |= {"failure": str(error), "evaluated": False}
    return found


def _seconds(result: Result) -> float:
    return round(sum(result.report["seconds"].values()), 2)


def _outputs(network: Ready, path: Path) -> Outputs | None:
    """What a network gives for the calibration data that nothing was fitted to."""
    if network.calibrated is None:
        return None
    session = open_session(path)
    return [run(session, feeds) for feeds in network.calibrated.judging]


def evaluate(evaluation: str, model: Path) -> float:
    """What the user's function says of a network: a number, more is better; it gets the path.

    Raises:
        OptionError: it can't be imported, fails, or returns something else.
    """
    function = imported(evaluation)
    try:
        with beside_results():
            metric = float(function(os.fspath(model)))
    except (Exception, SystemExit) as error:  # it is the user's own function
        raise OptionError(
            f"--eval {evaluation} failed on {model.name}: {type(error).__name__}: {said(error)}"
        ) from error
    if not np.isfinite(metric):
        raise OptionError(f"--eval {evaluation} gave {metric} for {model.name}, which is no number")
    return metric
