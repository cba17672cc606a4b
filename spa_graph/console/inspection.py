"""Groups, costs and frozen parts as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from spa_graph.console.text import scaled, stdout


def show_inspection(data: dict[str, Any]) -> None:
    """Groups, costs and frozen parts as tables."""
    console = stdout()
    console.print(
        f"{data['model']['operators']} operators, {scaled(data['flops'])} FLOPs, "
        f"{scaled(data['params'])} parameters, {data['channels']} prunable channels in "
        f"{len(data['groups'])} groups"
    )
    console.print(
        f"smallest reachable: {data['smallest_flops_ratio']:.4f} of the FLOPs, "
        f"{data['smallest_params_ratio']:.4f} of the parameters"
    )
    for change in data["canonicalized"]:
        console.print(f"canonical form: {change}")
    groups = Table(title="channel groups", title_justify="left", show_edge=False, pad_edge=False)
    for name in ("group", "structure", "channels", "removal", "weights", "also"):
        groups.add_column(
            name, justify="right" if name in ("channels", "weights") else "left", overflow="fold"
        )
    for group in data["groups"]:
        others = [f"{p['name']}:{p['axis']}" for p in group["parameters"]]
        shown = [other for other in others if other != group["name"]]
        more = f" +{len(shown) - 3}" if len(shown) > 3 else ""
        kind = "exact" if group["exact"] else "renormalising"
        groups.add_row(
            group["name"],
            group["structure"],
            str(group["channels"]),
            kind,
            str(len(others)),
            ", ".join(shown[:3]) + more,
        )
    console.print(groups)
    costs = Table(title="cost per operator", title_justify="left", show_edge=False, pad_edge=False)
    for name in ("operator", "type", "FLOPs", "parameters"):
        costs.add_column(
            name, justify="left" if name in ("operator", "type") else "right", overflow="fold"
        )
    for row in data["operators"]:
        costs.add_row(row["name"], row["type"], scaled(row["flops"]), scaled(row["params"]))
    console.print(costs)
    _show_frozen(console, data["frozen"])


def _show_frozen(console: Console, frozen: dict[str, Any]) -> None:
    reasons = Table(
        title="frozen weight axes", title_justify="left", show_edge=False, pad_edge=False
    )
    reasons.add_column("weight:axis", overflow="fold")
    reasons.add_column("why", overflow="fold")
    for axis, reason in frozen["parameters"].items():
        reasons.add_row(axis, reason)
    console.print(reasons)
    show_unsupported(console, frozen)


def show_unsupported(console: Console, frozen: dict[str, Any]) -> None:
    if frozen["by_type"]:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in frozen["by_type"].items())
        console.print(f"frozen around operators: {kinds}")
        for reason in list(dict.fromkeys(row["reason"] for row in frozen["operators"]))[:5]:
            console.print(f"  {reason}")
