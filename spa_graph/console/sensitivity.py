"""What `spa-prune sensitivity` measured, as a table."""

from __future__ import annotations

from typing import Any

from spa_graph.console.text import stdout, table


def show_sensitivity(data: dict[str, Any]) -> None:
    """A row per group, the most sensitive first."""
    console = stdout()
    console.print(
        "error of the outputs, as a share of their variance, when a group alone loses channels"
    )
    levels = [f"-{level:.0%}" for level in data["levels"]]
    rows = table("group", "structure", "channels", *levels)
    for group in sorted(data["groups"], key=_worst, reverse=True):
        # small groups have fewer counts than there are levels
        at = {point["level"]: _error(point["distortion"]) for point in group["points"]}
        errors = [at.get(level, "") for level in data["levels"]]
        rows.add_row(group["name"], group["structure"], str(group["channels"]), *errors)
    console.print(rows)
    console.print(f"measured on {data['data']}, channels ranked by {data['criterion']}")


def _worst(group: dict[str, Any]) -> float:
    errors = [point["distortion"] for point in group["points"]]
    return float("inf") if None in errors else max(errors, default=-1.0)


def _error(distortion: float | None) -> str:
    return "none left" if distortion is None else f"{distortion:.2g}"
