"""Reductions, and operators that search along an axis.

Sums over channels are contractions (a zero adds nothing); means, maxima and the like depend on
which channels there are.
"""

from __future__ import annotations

from spa_graph.coupling.registry import Rule, rule
from spa_graph.coupling.relations import Axes
from spa_graph.coupling.scope import Scope, ZeroMode

ORDERED = "is ordered by position"


def reduced_axes(scope: Scope, rank: int, axes_input_since: int) -> list[int] | None:
    """Positions of the reduced axes, or None if they are not constant."""
    if scope.operator.version < axes_input_since:
        axes = scope.attribute("axes")
    elif scope.has_input(1):
        given = scope.constant(1)
        if given is None:
            return None
        axes = given.reshape(-1).tolist()
    else:
        axes = None
    if axes is None or not len(axes):
        return [] if scope.attribute("noop_with_empty_axes", 0) else list(range(rank))
    return [int(axis) % rank for axis in axes]


def _reduction(summing: bool, mode: ZeroMode, axes_input_since: int = 18) -> Rule:
    def apply(scope: Scope) -> None:
        x, out = scope.input(0), scope.output()
        if x is None or out is None:
            return scope.freeze_all("an operand has no known shape")
        gone = reduced_axes(scope, len(x), axes_input_since)
        if gone is None:
            return scope.freeze_all("the reduced axes are not constant")
        _keep(scope, x, out, gone)
        (scope.contract if summing else scope.renormalise)(*(x[position] for position in gone))
        scope.zero(mode, (0,))

    return apply


def _keep(scope: Scope, x: Axes, out: Axes, gone: list[int]) -> None:
    kept = [position for position in range(len(x)) if position not in gone]
    targets = [out[p] for p in kept] if len(out) == len(x) else out
    scope.align([x[position] for position in kept], targets)


rule("ReduceSum")(_reduction(True, "all", axes_input_since=13))
rule("ReduceL1", "ReduceL2", "ReduceSumSquare")(_reduction(True, "all"))
rule("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd")(_reduction(False, "all"))
rule("ReduceLogSum")(_reduction(False, "compact"))
rule("ReduceLogSumExp")(_reduction(False, "never"))


@rule("ArgMax", "ArgMin")
def arg_max(scope: Scope) -> None:
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    along = scope.attribute("axis", 0) % len(x)
    scope.ranks(x[along], 0, 1, "is searched by position")
    _keep(scope, x, out, [along])
    scope.zero("never")


@rule("CumSum", "CumProd")
def accumulate(scope: Scope) -> None:
    x, given = scope.input(0), scope.constant(1)
    if x is None:
        return scope.freeze_all("an operand has no known shape")
    if given is None:
        return scope.freeze_all("the accumulated axis is not constant")
    along = int(given.reshape(-1)[0]) % len(x)
    scope.freeze((x[along],), ORDERED)
    _all_but(scope, x, along)
    scope.zero("all" if scope.operator.op_type == "CumSum" else "never", (0,))


@rule("TopK")
def top_k(scope: Scope) -> None:
    """Values and positions of the k largest or smallest elements, of which as many must stay."""
    x = scope.input(0)
    if x is None:
        return scope.freeze_all("an operand has no known shape")
    along = scope.attribute("axis", -1) % len(x)
    known = scope.constant(1)
    k = scope.attribute("k") if known is None else int(known.reshape(-1)[0])
    if k is None or k >= scope.extent(x[along]).nominal:
        scope.freeze((x[along],), ORDERED)
    else:
        scope.ranks(x[along], 1, k, ORDERED)
    _all_but(scope, x, along)
    scope.zero("never")


def _all_but(scope: Scope, x: Axes, along: int) -> None:
    """All outputs have the input's axes; along one of them elements are told by position."""
    for out in scope.outputs():
        scope.freeze((out[along],), ORDERED)
        for position in range(len(x)):
            if position != along:
                scope.same(x[position], out[position])
