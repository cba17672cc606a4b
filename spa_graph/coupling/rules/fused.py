"""Operators that ONNX Runtime's optimiser fuses (domain com.microsoft).

Each is a standard operator with something added: an activation, a residual, a transposition, a
channels-last layout. Layouts: onnxruntime, docs/ContribOperators.md.
"""

from __future__ import annotations

from spa_graph.coupling.registry import MICROSOFT, rule
from spa_graph.coupling.relations import Axes
from spa_graph.coupling.rules.convolution import WINDOW, channels_first, convolve
from spa_graph.coupling.rules.linear import broadcast, gemm, multiply
from spa_graph.coupling.scope import Scope, Slots, ZeroMode
from spa_graph.graph import Extent

UNKNOWN = "an operand has no known shape"
_KEEP_ZERO = frozenset({"", "Relu", "LeakyRelu", "Tanh", "Elu", "Softsign", "HardSwish", "Gelu"})


def _activated(scope: Scope, mode: ZeroMode, slots: Slots) -> None:
    """Zero channels pass the fused activation if it maps zero to zero."""
    name = scope.attribute("activation", "")
    low, high = (*scope.attribute("activation_params", ()), 1.0, 1.0)[:2]
    keeps = name in _KEEP_ZERO or (name == "Clip" and low <= 0 <= high)
    scope.zero(mode if keeps else "never", slots)


# --- convolutions ----------------------------------------------------------------------------


@rule("FusedConv", "NhwcConv", "NhwcFusedConv", domain=MICROSOFT)
def fused_conv(scope: Scope) -> None:
    """Activation(Conv(X, W, B) + Z); Z has the shape of the output."""
    channels_last = scope.operator.op_type.startswith("Nhwc")
    convolve(scope, weight_slot=1, bias_slot=2, channels_last=channels_last)
    residual, out = scope.input(3), scope.output()
    if residual is not None and out is not None:
        scope.align(residual, out)
    _activated(scope, "all", (1, 2, 3))


@rule("NhwcMaxPool", domain=MICROSOFT)
def max_pool_channels_last(scope: Scope) -> None:
    """Integers only; zero is the least value of unsigned ones, so that padding keeps it."""
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all(UNKNOWN)
    x, out = channels_first(x), channels_first(out)
    scope.align(x[:2], out[:2])
    scope.freeze((*x[2:], *out[2:]), WINDOW)
    scope.zero("all")


# --- matrix products -------------------------------------------------------------------------


@rule("FusedGemm", domain=MICROSOFT)
def fused_gemm(scope: Scope) -> None:
    gemm(scope)
    if scope.has_input(2):
        _activated(scope, "all", (1, 2))
    else:
        _activated(scope, "any", None)


@rule("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", domain=MICROSOFT)
def fused_matmul(scope: Scope) -> None:
    """Activation(alpha A' B'), with the last two axes of either operand swapped or not."""
    if scope.attribute("transBatchA", 0) or scope.attribute("transBatchB", 0):
        return scope.freeze_all("transposes batch axes")
    a = _swapped(scope, scope.input(0), "transA")
    b = _swapped(scope, scope.input(1), "transB")
    multiply(scope, a, b, scope.output())
    _activated(scope, "any", None)


def _swapped(scope: Scope, axes: Axes | None, attribute: str) -> Axes | None:
    if axes is None or len(axes) < 2 or not scope.attribute(attribute, 0):
        return axes
    return (*axes[:-2], axes[-1], axes[-2])


@rule("GemmFastGelu", domain=MICROSOFT)
def matmul_gelu(scope: Scope) -> None:
    """FastGelu(X W + bias)."""
    bias, out = scope.input(2), scope.output()
    multiply(scope, scope.input(0), scope.input(1), out)
    if bias is not None and out is not None:
        broadcast(scope, bias, out)
        scope.role(2, "bias")
        scope.zero("all", (1, 2))


