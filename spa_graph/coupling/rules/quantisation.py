"""Quantised operators: integers with a scale and a zero point, real = (integer - zero) * scale.

Scales and zero points are per tensor (one element), per axis (a vector along one axis, which is
pruned with it), or per block (blocks of neighbours share a scale: that axis stays).

Zero channels. Integers that are set to 0 stand for the real 0 only if their zero point is 0. So a
zeroed weight counts as zero if all its zero points are 0, and only along the quantised axis if they
are stored per channel, where they are zeroed as well. Features are told to be zero only if they are
the integer 0 and every zero point on the way is 0. Otherwise the operator is run compactly.
"""

from __future__ import annotations

import numpy as np

from spa_graph.coupling.registry import MICROSOFT, freezes, rule
from spa_graph.coupling.relations import Axes, Axis
from spa_graph.coupling.rules import recurrent
from spa_graph.coupling.rules.attention import project_and_attend
from spa_graph.coupling.rules.convolution import WINDOW, channels_first, convolve
from spa_graph.coupling.rules.linear import affine, broadcast, multiply
from spa_graph.coupling.scope import Scope, Slots, ZeroMode
from spa_graph.graph import ONE

UNKNOWN = "an operand has no known shape"
PER_BLOCK = "is quantised in blocks along this axis"


def zero_points_are_zero(scope: Scope, *slots: int) -> bool:
    """Whether these inputs are absent, or stored zeros."""
    for slot in slots:
        if not scope.has_input(slot):
            continue
        parameter = scope.relations.graph.parameters.get(scope.operator.inputs[slot])
        if parameter is None or np.asarray(parameter.load()).astype(np.int64).any():
            return False
    return True


def settings(scope: Scope, along: Axis, *slots: int, position: int = -1) -> None:
    """Scales and zero points: a single element, or one for each element of an axis.

    They are vectors, or have the rank of the tensor and vary along `position` only.
    """
    for slot in slots:
        axes = scope.input(slot) or ()
        for place, axis in enumerate(axes, start=-len(axes)):
            if scope.extent(axis) == ONE:
                continue
            if place == position or len(axes) == 1:
                scope.same(along, axis)
            else:
                scope.freeze((axis, along), "is quantised along several axes")
        scope.role(slot, "statistic")


# --- quantise and dequantise -----------------------------------------------------------------


@rule("QuantizeLinear", "DequantizeLinear")
@rule("QuantizeLinear", "DequantizeLinear", domain=MICROSOFT)
def linear(scope: Scope) -> None:
    """x, scale (one element; along `axis`; or of x's rank, in blocks), zero point -> like x."""
    x, out, scale = scope.input(0), scope.output(), scope.input(1)
    if x is None or out is None or scale is None:
        return scope.freeze_all(UNKNOWN)
    scope.align(x, out)
    along = scope.attribute("axis", 1)
    for slot in (1, 2):
        axes = scope.input(slot) or ()
        if len(axes) == 1:
            settings(scope, x[along] if -len(x) <= along < len(x) else x[-1], slot)
        elif axes:
            _blocks(scope, x, axes)
        scope.role(slot, "statistic")
    scope.role(0, "bias" if len(x) == 1 else "weight")
    scope.code(0, scale=1, zero_point=2, axis=along)
    per_axis = any(scope.extent(axis) != ONE for axis in scale)
    if scope.operator.op_type == "QuantizeLinear" and per_axis:
        scope.zero("compact")  # a zeroed scale divides by zero
    else:
        scope.zero("all", (0,) if zero_points_are_zero(scope, 2) else (0, 2))


def _blocks(scope: Scope, x: Axes, axes: Axes) -> None:
    for own, other in zip(x, axes, strict=True):
        if scope.extent(own) == scope.extent(other):
            scope.same(own, other)
        else:
            scope.freeze((own, other), PER_BLOCK)


@rule("DynamicQuantizeLinear")
def dynamic_quantise(scope: Scope) -> None:
    """The scale spans the smallest and largest element and zero: zeros don't move it."""
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all(UNKNOWN)
    scope.align(x, out)
    scope.contract(*x)
    scope.zero("never")


