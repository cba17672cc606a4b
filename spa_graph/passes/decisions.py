"""Where a network turns numbers into decisions: TopK, non-maximum suppression, comparisons.

Two networks that compute the same differ by rounding. Where a decision falls between near ties,
rounding can tip it, and then outputs differ by anything (other boxes, in another order). What can
still be compared are the numbers that decisions are made on.
"""

from __future__ import annotations

from dataclasses import dataclass

from spa_graph.edits import Edits
from spa_graph.graph import Graph, Operator

_WHOLE_NUMBERS = "iub"


@dataclass(frozen=True, slots=True)
class Decisions:
    """The first decisions on every path, and what lies behind them.

    grounds: floating-point values that they are made on.
    values: everything that depends on one.
    operators: the operators behind, by index.
    """

    grounds: tuple[str, ...]
    values: frozenset[str]
    operators: frozenset[int]

    def explain(self, graph: Graph, edits: Edits) -> bool:
        """Whether equal grounds prove a pruned network right: all that pruning changed is before."""
        cut = any(kept and use.operator in self.operators for use, kept in edits.slices)
        same_shape = all(
            edits.expected.get(name, graph.shapes.get(name)) == graph.shapes.get(name)
            for name in self.grounds
        )
        return bool(self.grounds) and not cut and same_shape


def find_decisions(graph: Graph) -> Decisions:
    """Operators that make integers or booleans out of floating-point numbers, and what follows."""
    grounds: dict[str, None] = {}
    behind: set[str] = set()
    operators = []
    for operator in graph.operators:
        if behind.intersection((*operator.inputs, *operator.captures)):
            operators.append(operator.index)
            behind.update(filter(None, operator.outputs))
        elif _decides(graph, operator):
            grounds.update(dict.fromkeys(_floats(graph, operator)))
            behind.update(filter(None, operator.outputs))
    return Decisions(tuple(grounds), frozenset(behind), frozenset(operators))


def _decides(graph: Graph, operator: Operator) -> bool:
    if all(name in graph.known for name in operator.outputs if name):
        return False
    whole = any(
        name in graph.dtypes and graph.dtypes[name].kind in _WHOLE_NUMBERS
        for name in operator.outputs
    )
    return whole and bool(_floats(graph, operator))


def _floats(graph: Graph, operator: Operator) -> list[str]:
    """The inputs that are computed floating-point numbers."""
    return [
        name
        for name in operator.inputs
        if name in graph.dtypes
        and graph.dtypes[name].kind not in _WHOLE_NUMBERS
        and name not in graph.parameters
        and name not in graph.known
        and name not in graph.inputs
    ]
