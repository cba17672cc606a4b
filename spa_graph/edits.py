"""`Edits`: everything that must change in a network when channels go, as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.relations import Use
from spa_graph.graph import Shape
from spa_graph.plan import AxisIndices

Ints = NDArray[np.int64]


@dataclass(slots=True, eq=False)
class Edits:
    """What changes, by operator index. Only operators and values that change are listed."""

    slices: list[tuple[Use, AxisIndices]] = field(default_factory=list)
    attributes: dict[int, dict[str, int | list[int]]] = field(default_factory=dict)
    inputs: dict[int, dict[int, Ints]] = field(default_factory=dict)
    gathers: dict[int, tuple[int, Ints]] = field(default_factory=dict)
    expected: dict[str, Shape] = field(default_factory=dict)
