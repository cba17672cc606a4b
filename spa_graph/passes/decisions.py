"""Where a network turns numbers into decisions: TopK, non-maximum suppression, comparisons.

Two networks that compute the same differ by rounding. Where a decision falls between near ties,
rounding can tip it, and what follows differs by anything (other boxes, in another order). Then the
numbers that it was made on are what can still be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph.edits import Edits
from spa_graph.graph import Extent, Graph, Operator

_WHOLE_NUMBERS = "iub"
ROUNDING = frozenset({"Round", "Sign", "Floor", "Ceil", "Hardmax"})
"""Operators that decide, though their results are floating-point numbers."""
_SUBGRAPHS = frozenset({"If", "Loop", "Scan"})  # what happens inside isn't seen

Values = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Decision:
    """An operator that decides.

    grounds: the values that it looks at, floating-point ones among them.
    outcomes: what it decided.
    """

    operator: int
    grounds: tuple[str, ...]
    outcomes: tuple[str, ...]


def find_decisions(graph: Graph, edits: Edits) -> list[Decision]:
    """Operators that make integers, booleans or whole numbers out of floating-point numbers.

    Those whose outcomes pruning cut are left out: there are as many as there are channels, and each
    says little. Grounds may be cut, as those of a router are that loses experts, if it is known
    which part of them is left.
    """
    found = []
    for operator in graph.operators:
        grounds, outcomes = _grounds(graph, operator), _outcomes(graph, operator)
        if not grounds or any(_cut(graph, edits, name) for name in outcomes):
            continue
        sizes = (size for name in grounds for size in _cut(graph, edits, name))
        if outcomes and all(size.static for size in sizes):
            found.append(Decision(operator.index, grounds, outcomes))
    return found


def _grounds(graph: Graph, operator: Operator) -> tuple[str, ...]:
    fixed = {name for name, known in graph.known.items() if not known.origins}
    given = {*graph.parameters, *graph.inputs, *fixed}
    names = [n for n in dict.fromkeys((*operator.inputs, *operator.captures)) if n not in given]
    floats = any(name in graph.dtypes and not _whole(graph, name) for name in names)
    return tuple(names) if floats else ()


def _outcomes(graph: Graph, operator: Operator) -> tuple[str, ...]:
    names = [name for name in operator.outputs if name and name not in graph.known]
    if operator.op_type in _SUBGRAPHS | ROUNDING:
        return tuple(names)
    return tuple(name for name in names if _whole(graph, name))


def _whole(graph: Graph, name: str) -> bool:
    return name in graph.dtypes and graph.dtypes[name].kind in _WHOLE_NUMBERS


def _cut(graph: Graph, edits: Edits, name: str) -> list[Extent]:
    """The sizes of a value that pruning changes, as they were."""
    if name not in edits.expected:
        return []
    pairs = zip(graph.shapes[name], edits.expected[name], strict=True)
    return [before for before, after in pairs if before != after]


@dataclass(frozen=True, slots=True)
class Tipped:
    """Decisions that came out differently in two runs.

    behind: the values behind them.
    hides: whether operators that pruning changed lie behind one: nothing is known about them.
    """

    behind: set[str]
    hides: bool


def tipped(
    graph: Graph, edits: Edits, decisions: list[Decision], got: Values, want: Values
) -> Tipped:
    """What in two runs lies behind decisions that came out differently."""
    pruned = {use.operator for use, kept in edits.slices if kept}
    pruned.update(edits.attributes, edits.inputs, edits.gathers)
    by_operator = {decision.operator: decision for decision in decisions}
    behind: set[str] = set()
    hides = False
    for operator in graph.operators:
        decision = by_operator.get(operator.index)
        if behind.intersection((*operator.inputs, *operator.captures)):
            hides = hides or operator.index in pruned
        elif decision is None or all(np.array_equal(got[n], want[n]) for n in decision.outcomes):
            continue
        behind.update(filter(None, operator.outputs))
    return Tipped(behind, hides)
