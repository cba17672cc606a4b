"""Convolutions and pooling.

Layouts: x (n, c, *), Conv weight (out, in / group, *kernel), ConvTranspose weight
(in, out / group, *kernel). With groups, c = group x (c / group) on both sides: the groups are
independent blocks, and removing one removes its inputs and its outputs.
"""

from __future__ import annotations

from spa_graph.coupling.registry import rule
from spa_graph.coupling.relations import Axes, Axis
from spa_graph.coupling.scope import LinearForm, Scope, Slots
from spa_graph.coupling.signature import apply, parse, signature
from spa_graph.graph import Extent

WINDOW = "slides a window along this axis"


@rule("Conv")
def conv(scope: Scope) -> None:
    convolve(scope, weight_slot=1, bias_slot=2)
    _linear(scope, "convolution", inputs=1, outputs=0)


def _linear(scope: Scope, form: LinearForm, inputs: int, outputs: int) -> None:
    x = scope.input(0)
    if x is not None:
        channels = 1 - len(x)
        scope.linear(
            form, (0, 1, 2), features=channels, inputs=inputs, outputs=outputs, result=channels
        )


@rule("ConvTranspose")
def conv_transpose(scope: Scope) -> None:
    x, weight, out = scope.input(0), scope.input(1), scope.output()
    if x is None or weight is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    _freeze_windows(scope, x, weight, out)
    scope.same(x[0], out[0])
    per_group = scope.extent(x[1]).nominal // scope.attribute("group", 1)
    groups = _groups(scope, per_group)
    scope.same(x[1], weight[0])
    scope.product(x[1], (groups, scope.new_axis(Extent(per_group, per_group), "inputs per group")))
    scope.product(out[1], (groups, weight[1]))
    bias = scope.input(2)
    if bias is not None:
        scope.same(out[1], bias[0])
        scope.role(2, "bias")
    scope.contract(x[1])
    scope.zero("all", (1, 2))
    scope.macs(1.0, x[0], weight[0], weight[1], *weight[2:], *x[2:])
    if scope.attribute("auto_pad") in (None, "NOTSET", "VALID") and not scope.attribute(
        "output_shape"
    ):
        _linear(scope, "transposed convolution", inputs=0, outputs=1)


def convolve(
    scope: Scope,
    weight_slot: int,
    bias_slot: int | None,
    *,
    channels_last: bool = False,
    exact_slots: Slots = None,
) -> None:
    """Conv and its fused and quantised forms, which have their operands at other positions.

    `exact_slots`: the operands whose zeros stand for zero features or weights.
    """
    x, weight, out = scope.input(0), scope.input(weight_slot), scope.output()
    if x is None or weight is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    if channels_last:
        x, out = channels_first(x), channels_first(out)
    _freeze_windows(scope, x, weight, out)
    scope.contract(x[1], slots=exact_slots)
    count = scope.attribute("group", 1)
    if count == 1:
        scope.align((x[0], out[1], x[1]), (out[0], weight[0], weight[1]))
    else:
        scope.align((x[0], out[1]), (out[0], weight[0]))
        groups = _groups(scope, scope.extent(weight[1]).nominal)
        per_group = scope.extent(out[1]).nominal // count
        scope.product(x[1], (groups, weight[1]))
        outputs = scope.new_axis(Extent(per_group, per_group), "outputs per group")
        scope.product(out[1], (groups, outputs))
    bias = scope.input(bias_slot) if bias_slot is not None else None
    if bias is not None and bias_slot is not None:
        scope.same(out[1], bias[0])
        scope.role(bias_slot, "bias")
    scope.zero("all", (weight_slot,) if bias_slot is None else (weight_slot, bias_slot))
    scope.macs(1.0, out[0], weight[0], weight[1], *weight[2:], *out[2:])


def _freeze_windows(scope: Scope, x: Axes, weight: Axes, out: Axes) -> None:
    scope.freeze((*x[2:], *out[2:], *weight[2:]), WINDOW)


def channels_first(axes: Axes) -> Axes:
    """Reorder (n, *, c) to (n, c, *)."""
    return (axes[0], axes[-1], *axes[1:-1])


def _groups(scope: Scope, inputs: int) -> Axis:
    """The axis of the convolution's groups of `inputs` channels; one element if there are none."""
    count = scope.attribute("group", 1)
    groups = scope.new_axis(Extent(count, count), "groups")
    if count > 1:  # with one input each (depthwise) they are just channels
        scope.prefer(groups, "groups" if inputs > 1 else None)
    scope.attribute_size("group", groups)
    return groups


_POOLED = parse("n c _* -> n c _*, n c _*")


@rule("MaxPool")
def max_pool(scope: Scope) -> None:
    """The second output holds positions in the flat tensor; only MaxUnpool knows their meaning."""
    apply(scope, _POOLED)
    scope.zero("all")
    positions = scope.output(1)
    if positions is not None:
        users = scope.relations.graph.uses().get(scope.operator.outputs[1], [])
        if any(operator.op_type != "MaxUnpool" for operator, _ in users):
            scope.freeze((positions[1],), "gives positions that count the channels")


signature("AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool", "n c _* -> n c _*")
signature("MaxUnpool", "n c _*, n c _* -> n c _*", slots=(0,))
# Divides by what a window over the channels sums up: neighbours are those that are left.
signature("LRN", "n c * -> n c *", renormalise="c")