# --- convolutions and matrix products --------------------------------------------------------


def _exact_operands(
    scope: Scope, first: tuple[int, int], second: tuple[int, int]
) -> tuple[int, ...]:
    """Of two (operand, zero point): the operands whose integer zeros are real zeros."""
    return tuple(slot for slot, point in (first, second) if zero_points_are_zero(scope, point))


def _zero_product(
    scope: Scope, weight: int, bias: int, exact: tuple[int, ...], out_zero_point: int | None
) -> None:
    """Products are zero where one exact operand is; with a bias only where weights and bias are."""
    if out_zero_point is not None and not zero_points_are_zero(scope, out_zero_point):
        scope.zero("never")
    elif not scope.has_input(bias):
        scope.zero("any", exact)
    else:
        scope.zero("all" if weight in exact else "never", (weight, bias))


@rule("QLinearConv")
@rule("QLinearConv", domain=MICROSOFT)
def qlinear_conv(scope: Scope) -> None:
    """(x, scale, zero) (w, scale, zero), y's (scale, zero), bias (out,) in int32."""
    weight = scope.input(3)
    if weight is None:
        return scope.freeze_all(UNKNOWN)
    last = scope.attribute("channels_last", 0) == 1
    exact = _exact_operands(scope, (0, 2), (3, 5))
    convolve(scope, weight_slot=3, bias_slot=8, channels_last=last, exact_slots=exact)
    settings(scope, weight[0], 4, 5)
    scope.code(3, scale=4, zero_point=5, axis=0)
    # zero points per channel are zeroed with the weights, so y's is all that matters
    slots = (3, 8) if zero_points_are_zero(scope, 5) else (3, 5, 8)
    scope.zero("all" if zero_points_are_zero(scope, 7) else "never", slots)


@rule("ConvInteger")
def conv_integer(scope: Scope) -> None:
    """x, w, their zero points -> int32 sums."""
    weight = scope.input(1)
    if weight is None:
        return scope.freeze_all(UNKNOWN)
    exact = _exact_operands(scope, (0, 2), (1, 3))
    convolve(scope, weight_slot=1, bias_slot=None, exact_slots=exact)
    settings(scope, weight[0], 3)
    scope.role(2, "statistic")
    scope.zero("all", (1,) if zero_points_are_zero(scope, 3) else (1, 3))


def _product(
    scope: Scope, a_slots: tuple[int, ...], b_slots: tuple[int, ...]
) -> tuple[int, ...] | None:
    """A product of integers; returns the exact operands, or None if shapes are unknown.

    Args:
        a_slots: where A, its zero point and its scale stand; the latter two vary per row.
        b_slots: the same of B, per column.
    """
    a, b, out = scope.input(a_slots[0]), scope.input(b_slots[0]), scope.output()
    if a is None or b is None or out is None:
        scope.freeze_all(UNKNOWN)
        return None
    exact = _exact_operands(scope, (a_slots[0], a_slots[1]), (b_slots[0], b_slots[1]))
    multiply(scope, a, b, out, exact)
    settings(scope, a[-2] if len(a) > 1 else a[-1], *a_slots[1:], position=-2)
    settings(scope, b[-1], *b_slots[1:])
    return exact


@rule("MatMulInteger")
def matmul_integer(scope: Scope) -> None:
    """A, B, their zero points -> int32 sums."""
    exact = _product(scope, (0, 2), (1, 3))
    if exact is not None:
        scope.zero("any", exact)


@rule("QLinearMatMul")
def qlinear_matmul(scope: Scope) -> None:
    """(a, scale, zero) (b, scale, zero), y's (scale, zero)."""
    exact = _product(scope, (0, 2, 1), (3, 5, 4))
    scope.code(3, scale=4, zero_point=5, axis=-1)
    if exact is not None:
        scope.zero("any" if zero_points_are_zero(scope, 7) else "never", exact)


