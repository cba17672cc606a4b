"""Numbers as people read them, tables, and the console that they go to."""

from __future__ import annotations

import sys

from rich.console import Console

_WIDTH_WHEN_PIPED = 120


def stdout() -> Console:
    return Console(
        width=None if sys.stdout.isatty() else _WIDTH_WHEN_PIPED, highlight=False, markup=False
    )


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
