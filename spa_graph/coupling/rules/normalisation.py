"""Normalisation. Over what an operator takes its statistics decides what removal does.

BatchNormalization and InstanceNormalization treat channels one by one: removal is exact; behind
the channels, InstanceNormalization is renormalising.
LayerNormalization and RMSNormalization take statistics over the channels: renormalising.
GroupNormalization: exact if whole groups go, renormalising within a group.
"""

from __future__ import annotations

from spa_graph.coupling.registry import MICROSOFT, rule
from spa_graph.coupling.rules.linear import broadcast
from spa_graph.coupling.scope import Scope
from spa_graph.coupling.signature import apply, parse
from spa_graph.graph import Extent


@rule("InstanceNormalization")
def instance_norm(scope: Scope) -> None:
    """Statistics over whatever comes behind the channels: renormalising there.

    Exporters write group normalisation so, as (n, groups, everything else).
    """
    bound = apply(scope, _INSTANCE_NORM)
    x = scope.input(0)
    if x is not None and "c" in bound:
        if scope.relations.dim(x[1]) in scope.relations.factors:  # cut out of a larger one
            scope.prefer(x[1], "groups")
        scope.renormalise(*x[2:])
    if scope.attribute("epsilon", 1e-5) > 0:
        scope.zero("all", (1, 2))
    else:  # as paddle2onnx writes group normalisation
        scope.zero("compact")
    scope.role(1, "scale")
    scope.role(2, "bias")


_INSTANCE_NORM = parse("n c *, c, c -> n c *")


_BATCH_NORM = parse("n c *, c, c, c, c -> n c *")


@rule("BatchNormalization")
def batch_norm(scope: Scope) -> None:
    """In training mode it takes its own statistics, which networks use to standardise weights."""
    if scope.attribute("spatial", 1) == 0:
        return scope.freeze_all("normalises each position by itself")
    apply(scope, _BATCH_NORM)
    x = scope.input(0)
    if scope.attribute("training_mode", 0) and x is not None:
        scope.renormalise(x[0], *x[2:])
        for slot in (1, 2):
            for axis in scope.output(slot) or ():
                scope.same(x[1], axis)
    scope.zero("all", (1, 2))
    for slot, role in ((1, "scale"), (2, "bias"), (3, "statistic"), (4, "statistic")):
        scope.role(slot, role)  # type: ignore[arg-type]


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_norm(scope: Scope) -> None:
    """Statistics over all axes from `axis` on; scale and bias span those axes."""
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    scope.align(x, out)
    along = scope.attribute("axis", -1) % len(x)
    for slot, role in ((1, "scale"), (2, "bias")):
        axes = scope.input(slot)
        if axes is not None:
            broadcast(scope, axes, out)
            scope.role(slot, role)  # type: ignore[arg-type]
    for statistics in scope.outputs()[1:]:
        scope.align(x[:along], statistics[:along])
    scope.renormalise(*x[along:])
    scope.zero("all", (1, 2))


@rule("GroupNormalization")
def group_norm(scope: Scope) -> None:
    """Up to opset 20 scale and bias are per group, from 21 on per channel."""
    group_normalise(scope, channel=1)


@rule("GroupNorm", domain=MICROSOFT)
def group_norm_channels_last(scope: Scope) -> None:
    if scope.attribute("channels_last", 1) == 0:
        return group_normalise(scope, channel=1)
    x = scope.input(0)
    group_normalise(scope, channel=len(x) - 1 if x else -1)


def group_normalise(scope: Scope, channel: int) -> None:
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    name = "num_groups" if "num_groups" in scope.operator.attributes else "groups"
    count = scope.attribute(name)
    size = scope.extent(x[channel]).nominal
    groups = scope.new_axis(Extent(count, count), "groups")
    within = scope.new_axis(Extent(size // count, size // count), "channels per group")
    scope.prefer(groups, "groups")
    scope.product(x[channel], (groups, within))
    scope.attribute_size(name, groups)
    for position, (source, target) in enumerate(zip(x, out, strict=True)):
        scope.same(source, target)
        if position not in (0, channel):
            scope.renormalise(source)
    for slot, role in ((1, "scale"), (2, "bias")):
        axes = scope.input(slot)
        if axes is not None:
            per_group = scope.extent(axes[0]).nominal == count != size
            scope.same(groups if per_group else x[channel], axes[0])
            scope.role(slot, role)  # type: ignore[arg-type]
    scope.renormalise(within)
    # Groups per channel can't be told apart by scale alone, so zero is claimed per channel only.
    scope.zero("all", (1, 2))


@rule("MeanVarianceNormalization")
def mean_variance_norm(scope: Scope) -> None:
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    axes = scope.attribute("axes") or (0, 2, 3)
    _pass_through(scope, [x[axis % len(x)] for axis in axes])
    scope.zero("compact")  # zeros have no variance to divide by


@rule("LpNormalization")
def lp_norm(scope: Scope) -> None:
    x = scope.input(0)
    if x is None:
        return scope.freeze_all("an operand has no known shape")
    _pass_through(scope, [x[scope.attribute("axis", -1) % len(x)]])
    scope.zero("compact")


def _pass_through(scope: Scope, renormalised: list[int]) -> None:
    x, out = scope.input(0), scope.output()
    scope.align(x or (), out or ())
    scope.renormalise(*renormalised)


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(scope: Scope) -> None:
    """The normalised axis is read by position (classes, attended tokens): it stays.

    Among experts that are left out, a router shares its weight among the others.
    """
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all("an operand has no known shape")
    old = scope.operator.version < 13  # flattened to two axes before
    along = scope.attribute("axis", 1 if old else -1) % len(x)
    normalised = x[along:] if old else (x[along],)
    scope.align(x, out)
    scope.only_experts(normalised, "is normalised over")
    scope.renormalise(*normalised)
    scope.zero("never")
