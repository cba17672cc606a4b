"""Operators that work by position, sample, generate, or whose result is not a plain tensor.

Where some axes just pass through they are related; whatever is told by position is frozen, with
the reason that the report prints.
"""

from __future__ import annotations

from spa_graph.coupling.registry import MICROSOFT, freezes, rule
from spa_graph.coupling.relations import Axes, but
from spa_graph.coupling.rules.convolution import convolve
from spa_graph.coupling.scope import Scope
from spa_graph.coupling.signature import apply, parse, signature
from spa_graph.graph import Extent

UNKNOWN = "an operand has no known shape"

# --- frozen as a whole -----------------------------------------------------------------------

_FROZEN = {
    "works on a list of tensors": (
        "ConcatFromSequence SequenceAt SequenceConstruct SequenceEmpty SequenceErase "
        "SequenceInsert SequenceLength SequenceMap SplitToSequence"
    ),
    "works on an optional value": "Optional OptionalGetElement OptionalHasElement",
    "runs a subgraph": "If Loop Scan",
    "works on text": "RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer",
    "holds text or a sparse tensor": "Constant",
    "decodes an image": "ImageDecoder",
    "draws a random number for each element": (
        "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike"
    ),
    "generates values by position": (
        "AffineGrid BlackmanWindow EyeLike HammingWindow HannWindow MelWeightMatrix Range"
    ),
    "finds elements by position": "NonMaxSuppression NonZero Unique",
    "is a loss for training": "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss",
    "transforms a whole signal": "STFT",
}


for _reason, _op_types in _FROZEN.items():
    freezes(_op_types, _reason)

# --- sampling --------------------------------------------------------------------------------

# Channels are sampled one by one, at places that another input tells.
signature("GridSample", "n c _*, n _* -> n c _*", slots=(0,))
signature("GridSample", "n c _*, n _* -> n c _*", slots=(0,), domain=MICROSOFT)
signature("RoiAlign", "_ c _*, r _, r -> r c _*", slots=(0,))
signature("MaxRoiPool", "_ c _*, r _ -> r c _*", slots=(0,))


@rule("DeformConv")
def deform_conv(scope: Scope) -> None:
    """X, W, offsets, B, mask; groups of channels are sampled at offsets of their own.

    offsets (n, groups * taps * dimensions, *), mask (n, groups * taps, *).
    """
    x, offsets = scope.input(0), scope.input(2)
    if x is None or offsets is None:
        return scope.freeze_all(UNKNOWN)
    convolve(scope, weight_slot=1, bias_slot=3)
    for places in filter(None, (offsets, scope.input(4))):
        scope.same(x[0], places[0])
        scope.freeze(places[1:], "holds places to sample at")
    count = scope.attribute("offset_group", 1)
    if count > 1:
        size = scope.extent(x[1]).nominal // count
        own = scope.new_axis(Extent(size, size), "channels per offset group")
        scope.product(x[1], (scope.fixed(count, "counts groups of offsets"), own))


@rule("Col2Im")
def col2im(scope: Scope) -> None:
    """x (n, c * block, places) -> (n, c, *image): overlapping blocks are summed."""
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all(UNKNOWN)
    size = scope.extent(x[1]).nominal // scope.extent(out[1]).nominal
    scope.same(x[0], out[0])
    scope.product(x[1], (out[1], scope.fixed(size, "is spread over the image")))
    scope.freeze((*x[2:], *out[2:]), "is spread over the image")
    scope.zero("move")


@rule("CausalConvWithState")
def causal_conv(scope: Scope) -> None:
    """Depthwise over (n, c, length): each channel has its own taps, shift and state."""
    bound = apply(scope, _CAUSAL_CONV)
    scope.role(2, "bias")
    scope.zero("all", outputs=None)
    weight, x = scope.input(1), scope.input(0)
    if bound and weight is not None and x is not None:
        scope.macs(1.0, x[0], x[2], *weight)


_CAUSAL_CONV = parse("n c _, c _ _, c, n c _ -> n c _, n c _")

# --- some axes by position, the others pass --------------------------------------------------


def _pass_but(scope: Scope, positions: tuple[int, ...], why: str) -> tuple[Axes, Axes] | None:
    """Relate input 0 and the output axis by axis, except at some positions, which freeze."""
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        scope.freeze_all(UNKNOWN)
        return None
    fixed = {position % len(x) for position in positions}
    for position, (source, target) in enumerate(zip(x, out, strict=True)):
        if position in fixed:
            scope.freeze((source, target), why)
        else:
            scope.same(source, target)
    scope.zero("all", (0,))
    return x, out


@rule("Trilu")
@rule("Trilu", domain=MICROSOFT)
def trilu(scope: Scope) -> None:
    _pass_but(scope, (-2, -1), "keeps a triangle")


@rule("ReverseSequence")
def reverse_sequence(scope: Scope) -> None:
    along = (scope.attribute("time_axis", 0), scope.attribute("batch_axis", 1))
    _pass_but(scope, along, "is reversed by position")


@rule("DFT")
def dft(scope: Scope) -> None:
    """Along one axis; the last holds real and imaginary parts. The axis is an input from 20 on."""
    along = scope.attribute("axis", 1)
    if scope.operator.version >= 20:
        given = scope.constant(2)
        if scope.has_input(2) and given is None:
            return scope.freeze_all("the transformed axis is not constant")
        along = int(given.reshape(-1)[0]) if given is not None else -2
    _pass_but(scope, (along, -1), "is transformed along this axis")


@rule("TensorScatter")
def tensor_scatter(scope: Scope) -> None:
    """cache, update, places (n,): rows of the update go to places along `axis`."""
    along = scope.attribute("axis", -2)
    axes, update = _pass_but(scope, (0, along), "is written by position"), scope.input(1)
    if axes is None or update is None:
        return
    for position, (own, other) in enumerate(zip(axes[0], update, strict=True)):
        if position in (0, along % len(update)):
            scope.freeze((other,), "is written by position")
        else:
            scope.same(own, other)
    scope.zero("all", (0, 1))


@rule("CenterCropPad")
def center_crop_pad(scope: Scope) -> None:
    """Cuts or pads the listed axes to a size around their middle."""
    x = scope.input(0)
    axes = scope.attribute("axes")
    listed = tuple(axes) if axes is not None else tuple(range(len(x or ())))
    _pass_but(scope, listed, "is cut or padded around its middle")


@rule("Det")
def det(scope: Scope) -> None:
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all(UNKNOWN)
    scope.freeze(x[-2:], "holds matrices")
    scope.align(x[:-2], out)
    scope.zero("all")


@rule("OneHot")
def one_hot(scope: Scope) -> None:
    """indices, depth, values: the result has one axis more, told by position."""
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all(UNKNOWN)
    new = scope.attribute("axis", -1) % len(out)
    if scope.look_up(0, out[new]):
        scope.input_sizes(1, (out[new],))
    else:
        scope.freeze((out[new],), "is told by position")
    scope.align(x, but(out, new))
    scope.zero("never")
