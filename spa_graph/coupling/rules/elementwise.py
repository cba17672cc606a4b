"""Operators that work element by element, with broadcasting.

Zeroed channels: f(0) = 0 for most activations; a sum is zero where every term is; a product where
one factor is. Where f(0) is infinite or undefined, the masked reference leaves the channel out.
"""

from __future__ import annotations

import numpy as np

from spa_graph.coupling.registry import MICROSOFT, Rule, rule
from spa_graph.coupling.rules.linear import broadcast
from spa_graph.coupling.scope import Scope, ZeroMode
from spa_graph.graph import ONE

_KEEPS_ZERO = (
    "Abs Add And Asin Asinh Atan Atanh BitCast BitwiseAnd BitwiseOr BitwiseXor Cast "
    "Ceil Celu Dropout Elu Erf Floor Gelu HardSwish Identity LeakyRelu Max Mean Min Mish Neg Or "
    "Relu Round Selu Sign Sin Sinh Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Xor"
)
_ONE_ZERO_IS_ENOUGH = "Mul SwiGLU"
_LOSES_ZERO = (
    "Acos Acosh BitwiseNot Cos Cosh Exp Greater GreaterOrEqual HardSigmoid IsInf IsNaN Less "
    "LessOrEqual Not Sigmoid Softplus"
)
_UNDEFINED_AT_ZERO = "Log Reciprocal"
ELEMENTWISE = frozenset(
    f"{_KEEPS_ZERO} Mul {_LOSES_ZERO} {_UNDEFINED_AT_ZERO} Div Mod Pow Where PRelu Clip".split()
) - {"Dropout"}
"""ONNX's operators whose output's elements depend on the inputs' elements of that place, and on
nothing else; all have one output."""


def _elementwise(mode: ZeroMode, slots: tuple[int, ...] | None = None) -> Rule:
    def apply(scope: Scope) -> None:
        for out in scope.outputs():
            for axes in scope.inputs():
                broadcast(scope, axes, out)
        scope.zero(mode, slots)

    return apply


rule(*_KEEPS_ZERO.split())(_elementwise("all"))
rule(*_ONE_ZERO_IS_ENOUGH.split())(_elementwise("any"))
rule(*_LOSES_ZERO.split())(_elementwise("never"))
rule(*_UNDEFINED_AT_ZERO.split())(_elementwise("compact"))
rule("Div", "Mod")(_elementwise("divide"))
rule("BitShift")(_elementwise("all", (0,)))
rule("Where")(_elementwise("all", (1, 2)))
rule("PRelu")(_elementwise("all", (0,)))
rule("Gelu", "FastGelu", "BiasGelu", "QuickGelu", "BiasAdd", domain=MICROSOFT)(_elementwise("all"))


@rule("Equal")
def equal(scope: Scope) -> None:
    """Positions may be compared with the numbers of all elements: what OneHot does, written out."""
    if _one_hot(scope, 0, 1) or _one_hot(scope, 1, 0):
        scope.zero("never")
    else:
        _elementwise("never")(scope)


def _one_hot(scope: Scope, positions: int, numbers: int) -> bool:
    held, out, given = scope.input(positions), scope.output(), scope.constant(numbers)
    if not held or not out or len(held) != len(out) or scope.extent(held[-1]) != ONE:
        return False
    if given is None or not given.ndim or [*given.ravel()] != [*range(given.shape[-1])]:
        return False
    if not scope.look_up(positions, out[-1]):
        return False
    scope.align(held[:-1], out[:-1])
    scope.freeze(scope.input(numbers) or (), "holds positions")
    scope.input_index(numbers, out[-1], out[-1], given)
    return True


@rule("CastLike")
def cast_like(scope: Scope) -> None:
    """Of the second input only the type matters."""
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    broadcast(scope, x, out)
    scope.free(scope.input(1) or ())
    scope.zero("all", (0,))


@rule("Pow")
def power(scope: Scope) -> None:
    """0 ** 2 is 0, but 0 ** -0.5 is infinite."""
    exponent = scope.constant(1)
    positive = exponent is not None and bool((exponent > 0).all())
    _elementwise("divide" if positive else "compact")(scope)


@rule("Shrink")
def shrink(scope: Scope) -> None:
    """x + bias below -lambd, x - bias above lambd, else 0; a negative lambd puts 0 in both."""
    keeps = scope.attribute("lambd", 0.5) >= 0 or scope.attribute("bias", 0.0) == 0
    _elementwise("all" if keeps else "never")(scope)


@rule("Clip")
def clip(scope: Scope) -> None:
    """Keeps zeros if zero lies between the bounds."""
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    broadcast(scope, x, out)
    low = _bound(scope, 1, "min", -np.inf)
    high = _bound(scope, 2, "max", np.inf)
    scope.zero("all" if low <= 0 <= high else "never", (0,))


def _bound(scope: Scope, slot: int, name: str, absent: float) -> float:
    if not scope.has_input(slot):
        return float(scope.attribute(name, absent))
    value = scope.constant(slot)
    return float(value) if value is not None and value.size == 1 else float("nan")
