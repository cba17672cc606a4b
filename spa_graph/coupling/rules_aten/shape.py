"""Joining along a new axis, taking one apart, and moving elements along an axis."""

from __future__ import annotations

from spa_graph.coupling.registry import ATEN, rule
from spa_graph.coupling.relations import but
from spa_graph.coupling.scope import Scope

UNKNOWN = "an operand has no known shape"


@rule("stack", domain=ATEN)
def stack(scope: Scope) -> None:
    parts, out = scope.inputs(), scope.output()
    if out is None or len(parts) != len(scope.operator.inputs):
        return scope.freeze_all(UNKNOWN)
    along = scope.attribute("dim", 0) % len(out)
    scope.freeze((out[along],), "counts the stacked tensors")
    for axes in parts:
        scope.align(axes, but(out, along))
    scope.zero("all")


@rule("unbind", domain=ATEN)
def unbind(scope: Scope) -> None:
    x, outs = scope.input(0), scope.outputs()
    if x is None or len(outs) != len(scope.operator.outputs):
        return scope.freeze_all(UNKNOWN)
    along = scope.attribute("dim", 0)
    scope.freeze((x[along],), "is taken apart")
    for axes in outs:
        scope.align(but(x, along), axes)
    scope.zero("all", outputs=None)


@rule("even_split", domain=ATEN)
def even_split(scope: Scope) -> None:
    """A Split into parts that must stay equal: they are one Dim."""
    x, outs = scope.input(0), scope.outputs()
    if x is None or len(outs) != len(scope.operator.outputs):
        return scope.freeze_all(UNKNOWN)
    along = scope.attribute("axis")
    for axes in outs:
        scope.align(outs[0], axes)
        scope.align(but(x, along), but(axes, along))
    scope.product(x[along], (scope.fixed(len(outs), "counts equal parts"), outs[0][along]))
    scope.zero("move")


@rule("repeat_interleave", domain=ATEN)
def repeat_interleave(scope: Scope) -> None:
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all(UNKNOWN)
    along = scope.attribute("dim")
    scope.align(but(x, along), but(out, along))
    repeats = scope.fixed(scope.attribute("repeats"), "repeats every element")
    scope.product(out[along], (x[along], repeats))
    scope.zero("move")


@rule("extremum", domain=ATEN)
def extremum(scope: Scope) -> None:
    """The largest or smallest along an axis, and where it stands."""
    x, along = scope.input(0), scope.attribute("dim")
    if x is None:
        return scope.freeze_all(UNKNOWN)
    scope.freeze((x[along],), "is searched by position")
    for out in scope.outputs():
        kept = out if len(out) < len(x) else but(out, along)
        scope.align(but(x, along), kept)
    scope.zero("all", (0,))


@rule("slice_scatter", domain=ATEN)
def slice_scatter(scope: Scope) -> None:
    """Positions along one axis are overwritten."""
    x, part, out = scope.input(0), scope.input(1), scope.output()
    if x is None or part is None or out is None:
        return scope.freeze_all(UNKNOWN)
    along = scope.attribute("dim", 0) % len(x)
    scope.freeze((x[along], part[along], out[along]), "is written by position")
    scope.align(but(x, along), but(out, along))
    scope.align(but(x, along), but(part, along))
    scope.zero("all")


@rule("roll", domain=ATEN)
def roll(scope: Scope) -> None:
    """Also what turns axes around."""
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all(UNKNOWN)
    scope.align(x, out)
    scope.freeze([x[axis] for axis in scope.attribute("dims")], "moves elements by position")
    scope.zero("all")
