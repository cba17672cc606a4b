"""How the steps go, on stderr: bars on a terminal, a line per step elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from spa_graph.passes.options import Progress as Callback


@contextmanager
def progress(quiet: bool) -> Iterator[Callback | None]:
    """A callback that shows each step: bars on a terminal, a line per step elsewhere."""
    if quiet:
        yield None
        return
    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        yield _print_steps(console)
        return
    columns = (
        TextColumn("{task.description:16}"),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(Column(min_width=7, no_wrap=True)),
        TimeRemainingColumn(table_column=Column(min_width=7, no_wrap=True)),
        # what is said of the last part is cut, not the times beside it
        TextColumn(
            "{task.fields[detail]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
    )
    with Progress(*columns, console=console, expand=True) as bars:
        tasks: dict[str, Any] = {}

        def update(step: str, done: int, total: int, detail: str = "") -> None:
            if step not in tasks:
                # a step that tells nothing of its parts is a bar that moves to and fro
                tasks[step] = bars.add_task(step, total=total if total > 1 else None, detail="")
            if not bars.tasks[tasks[step]].finished:
                bars.update(tasks[step], completed=done, total=total, detail=detail)

        yield update


def _print_steps(console: Console) -> Callback:
    started: set[str] = set()

    def update(step: str, done: int, total: int, detail: str = "") -> None:  # noqa: ARG001
        if step not in started:
            started.add(step)
            console.print(f"{step} ...")
        if detail:
            console.print(f"  {detail}")

    return update
