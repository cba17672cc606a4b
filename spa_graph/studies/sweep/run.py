"""A sweep from its settings to its table."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

from spa_graph.api import checked
from spa_graph.errors import OptionError, SpaWarning
from spa_graph.frontends.onnx import files
from spa_graph.passes.options import KEPT, Options, Progress, StepProgress, Timer, plain
from spa_graph.passes.pipeline import check_data_taken
from spa_graph.runtime.benchmark import measure
from spa_graph.runtime.imported import imported
from spa_graph.runtime.inputs import Feeds
from spa_graph.runtime.machine import cores, machine, versions
from spa_graph.runtime.providers import provider_named
from spa_graph.studies.opened import open_network
from spa_graph.studies.sweep.engine import Backend, apart, run_all
from spa_graph.studies.sweep.folder import Folder, Point, fingerprint
from spa_graph.studies.sweep.frontier import cost_of, frontier
from spa_graph.studies.sweep.work import evaluate, prune_points, prune_points_apart


def sweep(
    model: str | os.PathLike[str],
    ratios: Sequence[float],
    *,
    output: str | os.PathLike[str],
    quantity: str = "flops",
    criteria: Sequence[str] = (),
    evaluation: str | None = None,
    jobs: int | None = None,
    backend: Backend = "loky",
    cluster: str | None = None,
    latency_seconds: float = 0.0,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Prune to every ratio by every criterion; what was done before isn't done again.

    Args:
        ratios: the shares to keep.
        quantity: of which: "flops", "params", "memory" or "latency", for which networks are pruned
            one after the other, so that none disturbs the measurements of another.
        output: a folder; on a cluster one that all machines see under this path.
        criteria: by default the one that `prune` would take.
        evaluation: `package.module:function` that gets the path of a network and returns a number,
            more is better. Without it the outputs' error on calibration data stands for quality.
        jobs: how many to prune at once, by default one for each core.
        cluster: the address of the scheduler, for the backends "dask" and "ray".
        latency_seconds: then measure each network next to the whole one for so long, one by one.
        options: those of `prune` but budget and criterion.

    Returns:
        All points of the folder, with what is on the Pareto frontier.

    Raises:
        OptionError: an option is wrong, or the folder holds a sweep of other settings.
        ModelError: the model can't be read or pruned.
    """
    points, jobs = check(
        ratios,
        output=output,
        quantity=quantity,
        criteria=criteria,
        evaluation=evaluation,
        jobs=jobs,
        backend=backend,
        cluster=cluster,
        **options,
    )
    path, folder = Path(model), Folder(Path(output).absolute())
    timer = Timer(progress)
    with timer.step("load"):
        settings = {"model": fingerprint(path), "eval": evaluation, **_plain(options)}
    if not overwrite:
        folder.check(settings)
    begun = folder.settings() == settings or folder.points()
    if overwrite or not begun:
        folder.begin(settings, _whole(path, evaluation, timer))
    folder.remove_drafts()
    folder.forget_failed()
    missing = folder.missing(points)
    try:
        if missing:
            work = prune_points_apart if apart(jobs, backend) else prune_points
            given = os.fspath(path.absolute()), os.fspath(folder.path)
            with timer.step("prune") as step:
                run_all(
                    work,
                    [(*given, share, options, evaluation) for share in shares(missing, jobs)],
                    jobs=jobs,
                    backend=backend,
                    address=cluster,
                    watch=_watch(folder, missing, step),
                )
        if latency_seconds:
            _measure(folder, path, latency_seconds, options, timer)
    finally:  # an interrupted sweep has a table as well
        folder.remove_drafts()
        found = _result(folder, path)
        if found["points"]:
            folder.write_table(found["points"])
    return found


def check(
    ratios: Sequence[float],
    *,
    output: str | os.PathLike[str],
    quantity: str = "flops",
    criteria: Sequence[str] = (),
    evaluation: str | None = None,
    jobs: int | None = None,
    backend: Backend = "loky",
    cluster: str | None = None,
    **options: Any,
) -> tuple[list[Point], int]:
    """All that can be said against a sweep before the network is read; args as those of `sweep`.

    Returns:
        The networks to make, and how many at once.

    Raises:
        OptionError: an option is wrong.
    """
    ours = {"latency_seconds", "overwrite"}
    options = {name: value for name, value in options.items() if name not in ours}
    points = _points(ratios, quantity, criteria, options)
    if evaluation is None and options.get("calibrate") is None:
        raise OptionError("a sweep needs a measure of quality: give --calibrate, --eval, or both")
    if cluster is not None and backend == "loky":
        raise OptionError("--cluster needs --backend dask or --backend ray")
    Folder(Path(output).absolute()).check_place()
    if evaluation is not None:
        imported(evaluation)
    return points, _jobs(jobs, quantity, backend)