@rule("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(scope: Scope) -> None:
    """X + bias is (batch, sequence, 2 x hidden): the left half times Gelu of the right one."""
    x, bias, out = scope.input(0), scope.input(1), scope.output()
    if x is None or bias is None or out is None:
        return scope.freeze_all(UNKNOWN)
    scope.align(x[:-1], out[:-1])
    scope.same(x[-1], bias[0])
    scope.product(x[-1], (scope.fixed(2, "holds values and gates"), out[-1]))
    scope.role(1, "bias")
    scope.zero("never")


# --- normalisations --------------------------------------------------------------------------


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_norm(scope: Scope) -> None:
    """Normalises input + skip + bias, and returns that sum as well (output 3).

    input (batch, sequence, hidden), or (tokens, hidden); skip may lack the batch.
    """
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all(UNKNOWN)
    simplified = scope.operator.op_type == "SkipSimplifiedLayerNormalization"
    scale, shift, bias = (2, None, 3) if simplified else (2, 3, 4)
    for slot in filter(None, (1, scale, shift, bias)):
        broadcast(scope, scope.input(slot) or (), out)
    for axes in (x, scope.output(3)):
        broadcast(scope, axes or (), out)
    for statistics in (scope.output(1), scope.output(2)):
        broadcast(scope, statistics or (), out)
    scope.role(scale, "scale")
    scope.role(bias, "bias")
    if shift is not None:
        scope.role(shift, "bias")
    scope.renormalise(out[-1])
    scope.zero("never")


@rule("EmbedLayerNormalization", domain=MICROSOFT)
def embed_norm(scope: Scope) -> None:
    """Looks up words (2), positions (3) and segments (4), adds and normalises them.

    Tables are (entries, hidden), scale (5) and shift (6) are (hidden,). Outputs 0 and 2 are
    (batch, sequence, hidden).
    """
    ids, out = scope.input(0), scope.output()
    if ids is None or out is None:
        return scope.freeze_all(UNKNOWN)
    for slot in (2, 3, 4):
        table = scope.input(slot)
        if table is not None:
            scope.freeze((table[0],), "is looked up by position")
            scope.same(out[-1], table[1])
            scope.role(slot, "table")
    for slot, role in ((5, "scale"), (6, "bias")):
        broadcast(scope, scope.input(slot) or (), out)
        scope.role(slot, role)  # type: ignore[arg-type]
    scope.freeze((*ids, *out[:-1]), "holds token numbers")
    broadcast(scope, scope.output(2) or (), out)
    scope.renormalise(out[-1])
    scope.zero("never")


# --- mixtures --------------------------------------------------------------------------------


@rule("MoE", domain=MICROSOFT)
def mixture(scope: Scope) -> None:
    """Each token's `k` best experts by router (1), weights (2, 4, 6) and biases (3, 5, 7).

    x (*, width), router (tokens, experts), weights (experts, hidden, width), (experts, width,
    hidden) and, for a value beside the gate, like the first. SwiGLU has both in one instead. The
    result is as wide as x, which is one index space with it: the operator needs one size.
    """
    x, router, out = scope.input(0), scope.input(1), scope.output()
    first, second = scope.input(2), scope.input(4)
    if x is None or router is None or out is None or first is None or second is None:
        return scope.freeze_all(UNKNOWN)
    if len(scope.operator.inputs) > 8:
        return scope.freeze_all("has inputs that no rule knows")
    k, hidden = scope.attribute("k", 1), second[2]
    scope.prefer(router[1], "experts")
    scope.picks(router[1], k)
    scope.align(x, out)
    scope.align((x[-1], out[-1]), (first[2], second[1]))
    if scope.extent(hidden) * Extent(2, 2) != scope.extent(first[1]):
        scope.same(hidden, first[1])
    elif scope.attribute("swiglu_fusion", 0) == 1:
        scope.product(first[1], (hidden, scope.fixed(2, "holds gates and values")))
    scope.align(scope.input(6) or (), first if scope.has_input(6) else ())
    for slot in (2, 4, 6):
        weight, bias = scope.input(slot), scope.input(slot + 1)
        if weight is not None:
            scope.same(router[1], weight[0])
            scope.macs(k, *out[:-1], *weight[1:])
        if weight is not None and bias is not None:
            scope.align(bias, weight[:2])
            scope.role(slot + 1, "bias")
    scope.contract(first[2], hidden)
    scope.zero("all", (4, 5))
