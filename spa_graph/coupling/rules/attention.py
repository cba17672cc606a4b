"""Attention as one operator, and rotary embeddings: ONNX (opset 23 on) and ONNX Runtime's.

Layouts, with h query heads, k shared heads of keys and values (h = k x repeat), head size d and
value head size e:

    flat    (batch, sequence, h * d)           a Product: heads run slow, elements of a head fast
    split   (batch, h, sequence, d)            also every cache of keys and values, with k heads
    packed  (batch, sequence, h, 3, d)         queries, keys and values of a head side by side

Heads are independent blocks: whole heads are pruned, and a head of keys and values goes with the
query heads that share it. Scores are scaled by 1 / sqrt(d) unless an attribute says otherwise, so
the head size stays. Sequence axes are attended over by position and stay.
"""

from __future__ import annotations

from dataclasses import dataclass

from spa_graph.coupling.registry import MICROSOFT, rule
from spa_graph.coupling.relations import Axes, Axis
from spa_graph.coupling.scope import Scope
from spa_graph.graph import ONE, Extent

ATTENDS = "attends along this axis"
UNKNOWN = "an operand has no known shape"


@dataclass(frozen=True, slots=True)
class Heads:
    """The axes that an attention operator splits its features into."""

    queries: Axis
    shared: Axis
    size: Axis
    value_size: Axis


def make_heads(
    scope: Scope,
    queries: int,
    shared: int,
    sizes: tuple[int, int],
    names: tuple[str, ...],
) -> Heads:
    """Create the axes of the heads.

    Args:
        queries, shared: how many heads queries, and keys and values, have.
        sizes: of a query or key head, and of a value head.
        names: the attributes that hold the two counts, or their common count.
    """
    groups = scope.new_axis(Extent(shared, shared), "heads")
    scope.prefer(groups, "heads")
    heads = groups
    if queries != shared:
        repeat = queries // shared
        heads = scope.new_axis(Extent(queries, queries), "query heads")
        scope.prefer(heads, "heads")
        scope.product(heads, (groups, scope.new_axis(Extent(repeat, repeat), "queries per head")))
    for name, axis in zip(names, (heads, groups), strict=False):
        if name in scope.operator.attributes:
            scope.attribute_size(name, axis)
    size, value_size = (scope.new_axis(Extent(n, n), "head size") for n in sizes)
    if not scope.attribute("scale", 0.0):
        scope.freeze((size,), "scales by the head size")
    scope.contract(size)
    return Heads(heads, groups, size, value_size)


def relate(scope: Scope, axes: Axes, heads: Axis, size: Axis) -> None:
    """Relate a flat, split or packed operand to its heads."""
    if len(axes) == 3:
        scope.product(axes[2], (heads, size))
    elif len(axes) == 4:
        scope.same(axes[1], heads)
        scope.same(axes[3], size)
    elif len(axes) == 5:
        scope.same(axes[2], heads)
        scope.freeze((axes[3],), "packs keys and values")
        scope.same(axes[4], size)
    else:
        scope.freeze(axes, "has an unknown layout")


def sequence(axes: Axes) -> Axis:
    """The sequence axis of a flat, split or packed operand."""
    return axes[2] if len(axes) == 4 else axes[1]


def caches(
    scope: Scope, batch: Axis, heads: Heads, keys: list[Axes | None], values: list[Axes | None]
) -> None:
    """Past and present keys and values: (batch, shared heads, length, head size)."""
    for found, size in ((keys, heads.size), (values, heads.value_size)):
        for axes in found:
            if axes is not None:
                scope.same(batch, axes[0])
                relate(scope, axes, heads.shared, size)
                scope.freeze((axes[2],), ATTENDS)


def scores(scope: Scope, axes: Axes | None, heads: Axis) -> None:
    """Something that is broadcast to the scores (batch, heads, queries, keys)."""
    if axes is None:
        return
    scope.freeze(axes[-2:], ATTENDS)
    if len(axes) > 2 and scope.extent(axes[-3]) != ONE:
        scope.same(axes[-3], heads)