def earlier(model: Path) -> dict[str, Any] | None:
    """The sweep of this very network in the folder beside it that `sweep` takes by default."""
    folder = Folder(model.with_name(f"{model.stem}.sweep"))
    settings = folder.settings()
    if settings is None or settings["model"] != fingerprint(model):
        return None
    return _result(folder, model)


def _points(
    ratios: Sequence[float], quantity: str, criteria: Sequence[str], options: dict[str, Any]
) -> list[Point]:
    if quantity not in KEPT:
        raise OptionError(f"a budget is one of {', '.join(KEPT)}, not {quantity}")
    runs = [
        checked(options | {quantity: ratio, "criterion": criterion})
        for ratio in ratios
        for criterion in criteria or (None,)
    ]
    check_data_taken(runs)
    found = [Point(each.criterion_name, quantity, float(getattr(each, quantity))) for each in runs]
    if not found:
        raise OptionError("give budgets, for example --flops 0.9:0.3:0.1")
    return list(dict.fromkeys(found))


def _jobs(asked: int | None, quantity: str, backend: Backend) -> int:
    """How many networks are pruned at once."""
    if quantity != "latency":
        return asked or cores()
    if backend != "loky" or (asked or 1) > 1:
        raise OptionError(
            "a sweep over --latency measures one network after the other on this machine: leave "
            "out --jobs and --backend"
        )
    return 1


def shares(points: Sequence[Point], jobs: int) -> list[list[Point]]:
    """What workers do each: points of one criterion, which share a calibration.

    If there are more workers than criteria, a criterion's points are dealt out to several.
    """
    by_criterion: dict[str, list[Point]] = {}
    for point in points:
        by_criterion.setdefault(point.criterion, []).append(point)
    each = max(1, ceil(jobs / max(len(by_criterion), 1)))
    return [
        own[start::each] for own in by_criterion.values() for start in range(min(each, len(own)))
    ]


def _watch(folder: Folder, missing: Sequence[Point], step: StepProgress) -> Callable[[], None]:
    """Tells how many points are done, and what workers have to say, when there is news."""
    done = -1
    said: set[str] = set()

    def watch() -> None:
        nonlocal done
        for text in folder.notes():
            if text not in said:
                said.add(text)
                warnings.warn(text, SpaWarning, stacklevel=2)
        now = len(missing) - len(folder.missing(missing))
        if now != done:
            done = now
            step(done, len(missing))

    return watch


def _whole(model: Path, evaluation: str | None, timer: Timer) -> dict[str, Any]:
    """What there is to say about the unpruned network."""
    with timer.step("evaluate"):
        data: dict[str, Any] = {"file": os.fspath(model), "bytes": files.size(files.load(model))}
        if evaluation is not None:
            data["metric"] = evaluate(evaluation, model)
    return data


def _measure(
    folder: Folder, model: Path, seconds: float, options: dict[str, Any], timer: Timer
) -> None:
    """Time the networks that weren't yet, after all else, so that nothing else runs meanwhile.

    Those that were pruned to a latency are timed again, as all others are.
    """
    waiting = [data for data in folder.points() if "file" in data and "time_interval" not in data]
    chosen = Options(**options)
    measured = partial(measure, provider=provider_named(chosen.provider), threads=chosen.threads)
    feeds: Feeds = {}
    if waiting:
        network = open_network(model, input_shapes=chosen.input_shapes, batch=chosen.batch)
        feeds = network.random_feeds()
    with timer.step("measure") as step:
        for number, data in enumerate(waiting):
            latency = measured(model, folder.path / data["file"], feeds, seconds=seconds)
            more = {
                "time": latency.after / latency.before,
                "time_interval": list(latency.interval),
                "ms": latency.after,
            }
            folder.write_point(Point.of(data), data | more)
            step(number + 1, len(waiting))


def _result(folder: Folder, model: Path) -> dict[str, Any]:
    points = folder.points()
    cost = cost_of(points)
    for point, best in zip(points, frontier(points, cost), strict=True):
        point["frontier"] = best
    return {
        "versions": versions(),
        "machine": machine(),
        "model": os.fspath(model),
        "whole": folder.whole(),
        "folder": os.fspath(folder.path),
        "cost": cost,
        "points": points,
    }


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options as JSON gives them back, less those that change nothing about the result."""
    return {
        name: plain(value)
        for name, value in sorted(options.items())
        if name != "memory_limit"
        and not (value is None or (isinstance(value, tuple | dict) and not value))
    }
