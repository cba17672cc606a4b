"""The picture of `spa-prune sensitivity`: a row per group, a mark per count."""

from __future__ import annotations

from typing import Any

from spa_graph.pictures.style import MARKERS, SERIES, figure, logarithmic, name_rows, styled

FLOOR = 1e-8
"""Errors below are drawn here: rounding."""


@styled
def sensitivity_figure(data: dict[str, Any]) -> Any:
    """The outputs' error on a logarithmic axis, groups in the order of the network."""
    groups = [group for group in data["groups"] if group["points"]]
    drawn, axes = figure(len(groups), title="error of the outputs when a group loses channels")
    for number, level in enumerate(data["levels"]):
        rows, errors = [], []
        for row, group in enumerate(groups):
            at = {point["level"]: point["distortion"] for point in group["points"]}
            if at.get(level) is not None:
                rows.append(row)
                errors.append(max(at[level], FLOOR))
        axes.scatter(
            errors,
            rows,
            s=14,
            color=SERIES[number % len(SERIES)],
            marker=MARKERS[number % len(MARKERS)],
            label=f"without {level:.0%}",
            zorder=3,
        )
    name_rows(axes, [group["name"] for group in groups])
    logarithmic(axes)
    axes.set_xlabel("squared error / variance of the outputs")
    axes.grid(axis="both", linewidth=0.4, alpha=0.5)
    drawn.legend(loc="outside lower center", ncols=3)
    return drawn
