"""Output shapes of ONNX Runtime's fused operators (domain com.microsoft).

onnx itself infers shapes for the standard operators only. Each function gets the input shapes of
one probe (None for an absent input) and the node's attributes, and returns the output shapes.
Layouts: ONNX Runtime, docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Dims = tuple[int, ...]
Shapes = Sequence[Dims | None]
ShapeFunction = Callable[[Shapes, Mapping[str, Any]], list[Dims | None]]


def _like_first(inputs: Shapes, attributes: Mapping[str, Any]) -> list[Dims | None]:
    return [inputs[0]]


def _need(shape: Dims | None) -> Dims:
    if shape is None:
        raise ValueError("an input has no known shape")
    return shape


def _skip_norm(inputs: Shapes, attributes: Mapping[str, Any]) -> list[Dims | None]:
    # output, mean, inverse standard deviation, input + skip (+ bias)
    return [inputs[0], None, None, inputs[0]]


def _embed_norm(inputs: Shapes, attributes: Mapping[str, Any]) -> list[Dims | None]:
    batch, length = _need(inputs[0])
    hidden = _need(inputs[2])[1]
    out = (batch, length, hidden)
    return [out, (batch,), out]


def _attention(inputs: Shapes, attributes: Mapping[str, Any]) -> list[Dims | None]:
    batch, length, _ = _need(inputs[0])
    sizes = attributes.get("qkv_hidden_sizes")
    hidden = sizes[2] if sizes else _need(inputs[1])[-1] // 3
    return [(batch, length, hidden), None]


def _multi_head_attention(inputs: Shapes, attributes: Mapping[str, Any]) -> list[Dims | None]:
    query = _need(inputs[0])
    if len(query) != 3:  # packed QKV: (batch, length, heads, 3, head size)
        batch, length, heads, _, size = query
        return [(batch, length, heads * size), None, None]
    value = inputs[2] if len(inputs) > 2 else None
    if value is None:
        return [query, None, None]
    hidden = value[-1] if len(value) == 3 else value[1] * value[3]
    return [(query[0], query[1], hidden), None, None]


def _group_query_attention(inputs: Shapes, attributes: Mapping[str, Any]) -> list[Dims | None]:
    batch, length, width = _need(inputs[0])
    if len(inputs) < 2 or inputs[1] is None:  # packed QKV
        heads, shared = attributes["num_heads"], attributes["kv_num_heads"]
        width = width // (heads + 2 * shared) * heads
    return [(batch, length, width), None, None]


def _fused_matmul(inputs: Shapes, attributes: Mapping[str, Any]) -> list[Dims | None]:
    left, right = list(_need(inputs[0])), list(_need(inputs[1]))
    if attributes.get("transBatchA") or attributes.get("transBatchB"):
        raise ValueError("transposed batch axes are not supported")
    if attributes.get("transA"):
        left[-2:] = left[:-3:-1]
    if attributes.get("transB"):
        right[-2:] = right[:-3:-1]
    batch = max(left[:-2], right[:-2], key=len)
    return [(*batch, left[-2], right[-1])]


SHAPES: dict[str, ShapeFunction] = {
    **dict.fromkeys(
        ("BiasGelu", "FastGelu", "Gelu", "QuickGelu", "BiasAdd", "RotaryEmbedding"), _like_first
    ),
    "BiasSplitGelu": lambda inputs, attributes: [
        (*_need(inputs[0])[:-1], _need(inputs[0])[-1] // 2)
    ],
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_norm,
    "EmbedLayerNormalization": _embed_norm,
    "Attention": _attention,
    "MultiHeadAttention": _multi_head_attention,
    "GroupQueryAttention": _group_query_attention,
    "FusedMatMul": _fused_matmul,
}
