"""Grids of cells that take long: what is done stands in a file, one line of JSON per cell."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np


class Outcome(Protocol):
    """A dataclass: the result of a cell; `failure` says why there is none."""

    @property
    def cell(self) -> Any: ...

    @property
    def failure(self) -> str: ...


Found = TypeVar("Found", bound=Outcome)


class Grid(Generic[Found]):
    """The results of earlier runs and of this one.

    Args:
        path: their file.
        cell, result: the dataclasses of a cell and of its result.
    """

    def __init__(self, path: Path, cell: type[Any], result: type[Found]) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        entries = map(json.loads, lines)
        found = [result(**{**entry, "cell": cell(**entry["cell"])}) for entry in entries]
        self.known: dict[Hashable, Found] = {each.cell: each for each in found}

    @property
    def results(self) -> list[Found]:
        return list(self.known.values())

    def add(self, result: Found) -> None:
        """Remember a result, and print it."""
        self.known[result.cell] = result
        with self._path.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")  # type: ignore[call-overload]
        print(result, flush=True)


def entry(values: Sequence[float], failures: Sequence[str], digits: int) -> str:
    """A cell of a table: the mean over seeds, and the span; or why there is none."""
    if not values:
        return failures[0].replace("|", "/")[:60] if failures else ""
    low, high = (f"{each:.{digits}f}" for each in (min(values), max(values)))
    return f"{np.mean(values):.{digits}f}" + (f" ({low} to {high})" if len(values) > 1 else "")
