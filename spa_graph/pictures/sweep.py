"""The picture of `spa-prune sweep`: quality against what is left of the cost."""

from __future__ import annotations

from typing import Any

from spa_graph.passes.cost import NAMES
from spa_graph.pictures.style import GREY, MARKERS, SERIES, figure, styled
from spa_graph.studies.sweep import COLUMNS


@styled
def sweep_figure(data: dict[str, Any]) -> Any:
    """A line per criterion, and per kind of budget if there are several; what is on the frontier
    has a ring."""
    cost = COLUMNS[data["cost"]]
    key = "metric" if any("metric" in point for point in data["points"]) else "error"
    told = [p for p in data["points"] if p.get(key) is not None and p.get(cost) is not None]
    lines = _lines(told)
    title = "metric against budget" if key == "metric" else "error of the outputs against budget"
    drawn, axes = figure(10, title=title)
    for number, (label, points) in enumerate(lines.items()):
        axes.plot(
            *zip(*sorted((p[cost], p[key]) for p in points), strict=True),
            color=SERIES[number % len(SERIES)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            linewidth=1,
            label=label,
        )
    best = [(point[cost], point[key]) for point in told if point["frontier"]]
    if best:
        axes.scatter(
            *zip(*best, strict=True), s=70, facecolors="none", edgecolors="black", linewidths=0.7,
            label="Pareto frontier",
        )  # fmt: skip
    whole = (data["whole"] or {}).get("metric")
    if key == "metric" and whole is not None:
        axes.axhline(whole, color=GREY, linestyle="--", linewidth=0.8, label="whole network")
    elif key == "error" and told and min(point["error"] for point in told) > 0:
        axes.set_yscale("log")
    axes.set_xlabel(f"{NAMES[data['cost']]} left")
    axes.grid(linewidth=0.4, alpha=0.5)
    drawn.legend(loc="outside lower center", ncols=3)
    return drawn


def _lines(points: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Points by the label of their line."""
    several = len({point["quantity"] for point in points}) > 1
    found: dict[str, list[dict[str, Any]]] = {}
    for point in points:
        budget = f", by {NAMES[point['quantity']]}" if several else ""
        found.setdefault(point["criterion"] + budget, []).append(point)
    return found
