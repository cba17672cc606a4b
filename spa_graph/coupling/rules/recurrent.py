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

from spa_graph.coupling.registry import Rule, rule
from spa_graph.coupling.relations import Axes, Axis
from spa_graph.coupling.scope import Scope

_X, _W, _R, _B, _LENGTHS, _INITIAL_H, _INITIAL_C, _PEEPHOLES = range(8)
_STATES = (_INITIAL_H, _INITIAL_C)
_WEIGHTS = (_W, _R, _B, _PEEPHOLES)

_KEEP_ZERO = frozenset(
    {"tanh", "relu", "leakyrelu", "thresholdedrelu", "scaledtanh", "elu", "softsign"}
)


def _recurrent(gates: int, defaults: tuple[str, ...], on_features: tuple[int, ...]) -> Rule:
    """A rule for one kind of cell.

    Args:
        gates: how many blocks of hidden units W and R have.
        defaults: the activation functions of one direction.
        on_features: those of them that the state and the output are made of; the others are
            gates, which only scale.
    """

    def apply(scope: Scope) -> None:
        x, w, r = scope.input(_X), scope.input(_W), scope.input(_R)
        if x is None or w is None or r is None:
            return scope.freeze_all("an operand has no known shape")
        directions, hidden = r[0], r[2]
        scope.freeze((directions,), "counts the directions")
        scope.attribute_size("hidden_size", hidden)
        _weights(scope, gates, directions, hidden)
        _features(scope, x, directions, hidden)
        _zero_channels(scope, x, hidden, _activations(scope, defaults, on_features))
        scope.macs(1.0, *x[:2], *w)
        scope.macs(1.0, *x[:2], *r)

    return apply


rule("LSTM")(_recurrent(4, ("sigmoid", "tanh", "tanh"), on_features=(1, 2)))
rule("GRU")(_recurrent(3, ("sigmoid", "tanh"), on_features=(1,)))
rule("RNN")(_recurrent(1, ("tanh",), on_features=(0,)))


def _weights(scope: Scope, gates: int, directions: Axis, hidden: Axis) -> None:
    blocks = {_W: gates, _R: gates, _B: 2 * gates, _PEEPHOLES: 3}
    for slot, count in blocks.items():
        axes = scope.input(slot)
        if axes is None:
            continue
        scope.same(directions, axes[0])
        scope.product(axes[1], (scope.fixed(count, "counts the gates"), hidden))
        scope.covers(axes[1], hidden)
        scope.role(slot, "bias" if slot == _B else "weight")


def _features(scope: Scope, x: Axes, directions: Axis, hidden: Axis) -> None:
    """The input, the states and the outputs."""
    batch_first = scope.attribute("layout", 0) == 1
    batch, steps = (x[0], x[1]) if batch_first else (x[1], x[0])
    scope.freeze((steps, batch), "runs over sequences")
    y, lengths, w = scope.output(0), scope.input(_LENGTHS), scope.input(_W)
    if w is not None:
        scope.same(x[2], w[2])
    if lengths is not None:
        scope.same(batch, lengths[0])
    if y is not None:
        # (seq, d, batch, hidden), or (batch, seq, d, hidden)
        for axis, other in zip(
            y, _around(batch_first, steps, directions, batch, hidden), strict=True
        ):
            scope.same(other, axis)
    states = [*(scope.input(slot) for slot in _STATES), scope.output(1), scope.output(2)]
    for state in states:
        if state is not None:
            first, second = (batch, directions) if batch_first else (directions, batch)
            for axis, other in zip(state, (first, second, hidden), strict=True):
                scope.same(other, axis)
    for slot in _STATES:
        scope.role(slot, "bias")


def _around(batch_first: bool, steps: Axis, directions: Axis, batch: Axis, hidden: Axis) -> Axes:
    if batch_first:
        return (batch, steps, directions, hidden)
    return (steps, directions, batch, hidden)


def _zero_channels(scope: Scope, x: Axes, hidden: Axis, activations: list[str]) -> None:
    """A hidden unit without weights stays zero if it starts at zero and its activations allow it.

    Its gates are those of a unit without input, but they only scale what is zero.
    """
    scope.contract(x[2], slots=(_X, _W))
    scope.contract(hidden, slots=(_R,))
    keeps = _KEEP_ZERO.issuperset(activations)
    scope.zero("all" if keeps else "never", (*_WEIGHTS, *_STATES), outputs=None)


def _activations(
    scope: Scope, defaults: tuple[str, ...], on_features: tuple[int, ...]
) -> list[str]:
    """The functions, of all directions, that make up the features; in lower case."""
    listed = scope.attribute("activations") or defaults
    each = len(defaults)
    return [str(name).lower() for i, name in enumerate(listed) if i % each in on_features]
