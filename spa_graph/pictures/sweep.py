"""The picture of `spa-prune sweep`: quality against the FLOPs that are left."""

from __future__ import annotations

from typing import Any

from spa_graph.pictures.style import GREY, MARKERS, SERIES, figure, styled


@styled
def sweep_figure(data: dict[str, Any]) -> Any:
    """A line per criterion; what is on the frontier has a ring."""
    key = "metric" if any("metric" in point for point in data["points"]) else "error"
    points = [point for point in data["points"] if point.get(key) is not None]
    title = "metric against budget" if key == "metric" else "error of the outputs against budget"
    drawn, axes = figure(10, title=title)
    for number, criterion in enumerate(dict.fromkeys(point["criterion"] for point in points)):
        own = sorted((p["flops"], p[key]) for p in points if p["criterion"] == criterion)
        axes.plot(
            *zip(*own, strict=True),
            color=SERIES[number % len(SERIES)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            linewidth=1,
            label=criterion,
        )
    best = [(point["flops"], point[key]) for point in points if point["frontier"]]
    if best:
        axes.scatter(
            *zip(*best, strict=True), s=70, facecolors="none", edgecolors="black", linewidths=0.7,
            label="Pareto frontier",
        )  # fmt: skip
    whole = (data["whole"] or {}).get("metric")
    if key == "metric" and whole is not None:
        axes.axhline(whole, color=GREY, linestyle="--", linewidth=0.8, label="whole network")
    elif key == "error" and points and min(point["error"] for point in points) > 0:
        axes.set_yscale("log")
    axes.set_xlabel("FLOPs that are left")
    axes.grid(linewidth=0.4, alpha=0.5)
    drawn.legend(loc="outside lower center", ncols=3)
    return drawn
