"""The pictures of a pruning report: bars along the network, and importances with the cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spa_graph.pictures.style import BLUE, GREY, ORANGE, figure, logarithmic, name_rows, styled

MOST_ROWS = 60
"""Of more groups or operators, the largest are shown, and the sum of the others."""
_PALE = "#cccccc"


@styled
def kept_figure(groups: Sequence[dict[str, Any]]) -> Any:
    """How many channels each group keeps, along the network."""
    groups = _largest(groups, "channels")
    drawn, axes = figure(len(groups))
    rows = range(len(groups))
    axes.barh(rows, [group["channels"] for group in groups], color=_PALE, label="before")
    axes.barh(rows, [group["kept"] for group in groups], color=BLUE, height=0.5, label="after")
    for row, group in enumerate(groups):
        text = f" {group['kept']} of {group['channels']}"
        axes.text(group["channels"], row, text, va="center", fontsize=6.5)
    axes.margins(x=0.3)
    name_rows(axes, [group["name"] for group in groups])
    axes.set_xlabel("channels")
    drawn.legend(loc="outside lower center", ncols=2)
    return drawn


@styled
def operators_figure(
    names: Sequence[str], before: Sequence[float], after: Sequence[float], unit: str
) -> Any:
    """Two bars for each operator, along the network; what is little is summed up."""
    rows: list[dict[str, Any]] = [
        {"name": name, "before": first, "after": second}
        for name, first, second in zip(names, before, after, strict=True)
    ]
    shown = _largest(rows, "before")
    rest = [row for row in rows if not any(row is each for each in shown)]
    if rest:
        sums = {key: sum(row[key] for row in rest) for key in ("before", "after")}
        shown = [*shown, {"name": f"{len(rest)} others", **sums}]
    drawn, axes = figure(len(shown))
    places = np.arange(len(shown))
    axes.barh(places, [row["before"] for row in shown], color=_PALE, label="before")
    axes.barh(places, [row["after"] for row in shown], color=BLUE, height=0.5, label="after")
    name_rows(axes, [row["name"] for row in shown])
    axes.set_xlabel(unit)
    drawn.legend(loc="outside lower center", ncols=2)
    return drawn


@styled
def importance_figure(importance: dict[str, Any]) -> Any:
    """How many channels of each importance stay and go."""
    drawn, axes = figure(7)
    edges = np.array(importance["edges"])
    options: dict[str, Any] = {"align": "edge", "width": np.diff(edges)}
    axes.bar(edges[:-1], importance["kept"], color=BLUE, label="stay", **options)
    axes.bar(
        edges[:-1], importance["removed"], bottom=importance["kept"], color=ORANGE, hatch="////",
        edgecolor="white", linewidth=0, label="go", **options,
    )  # fmt: skip
    logarithmic(axes)
    axes.set_xlabel("importance, comparable between groups")
    axes.set_ylabel("channels")
    drawn.legend(loc="outside lower center", ncols=2)
    return drawn


@styled
def cuts_figure(importance: dict[str, Any]) -> Any:
    """Where the cut is in each group: from the least to the most important, on either side."""
    groups = importance["groups"][:MOST_ROWS]
    drawn, axes = figure(len(groups))
    sides = (("kept", BLUE, "o", "stay", -0.14), ("removed", ORANGE, "X", "go", 0.14))
    for side, color, marker, label, offset in sides:
        found = [(row, group[side]) for row, group in enumerate(groups) if group[side]]
        if found:
            places = np.array([row for row, _ in found]) + offset
            low, middle, high = np.array([each for _, each in found]).T
            axes.hlines(places, low, high, color=color, linewidth=1.5)
            axes.scatter(middle, places, color=color, marker=marker, s=12, label=label, zorder=3)
    logarithmic(axes)
    axes.set_xlabel("importance; the mark is the median")
    axes.grid(axis="y", linewidth=0.3, color=GREY, alpha=0.5)
    name_rows(axes, [group["name"] for group in groups])
    drawn.legend(loc="outside lower center", ncols=2)
    return drawn


def _largest(rows: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """The largest, in the order in which they came."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    order = sorted(range(len(rows)), key=lambda number: -rows[number][key])
    return [rows[number] for number in sorted(order[:MOST_ROWS])]