def attend(scope: Scope, batch: Axis, lengths: tuple[Axis, Axis], heads: Heads) -> None:
    """Freeze the sequences, and count scores and weighted values."""
    scope.freeze(lengths, ATTENDS)
    scope.macs(1.0, batch, *lengths, heads.queries, heads.size)
    scope.macs(1.0, batch, *lengths, heads.queries, heads.value_size)


def head_size(scope: Scope, axes: Axes, heads: int) -> int:
    """The head size of a flat, split or packed operand."""
    width = scope.extent(axes[-1]).nominal
    return width // heads if len(axes) == 3 else width


# --- ONNX ------------------------------------------------------------------------------------


@rule("Attention")
def attention(scope: Scope) -> None:
    """Q, K, V flat (heads in attributes) or split; mask, caches, and scores as an output."""
    q, k, v, out = scope.input(0), scope.input(1), scope.input(2), scope.output()
    if q is None or k is None or v is None or out is None:
        return scope.freeze_all(UNKNOWN)
    flat = len(q) == 3
    queries = scope.attribute("q_num_heads", 0) if flat else scope.extent(q[1]).nominal
    shared = scope.attribute("kv_num_heads", 0) if flat else scope.extent(k[1]).nominal
    if not queries or not shared:
        return scope.freeze_all("its number of heads is not stated")
    sizes = head_size(scope, q, queries), head_size(scope, v, shared)
    heads = make_heads(scope, queries, shared, sizes, ("q_num_heads", "kv_num_heads"))
    relate(scope, q, heads.queries, heads.size)
    relate(scope, k, heads.shared, heads.size)
    relate(scope, v, heads.shared, heads.value_size)
    relate(scope, out, heads.queries, heads.value_size)
    if queries == shared:
        scope.same(v[2] if flat else v[1], out[2] if flat else out[1])
    scope.same(q[0], k[0], v[0], out[0])
    scores(scope, scope.input(3), heads.queries)
    scores(scope, scope.output(3), heads.queries)
    keys, values = [scope.input(4), scope.output(1)], [scope.input(5), scope.output(2)]
    caches(scope, q[0], heads, keys, values)
    scope.freeze((sequence(v), sequence(out)), ATTENDS)
    attend(scope, q[0], (sequence(q), sequence(k)), heads)
    scope.zero("all", (2, 5))  # weighted sums of zero values


# --- ONNX Runtime ----------------------------------------------------------------------------


@rule("Attention", domain=MICROSOFT)
def packed_attention(scope: Scope) -> None:
    """Projection and attention in one: input (batch, sequence, in), weights (in, q + k + v)."""
    x, weights = scope.input(0), scope.input(1)
    if x is None or weights is None:
        return scope.freeze_all(UNKNOWN)
    scope.contract(x[2], slots=(0, 1))
    project_and_attend(scope, bias_slot=2, past_slot=4, scores_slot=5)


