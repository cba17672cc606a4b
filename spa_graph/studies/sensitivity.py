"""How much a network's outputs lose when each group alone loses channels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from spa_graph.api import checked, ready
from spa_graph.errors import ModelError, OptionError
from spa_graph.passes.network import Analysis
from spa_graph.passes.options import Progress, Timer
from spa_graph.passes.pipeline import check_data_taken
from spa_graph.passes.sensitivity import Probe, counts, measure
from spa_graph.passes.statistics.layers import LEVELS
from spa_graph.runtime.machine import versions


def sensitivity(
    model: str | os.PathLike[str],
    *,
    levels: Sequence[float] = LEVELS,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Prune each group alone, to a few counts, and measure what the outputs lose.

    The least important channels go, the layers that read them are refitted, and the network is run
    on calibration data that was not fitted to.

    Args:
        levels: the shares of a group's channels to go without.
        options: `calibrate` and the other options of `prune` that aren't budgets.

    Returns:
        Per group and count: the level that it stands for, the outputs' distortion (their squared
        error as a share of their variance; None if they can't be compared) and the share of the
        FLOPs that is left.

    Raises:
        OptionError: there is no calibration data, or it doesn't fit.
        ModelError: the model can't be read, or nothing in it can be pruned.
    """
    check(levels=levels, **options)
    with ready(model, progress=progress, **options) as network:
        analysis, calibrated = network.analysis, network.calibrated
        assert calibrated is not None  # there is calibration data
        whole = np.array([group.size - group.least < 1 for group in analysis.groups])
        if whole.all():
            raise ModelError("no group can lose a channel; `spa-prune inspect` tells why")
        with Timer(progress).step("measure groups") as step:
            found = measure(
                analysis,
                network.ranking.scores,
                calibrated.layers,
                calibrated.held_out,
                whole,
                step,
                levels,
                calibrated.padding,
            )
    return {
        "versions": versions(),
        "model": os.fspath(model),
        "data": calibrated.source,
        "criterion": calibrated.criterion.name,
        "levels": sorted(levels),
        "groups": _groups(analysis, found.probes, levels),
    }


def check(*, levels: Sequence[float] = LEVELS, **options: Any) -> None:
    """All that can be said against options before the network is read.

    Raises:
        OptionError: one is wrong, or there is no calibration data.
    """
    if not levels or not all(0 < level < 1 for level in levels):
        raise OptionError(f"--levels are shares between 0 and 1, not {list(levels)}")
    if options.get("calibrate") is None:
        raise OptionError("give calibration data: --calibrate FILE, or --calibrate data-free")
    check_data_taken([checked(options)])


def _groups(
    analysis: Analysis, probes: Sequence[Probe], levels: Sequence[float]
) -> list[dict[str, Any]]:
    """In the order of the network."""
    rows: list[dict[str, Any]] = [
        {"name": group.name, "structure": structure.kind, "channels": group.size, "points": []}
        for group, structure in zip(analysis.groups, analysis.structures, strict=True)
    ]
    for probe in probes:
        level = counts(analysis.groups[probe.group], levels)[probe.removed]
        left = analysis.cost.full.copy()
        left[probe.group] -= probe.removed
        rows[probe.group]["points"].append(
            {
                "level": level,
                "removed": probe.removed,
                "distortion": probe.distortion if np.isfinite(probe.distortion) else None,
                "flops": analysis.cost.ratio("flops", left),
            }
        )
    return rows