@rule("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(scope: Scope) -> None:
    """A, B, their scales (of B one, or one per column), their zero points, bias (columns,)."""
    if any(scope.extent(axis) != ONE for slot in (2, 4) for axis in scope.input(slot) or ()):
        return scope.freeze_all("its first operand has several scales")
    exact = _product(scope, (0, 4, 2), (1, 5, 3))
    scope.code(1, scale=3, zero_point=5, axis=-1)
    if exact is not None:
        _add_bias(scope, 6)
        _zero_product(scope, 1, 6, exact, None)


@rule("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantise_matmul(scope: Scope) -> None:
    """A (float, quantised inside), B (k, n), its scale and zero point, bias (n,).

    A's scale spans all its elements, so that removing a feature is exact only if it is zero in A.
    """
    a, b, out = scope.input(0), scope.input(1), scope.output()
    if a is None or b is None or out is None:
        return scope.freeze_all(UNKNOWN)
    multiply(scope, a, b, out, (0,))
    settings(scope, b[-1], 2, 3)
    scope.code(1, scale=2, zero_point=3, axis=-1)
    _add_bias(scope, 4)
    scope.zero("all" if zero_points_are_zero(scope, 3) else "never", (1, 4))


def _add_bias(scope: Scope, slot: int) -> None:
    bias, out = scope.input(slot), scope.output()
    if bias is not None and out is not None:
        broadcast(scope, bias, out)
        scope.role(slot, "bias")


@rule("QGemm", domain=MICROSOFT)
def qgemm(scope: Scope) -> None:
    """(A, scale, zero) (B, scale, zero), C (n,) in int32, y's (scale, zero) or float output."""
    out = scope.output()
    if out is None:
        return scope.freeze_all(UNKNOWN)
    exact = _exact_operands(scope, (0, 2), (3, 5))
    affine(scope, (0, 3, 6), exact)
    settings(scope, out[1], 4, 5)
    _zero_product(scope, 3, 6, exact, 8)


@rule("QAttention", domain=MICROSOFT)
def quantised_attention(scope: Scope) -> None:
    """Input, weights (in, q + k + v), bias, their scales, mask, their zero points, past.

    Scale and zero point of the weights are per tensor or per column.
    """
    x, weights = scope.input(0), scope.input(1)
    if x is None or weights is None:
        return scope.freeze_all(UNKNOWN)
    scope.contract(x[2], slots=_exact_operands(scope, (0, 6), (1, 7)))
    settings(scope, weights[1], 4, 7)
    project_and_attend(scope, bias_slot=2, past_slot=8, scores_slot=None)
    if not zero_points_are_zero(scope, 7):
        scope.zero("never")


@rule("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_quantise_lstm(scope: Scope) -> None:
    """An LSTM with W (d, input, 4 * hidden), R (d, hidden, 4 * hidden), their scales, zero points.

    Scales are per direction, or (d, 4 * hidden). Features and states are quantised inside, with a
    scale that spans all of them: removing one is exact only if it is zero.
    """
    found = recurrent.relate(scope, recurrent.LSTM, transposed=True)
    if found is None:
        return
    x, hidden = found
    for matrix, slots in ((recurrent.W, (8, 9)), (recurrent.R, (10, 11))):
        weights = scope.input(matrix) or ()
        for slot in slots:
            for axis, other in zip(scope.input(slot) or (), weights[::2], strict=False):
                scope.same(other, axis)
            scope.role(slot, "statistic")
    scope.contract(x[2], slots=(recurrent.X,))
    stored = all(scope.is_parameter(s) for s in recurrent.WEIGHTS if scope.has_input(s))
    starts_at_zero = not any(scope.has_input(slot) for slot in recurrent.STATES)
    exact = zero_points_are_zero(scope, 9, 11)
    if not exact:
        scope.zero("never")
    if exact and stored and starts_at_zero and recurrent.keeps_zero(scope, recurrent.LSTM):
        scope.contract(hidden, slots=(recurrent.R,))
    else:
        scope.renormalise(hidden)


# --- element by element ----------------------------------------------------------------------


def _zero_result(scope: Scope, mode: ZeroMode, slots: Slots, *zero_points: int) -> None:
    scope.zero(mode if zero_points_are_zero(scope, *zero_points) else "never", slots)


# The quantised inputs, and the zero points that must be zero for zeros to pass.
_ELEMENTWISE: dict[str, tuple[tuple[int, ...], tuple[int, ...], ZeroMode]] = {
    "QLinearAdd": ((0, 3), (2, 5, 7), "all"),
    "QLinearMul": ((0, 3), (2, 5, 7), "any"),
    "QLinearLeakyRelu": ((0,), (2, 4), "all"),
    "QLinearSigmoid": ((0,), (2, 4), "never"),
    "QLinearWhere": ((0, 1, 4), (3, 6, 8), "all"),
}


@rule(*_ELEMENTWISE, domain=MICROSOFT)
def qlinear_elementwise(scope: Scope) -> None:
    """Operands with a scale and a zero point each, broadcast to the output."""
    operands, zero_points, mode = _ELEMENTWISE[scope.operator.op_type]
    out = scope.output()
    if out is None:
        return scope.freeze_all(UNKNOWN)
    for slot in operands:
        broadcast(scope, scope.input(slot) or (), out)
    values = operands[1:] if scope.operator.op_type == "QLinearWhere" else operands
    _zero_result(scope, mode, values, *zero_points)


@rule("QLinearConcat", domain=MICROSOFT)
def qlinear_concat(scope: Scope) -> None:
    """y's scale and zero point, then (x, scale, zero) of every part."""
    out, places = scope.output(), range(2, len(scope.operator.inputs), 3)
    parts = [axes for slot in places if (axes := scope.input(slot)) is not None]
    if out is None or len(parts) != len(places):
        return scope.freeze_all(UNKNOWN)
    along = scope.attribute("axis") % len(out)
    for position, axis in enumerate(out):
        own = [axes[position] for axes in parts]
        if position == along:
            scope.segments(axis, own)
        else:
            scope.same(axis, *own)
    _zero_result(scope, "move", None, 1, *(slot + 2 for slot in places))


@rule("QLinearGlobalAveragePool", "QLinearAveragePool", domain=MICROSOFT)
def qlinear_pool(scope: Scope) -> None:
    """(x, scale, zero), y's (scale, zero); (n, c, *) or (n, *, c)."""
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all(UNKNOWN)
    if scope.attribute("channels_last", 0):
        x, out = channels_first(x), channels_first(out)
    scope.align(x[:2], out[:2])
    scope.freeze((*x[2:], *out[2:]), WINDOW)
    _zero_result(scope, "all", (0,), 2, 4)


@rule("QLinearReduceMean", domain=MICROSOFT)
def qlinear_mean(scope: Scope) -> None:
    """(x, scale, zero), y's (scale, zero); the mean over `axes`."""
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all(UNKNOWN)
    gone = [axis % len(x) for axis in scope.attribute("axes") or range(len(x))]
    kept = [position for position in range(len(x)) if position not in gone]
    targets = [out[p] for p in kept] if len(out) == len(x) else out
    for position, target in zip(kept, targets, strict=True):
        scope.same(x[position], target)
    scope.renormalise(*(x[position] for position in gone))
    _zero_result(scope, "all", (0,), 2, 4)


@rule("QLinearSoftmax", domain=MICROSOFT)
def qlinear_softmax(scope: Scope) -> None:
    """The normalised axis is read by position; from opset 13 on it is a single one."""
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all(UNKNOWN)
    scope.align(x, out)
    along = scope.attribute("axis", -1) % len(x)
    single = scope.attribute("opset", 13) >= 13
    scope.freeze((x[along],) if single else x[along:], "is normalised over")
    scope.zero("never")


# --- packed weights --------------------------------------------------------------------------


# Several weights share a byte, and a block of neighbours a scale.
freezes(
    "MatMulNBits MatMulBnb4 MatMulFpQ4 GatherBlockQuantized",
    "its weight is packed in blocks; prune before quantising",
    MICROSOFT,
)
freezes(
    "QEmbedLayerNormalization QMoE",
    "is a quantised layer of a layout of its own; prune before quantising",
    MICROSOFT,
)