def project_and_attend(
    scope: Scope, bias_slot: int, past_slot: int, scores_slot: int | None
) -> None:
    """What Attention and its quantised form share; the rule contracts over the input features."""
    x, weights, bias = scope.input(0), scope.input(1), scope.input(bias_slot)
    past, out, present = scope.input(past_slot), scope.output(), scope.output(1)
    if x is None or weights is None or out is None:
        return scope.freeze_all(UNKNOWN)
    count, total = scope.attribute("num_heads"), scope.extent(weights[1]).nominal
    widths = scope.attribute("qkv_hidden_sizes") or [total // 3] * 3
    heads = make_heads(
        scope, count, count, (widths[0] // count, widths[2] // count), ("num_heads",)
    )
    if not scope.attribute("qkv_hidden_sizes"):
        scope.same(heads.size, heads.value_size)
    if scope.attribute("do_rotary", 0):
        scope.freeze((heads.size,), "rotates pairs of elements")
    parts = [merged(scope, heads.queries, size) for size in (heads.size, heads.size)]
    scope.segments(weights[1], [*parts, out[2]])
    scope.product(out[2], (heads.queries, heads.value_size))
    if scope.attribute("qkv_hidden_sizes"):
        scope.attribute_sizes("qkv_hidden_sizes", [*parts, out[2]])
    scope.same(x[2], weights[0])
    if bias is not None:
        scope.same(weights[1], bias[0])
        scope.role(bias_slot, "bias")
    for cache in (past, present):
        if cache is not None:
            scope.freeze((cache[0],), "stores keys beside values")
            caches(scope, x[0], heads, [cache[1:]], [cache[1:]])
    scores(scope, scope.input(scores_slot) if scores_slot is not None else None, heads.queries)
    scope.freeze((x[0], out[0], out[1]), ATTENDS)
    attend(scope, x[0], (x[1], present[3] if present is not None else x[1]), heads)
    scope.macs(1.0, x[0], x[1], weights[0], weights[1])
    stored = all(scope.is_parameter(slot) for slot in (1, bias_slot) if scope.has_input(slot))
    scope.zero("all" if stored else "never", ())  # no weights give zero values, whatever comes in


def merged(scope: Scope, heads: Axis, size: Axis) -> Axis:
    """A new axis that enumerates the elements of all heads."""
    axis = scope.new_axis(scope.extent(heads) * scope.extent(size), "heads x head size")
    scope.product(axis, (heads, size))
    return axis


@rule("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(scope: Scope) -> None:
    """Query flat or packed with keys and values; key flat, split or packed with the values."""
    query, key, value, out = scope.input(0), scope.input(1), scope.input(2), scope.output()
    if query is None or out is None:
        return scope.freeze_all(UNKNOWN)
    if key is None and len(query) == 3:
        return scope.freeze_all("its queries, keys and values are packed in an unknown way")
    count = scope.attribute("num_heads")
    sizes = head_size(scope, query, count), scope.extent(out[2]).nominal // count
    heads = make_heads(scope, count, count, sizes, ("num_heads",))
    holds_value = value if value is not None else key if key is not None else query
    if value is None:
        scope.same(heads.size, heads.value_size)
    relate(scope, query, heads.queries, heads.size)
    if key is not None:
        relate(scope, key, heads.queries, heads.size)
    relate(scope, holds_value, heads.queries, heads.value_size)
    scope.product(out[2], (heads.queries, heads.value_size))
    if value is not None and len(value) == 3:
        scope.same(value[2], out[2])
    bias = scope.input(3)
    if bias is not None:
        parts = [merged(scope, heads.queries, size) for size in (heads.size, heads.size)]
        scope.segments(bias[0], [*parts, merged(scope, heads.queries, heads.value_size)])
        scope.role(3, "bias")
    _states(scope, heads, query, holds_value, out)
    scope.zero("all", (2, 3, 7))


def _states(scope: Scope, heads: Heads, query: Axes, value: Axes, out: Axes) -> None:
    """Batch and sequences, the score bias, the caches and the scores of MultiHeadAttention."""
    scope.same(query[0], value[0], out[0])
    scope.freeze((out[1],), ATTENDS)
    scores(scope, scope.input(5), heads.queries)
    scores(scope, scope.output(3), heads.queries)
    keys, values = [scope.input(6), scope.output(1)], [scope.input(7), scope.output(2)]
    caches(scope, query[0], heads, keys, values)
    key = scope.input(1)
    attend(scope, query[0], (query[1], sequence(key if key is not None else query)), heads)


@rule("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(scope: Scope) -> None:
    """Query, key and value flat, or all three joined in the query.

    The kernels demand head sizes of a multiple of 8 (16 with rotation), so these stay.
    """
    query, key, value, out = scope.input(0), scope.input(1), scope.input(2), scope.output()
    if query is None or out is None:
        return scope.freeze_all(UNKNOWN)
    queries, shared = scope.attribute("num_heads"), scope.attribute("kv_num_heads")
    size = scope.extent(out[2]).nominal // queries
    heads = make_heads(scope, queries, shared, (size, size), ("num_heads", "kv_num_heads"))
    scope.freeze((heads.size, heads.value_size), "demands this head size")
    scope.product(out[2], (heads.queries, heads.value_size))
    if key is None or value is None:
        counts = (heads.queries, heads.shared, heads.shared)
        scope.segments(query[2], [merged(scope, each, heads.size) for each in counts])
    else:
        relate(scope, query, heads.queries, heads.size)
        relate(scope, key, heads.shared, heads.size)
        relate(scope, value, heads.shared, heads.value_size)
        if queries == shared:
            scope.same(value[2], out[2])
    _sinks(scope, heads)
    scope.same(query[0], out[0])
    scope.freeze((out[1],), ATTENDS)
    keys, values = [scope.input(3), scope.output(1)], [scope.input(4), scope.output(2)]
    caches(scope, query[0], heads, keys, values)
    attend(scope, query[0], (query[1], sequence(key if key is not None else query)), heads)
    scope.zero("all", (2, 4))


def _sinks(scope: Scope, heads: Heads) -> None:
    """Score bias, scores, and one number per head that is added to the softmax's denominator."""
    scores(scope, scope.input(10), heads.queries)
    scores(scope, scope.output(3), heads.queries)
    sink = scope.input(11)
    if sink is not None:
        scope.same(sink[0], heads.queries)
        scope.role(11, "bias")


# --- linear attention ------------------------------------------------------------------------


@rule("LinearAttention")
def linear_attention(scope: Scope) -> None:
    """Query, key, value flat; a state (batch, k, d, e); output flat, and the new state.

    Decay is per head or per element of a key, beta per head or a single one.
    """
    query, key, value, out = scope.input(0), scope.input(1), scope.input(2), scope.output()
    if query is None or key is None or value is None or out is None:
        return scope.freeze_all(UNKNOWN)
    names = ("q_num_heads", "kv_num_heads")
    queries, shared = (scope.attribute(name) for name in names)
    sizes = head_size(scope, query, queries), head_size(scope, value, shared)
    heads = make_heads(scope, queries, shared, sizes, names)
    for axes, count, size in (
        (query, heads.queries, heads.size),
        (key, heads.shared, heads.size),
        (value, heads.shared, heads.value_size),
        (out, heads.queries, heads.value_size),
    ):
        scope.same(query[0], axes[0])
        scope.freeze((axes[1],), ATTENDS)
        relate(scope, axes, count, size)
    if queries == shared:
        scope.same(value[2], out[2])
    around = (query[0], heads.shared, heads.size, heads.value_size)
    for state in filter(None, (scope.input(3), scope.output(1))):
        for axis, other in zip(state, around, strict=True):
            scope.same(other, axis)
    for gate in (scope.input(4), scope.input(5)):
        if gate is not None and scope.extent(gate[2]) == scope.extent(heads.shared):
            scope.same(gate[2], heads.shared)
        elif gate is not None and scope.extent(gate[2]) != ONE:
            relate(scope, gate, heads.shared, heads.size)
    scope.zero("all", (2, 3))
    scope.macs(2.0, query[0], query[1], heads.queries, heads.size, heads.value_size)


# --- rotary embeddings -----------------------------------------------------------------------


@rule("RotaryEmbedding")
def rotary(scope: Scope) -> None:
    """X flat (with `num_heads`) or split; angles (..., d / 2) are the same for all heads."""
    rotate(scope, scope.attribute("num_heads", 0))


@rule("RotaryEmbedding", domain=MICROSOFT)
def rotary_of_runtime(scope: Scope) -> None:
    """The same; without `num_heads`, the angles (positions, d / 2) tell the head size."""
    x, angles, heads = scope.input(0), scope.input(2), scope.attribute("num_heads", 0)
    if not heads and x is not None and angles is not None and len(x) == 3:
        heads = scope.extent(x[2]).nominal // (2 * scope.extent(angles[1]).nominal)
    rotate(scope, heads)


def rotate(scope: Scope, count: int) -> None:
    """Elements of a head mix in pairs: whole heads can go."""
    x, out = scope.input(0), scope.output()
    if x is None or out is None:
        return scope.freeze_all(UNKNOWN)
    scope.same(x[0], out[0])
    scope.align(x, out)
    if len(x) == 4:
        scope.freeze((x[2], x[3]), "rotates pairs of elements by their position")
    elif not count:
        return scope.freeze_all("its number of heads is not stated")
    else:
        heads = scope.new_axis(Extent(count, count), "heads")
        size = scope.fixed(scope.extent(x[2]).nominal // count, "rotates pairs of elements")
        scope.prefer(heads, "heads")
        scope.product(x[2], (heads, size))
        if scope.attribute("num_heads", 0):
            scope.attribute_size("num_heads", heads)
        scope.freeze((x[1],), "rotates by position")
    scope.zero("all", (0,))
