"""What `spa-prune compare` found, as tables."""

from __future__ import annotations

from typing import Any

from spa_graph.console.text import ratio, scaled, stdout, table


def show_comparison(data: dict[str, Any]) -> None:
    """Totals, weights whose shapes differ, and how far outputs are apart."""
    console = stdout()
    before, after = data["before"], data["after"]
    totals = table("", "before", "after", "after / before")
    for key, title, unit in (
        ("flops", "FLOPs", ""),
        ("params", "parameters", ""),
        ("bytes", "file size", "B"),
        ("operators", "operators", ""),
    ):
        values = (scaled(side[key], unit) for side in (before, after))
        totals.add_row(title, *values, ratio(after[key], before[key]))
    console.print(totals)
    if data["weights"]:
        weights = table("weight", "operator", "before", "after", title="weights that differ")
        for row in data["weights"]:
            weights.add_row(
                row["name"], row["operator"], *map(_shape, (row["before"], row["after"]))
            )
        console.print(weights)
    else:
        console.print("all weights have the same shapes")
    console.print(f"outputs compared on {data['data']}:")
    for output in data["outputs"]:
        console.print(f"  {output['name']}: {_difference(output)}")


def _shape(shape: list[int] | None) -> str:
    return "x".join(map(str, shape)) or "1" if shape is not None else "-"


def _difference(output: dict[str, Any]) -> str:
    if "unequal" in output:
        return f"{output['unequal']:.1%} of the elements differ"
    text = (
        f"error {output['distortion']:.3g} of the variance, correlation "
        f"{output['correlation']:.4f}, largest difference {output['largest']:.3g}"
    )
    if "same_top" in output:
        text += f", same largest element {output['same_top']:.1%}"
    return text
