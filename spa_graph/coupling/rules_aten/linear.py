"""Linear layers, and activations that hold weights or cut their operand."""

from __future__ import annotations

from spa_graph.coupling.registry import ATEN, rule
from spa_graph.coupling.relations import but
from spa_graph.coupling.rules.linear import broadcast, multiply
from spa_graph.coupling.scope import Scope
from spa_graph.graph import ONE

UNKNOWN = "an operand has no known shape"


@rule("linear", domain=ATEN)
def linear(scope: Scope) -> None:
    """x (..., in), weight (out, in), bias (out) -> (..., out)."""
    x, weight, bias, out = scope.input(0), scope.input(1), scope.input(2), scope.output()
    if x is None or weight is None or len(weight) != 2:
        return scope.freeze_all(UNKNOWN)
    multiply(scope, x, weight[::-1], out)
    if bias is not None and out is not None:
        broadcast(scope, bias, out)
        scope.role(2, "bias")
        scope.zero("all", (1, 2))
    scope.linear("matrix", (0, 1, 2), features=-1, inputs=1, outputs=0, result=-1)


@rule("baddbmm", domain=ATEN)
def baddbmm(scope: Scope) -> None:
    """A (b, m, k), B (b, k, n), C broadcasts to (b, m, n): C + A B."""
    c, out = scope.input(2), scope.output()
    multiply(scope, scope.input(0), scope.input(1), out)
    if c is not None and out is not None:
        broadcast(scope, c, out)
    scope.zero("never")


@rule("prelu", domain=ATEN)
def prelu(scope: Scope) -> None:
    """x (n, c, *), slopes (c) or a single one."""
    x, slopes, out = scope.input(0), scope.input(1), scope.output()
    if x is None or slopes is None or out is None:
        return scope.freeze_all(UNKNOWN)
    scope.align(x, out)
    if scope.extent(slopes[0]) != ONE:
        scope.same(x[1] if len(x) > 1 else x[0], slopes[0])
    scope.zero("all", (0,))


@rule("glu", domain=ATEN)
def glu(scope: Scope) -> None:
    """The first half along an axis, times the sigmoid of the second half."""
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all(UNKNOWN)
    along = scope.attribute("dim", -1) % len(x)
    scope.align(but(x, along), but(out, along))
    scope.product(x[along], (scope.fixed(2, "holds values and gates"), out[along]))
    scope.covers(x[along], out[along])
    scope.zero("all")
