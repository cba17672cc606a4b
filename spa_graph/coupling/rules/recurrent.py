"""Recurrent layers: LSTM, GRU, RNN.

Layouts, with d directions and g gates (LSTM 4, GRU 3, RNN 1):

    X (seq, batch, input)      W (d, g * hidden, input)     Y        (seq, d, batch, hidden)
    initial_h, initial_c,      R (d, g * hidden, hidden)    Y_h, Y_c (d, batch, hidden)
    (d, batch, hidden)         B (d, 2 * g * hidden)        P        (d, 3 * hidden)

With `layout=1` the batch comes first in X, Y and the states. Gates are stored one behind the
other, so `g * hidden` is a Product whose inner factor is the hidden Dim. Both directions share one
attribute `hidden_size`, hence one hidden Dim; the axis of the directions is frozen.
"""

from __future__ import annotations

from dataclasses import dataclass

from spa_graph.coupling.registry import Rule, rule
from spa_graph.coupling.relations import Axes, Axis
from spa_graph.coupling.scope import OWN_OUTPUT, Scope

X, W, R, B, LENGTHS, INITIAL_H, INITIAL_C, PEEPHOLES = range(8)
STATES = (INITIAL_H, INITIAL_C)
WEIGHTS = (W, R, B, PEEPHOLES)

_KEEP_ZERO = frozenset(
    {"tanh", "relu", "leakyrelu", "thresholdedrelu", "scaledtanh", "elu", "softsign"}
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of cell.

    gates: how many blocks of hidden units W and R have.
    defaults: the activation functions of one direction.
    on_features: those of them that the state and the output are made of; the others are gates,
        which only scale.
    """

    gates: int
    defaults: tuple[str, ...]
    on_features: tuple[int, ...]


LSTM = Cell(4, ("sigmoid", "tanh", "tanh"), on_features=(1, 2))
GRU = Cell(3, ("sigmoid", "tanh"), on_features=(1,))
RNN = Cell(1, ("tanh",), on_features=(0,))


def _recurrent(cell: Cell) -> Rule:
    def apply(scope: Scope) -> None:
        found = relate(scope, cell)
        if found is not None:
            x, hidden = found
            scope.contract(x[2], slots=(W, X))
            scope.contract(hidden, slots=(R,))
            scope.cell((X, W, B))
            # a GRU that resets the state before it multiplies it reads something else there
            if cell is not GRU or scope.attribute("linear_before_reset", 0):
                batch_first = scope.attribute("layout", 0) == 1
                scope.cell((OWN_OUTPUT, R, B), directions=-2 if batch_first else -3)

    return apply


rule("LSTM")(_recurrent(LSTM))
rule("GRU")(_recurrent(GRU))
rule("RNN")(_recurrent(RNN))


def relate(scope: Scope, cell: Cell, transposed: bool = False) -> tuple[Axes, Axis] | None:
    """All relations of a cell; the rule itself says when its contractions are exact.

    `transposed`: W and R are (d, input, g * hidden) and (d, hidden, g * hidden).

    Returns:
        The axes of X and the hidden axis, or None if shapes are unknown.
    """
    x, w, r = scope.input(X), scope.input(W), scope.input(R)
    if x is None or w is None or r is None:
        scope.freeze_all("an operand has no known shape")
        return None
    if transposed:
        w, r = (w[0], w[2], w[1]), (r[0], r[2], r[1])
    directions, hidden = r[0], r[2]
    scope.freeze((directions,), "counts the directions")
    scope.attribute_size("hidden_size", hidden)
    scope.same(x[2], w[2])
    scope.hidden_units(hidden)
    blocks = ((W, w, cell.gates), (R, r, cell.gates), (B, scope.input(B), 2 * cell.gates))
    for slot, axes, count in (*blocks, (PEEPHOLES, scope.input(PEEPHOLES), 3)):
        if axes is not None:
            scope.same(directions, axes[0])
            scope.product(axes[1], (scope.fixed(count, "counts the gates"), hidden))
            scope.covers(axes[1], hidden)
            scope.role(slot, "bias" if slot == B else "weight")
    _features(scope, x, directions, hidden)
    scope.zero("all" if keeps_zero(scope, cell) else "never", (*WEIGHTS, *STATES), outputs=None)
    scope.macs(1.0, *x[:2], *w)
    scope.macs(1.0, *x[:2], *r)
    return x, hidden


def _features(scope: Scope, x: Axes, directions: Axis, hidden: Axis) -> None:
    """The input, the states and the outputs."""
    batch_first = scope.attribute("layout", 0) == 1
    batch, steps = (x[0], x[1]) if batch_first else (x[1], x[0])
    scope.freeze((steps, batch), "runs over sequences")
    around = (batch, steps, directions) if batch_first else (steps, directions, batch)
    for axes in filter(None, (scope.output(0),)):
        for axis, other in zip(axes, (*around, hidden), strict=True):
            scope.same(other, axis)
    beside = (batch, directions) if batch_first else (directions, batch)
    states = [*(scope.input(slot) for slot in STATES), scope.output(1), scope.output(2)]
    for axes in filter(None, states):
        for axis, other in zip(axes, (*beside, hidden), strict=True):
            scope.same(other, axis)
    for slot in STATES:
        scope.role(slot, "bias")
    for axis in scope.input(LENGTHS) or ():
        scope.same(batch, axis)


def keeps_zero(scope: Scope, cell: Cell) -> bool:
    """Whether a unit without weights stays zero if it starts at zero.

    Its gates are those of a unit without input, but they only scale what is zero; the activations
    of the features must map zero to zero.
    """
    listed = scope.attribute("activations") or cell.defaults
    each = len(cell.defaults)
    return all(
        str(name).lower() in _KEEP_ZERO
        for position, name in enumerate(listed)
        if position % each in cell.on_features
    )
