"""Numbers as people read them, tables, and the console that they go to."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

_WIDTH_WHEN_PIPED = 120


def stdout() -> Console:
    return Console(
        width=None if sys.stdout.isatty() else _WIDTH_WHEN_PIPED, highlight=False, markup=False
    )


def answer(
    data: dict[str, Any], show: Callable[[dict[str, Any]], None], *, as_json: bool, quiet: bool
) -> None:
    """Print what a command found: as JSON, as tables, or not at all."""
    if as_json:
        print(json.dumps(data, indent=1))
    elif not quiet:
        show(data)


def table(first: str, *others: str, title: str | None = None) -> Table:
    """An empty table: the first column holds names, the others numbers."""
    rows = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    rows.add_column(first, overflow="fold")
    for name in others:
        rows.add_column(name, justify="right")
    return rows


def plain(value: float) -> str:
    return f"{int(value):,}"


def scaled(value: float, unit: str = "") -> str:
    for power, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= power:
            return f"{value / power:.3g} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def ratio(after: float, before: float) -> str:
    return f"{after / before:.4f}" if before else "-"


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
