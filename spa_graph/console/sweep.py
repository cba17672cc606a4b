"""The points of a sweep, as a table."""

from __future__ import annotations

from typing import Any

from spa_graph.console.text import scaled, stdout, table
from spa_graph.passes.cost import NAMES


def show_sweep(data: dict[str, Any]) -> None:
    """A row per network; those on the Pareto frontier have a star."""
    console, points = stdout(), data["points"]
    measured = any("metric" in point for point in points)
    errors = any("error" in point for point in points)
    timed = any("time" in point for point in points)
    memory = any("memory" in point for point in points)
    columns = {"asked": True, "FLOPs": True, "parameters": True, "memory": memory,
               "file size": True, "output error": errors, "metric": measured, "time": timed,
               "best": True}  # fmt: skip
    rows = table("criterion", *(name for name, shown in columns.items() if shown))
    for point in points:
        cells = {
            "asked": f"{point['quantity']} {point['asked']:g}",
            "FLOPs": _number(point, "flops"),
            "parameters": _number(point, "params"),
            "memory": _number(point, "memory"),
            "file size": scaled(point["bytes"], "B") if "bytes" in point else "-",
            "output error": _number(point, "error", ".3g"),
            "metric": _number(point, "metric", ".4g"),
            "time": _number(point, "time", ".2f"),
            "best": "*" if point["frontier"] else "",
        }
        rows.add_row(point["criterion"], *(cells[name] for name, shown in columns.items() if shown))
    console.print(rows)
    if measured:
        console.print(f"the whole network's metric is {data['whole']['metric']:.4g}")
    for point in points:
        if "failure" in point:
            console.print(
                f"{point['criterion']} {point['quantity']} {point['asked']:g}: {point['failure']}"
            )
    console.print(f"*: no other network here is lower in {NAMES[data['cost']]} and as good")
    written = (data["folder"], data.get("picture"), data.get("page"))
    console.print(f"wrote {', '.join(filter(None, written))}")
    if "picture" not in data:
        console.print("for a picture: pip install 'spa-prune[report]', and run this again")


def _number(point: dict[str, Any], key: str, form: str = ".4f") -> str:
    value = point.get(key)
    return "-" if value is None else format(value, form)
