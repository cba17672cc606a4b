"""Recurrent layers as PyTorch has them: all layers and directions in one call.

Layouts, with l layers, d directions and g gates (LSTM 4, GRU 3, RNN 1):

    input (batch, steps, in) if batch_first, else (steps, batch, in); no batch: (steps, in)
    states (l x d, batch, hidden), of LSTM two
    per layer and direction: W (g x hidden, in), R (g x hidden, hidden), and two biases
    output (..., d x hidden), then the last states

All layers share one hidden size. An LSTM that projects its state is not handled: it freezes.
"""

from __future__ import annotations

from spa_graph.coupling.registry import ATEN, Rule, rule
from spa_graph.coupling.relations import Axes, Axis
from spa_graph.coupling.scope import Scope
from spa_graph.graph import Extent

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
UNKNOWN = "an operand has no known shape"


def _recurrent(gates: int) -> Rule:
    def apply(scope: Scope) -> None:
        x, out, states = scope.input(0), scope.output(), scope.attribute("states")
        layers, directions = scope.attribute("layers"), scope.attribute("directions")
        each = 4 if scope.attribute("biases") else 2
        weights = [scope.input(slot) for slot in range(1 + states, len(scope.operator.inputs))]
        if x is None or out is None or None in weights or len(x) != 3:
            return scope.freeze_all(UNKNOWN)
        known = [axes for axes in weights if axes is not None]
        if len(known) != each * layers * directions:
            return scope.freeze_all("its weights are arranged in an unknown way")
        hidden = known[1][1]
        scope.hidden_units(hidden)
        merged = _directions(scope, directions, hidden, out)
        for number in range(layers * directions):
            source = x[-1] if number < directions else merged
            first = 1 + states + number * each
            _cell(scope, gates, known[number * each : (number + 1) * each], first, source, hidden)
        _sequences(scope, x, out, hidden)
        for axes in known:
            if len(axes) == 2:
                scope.macs(1.0, x[0], x[1], *axes)
        scope.contract(x[-1], merged, hidden)
        scope.zero("all", tuple(range(1, len(scope.operator.inputs))), outputs=None)

    return apply


def _directions(scope: Scope, directions: int, hidden: Axis, out: Axes) -> Axis:
    """The features of the output, and of what all layers but the first read."""
    scope.product(out[-1], (scope.fixed(directions, "counts the directions"), hidden))
    scope.covers(out[-1], hidden)
    return out[-1]


def _cell(
    scope: Scope, gates: int, weights: list[Axes], first: int, source: Axis, hidden: Axis
) -> None:
    """Relations of one layer's weights, the first of which is in slot `first`."""
    scope.same(source, weights[0][1])
    scope.same(hidden, weights[1][1])
    for position, axes in enumerate(weights):
        size = scope.extent(hidden).nominal * gates
        if scope.extent(axes[0]) != Extent(size, size):
            return scope.freeze_all("projects its state")
        scope.product(axes[0], (scope.fixed(gates, "counts the gates"), hidden))
        scope.covers(axes[0], hidden)
        scope.role(first + position, "weight" if position < 2 else "bias")


def _sequences(scope: Scope, x: Axes, out: Axes, hidden: Axis) -> None:
    """Batch, steps and states."""
    batch = x[0] if scope.attribute("batch_first") else x[1]
    scope.align(x[:2], out[:2])
    scope.freeze(x[:2], "runs over sequences")
    states = scope.attribute("states")
    given = [scope.input(1 + i) for i in range(states)] + [
        scope.output(1 + i) for i in range(states)
    ]
    for axes in filter(None, given):
        scope.freeze((axes[0],), "counts layers and directions")
        scope.align(axes[1:], (batch, hidden))


for _name, _gates in GATES.items():
    rule(_name, domain=ATEN)(_recurrent(_gates))
