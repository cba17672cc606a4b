"""Output shapes of ONNX Runtime's own operators (domain com.microsoft).

onnx itself infers shapes for the standard operators only. Where an operator has a standard twin
with the same shapes, that is inferred instead. For the others a function gets the input shapes of
one probe (None for an absent input) and the node's attributes, and returns the output shapes.
Layouts: ONNX Runtime, docs/ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import onnx

Dims = tuple[int, ...]
Shapes = Sequence[Dims | None]
ShapeFunction = Callable[[Shapes, Mapping[str, Any]], list[Dims | None]]


# --- standard twins --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Twin:
    """The standard operator whose outputs have the same shapes and types.

    Attributes:
        inputs: the positions of its inputs among those of the fused operator.
        channels_last: the first input and the output are (n, *, c) instead of (n, c, *); None: if
            the attribute of that name says so.
        float_without: the output is a float if this input is absent.
        typed_by: the one of its inputs whose type the output has; None leaves it to inference.
    """

    op_type: str
    inputs: Sequence[int]
    channels_last: bool | None = None
    version: int = 21
    float_without: int | None = None
    typed_by: int | None = 0

    def schema(self) -> onnx.defs.OpSchema:
        return onnx.defs.get_schema(self.op_type, self.version, "")

    def node(self, fused: onnx.NodeProto) -> onnx.NodeProto:
        """The twin as a node; attributes that it doesn't have are left out."""
        names = set(self.schema().attributes)
        twin = onnx.NodeProto(op_type=self.op_type, output=fused.output[:1])
        given = takewhile(lambda slot: slot < len(fused.input), self.inputs)
        twin.input.extend(fused.input[slot] for slot in given)
        twin.attribute.extend(a for a in fused.attribute if a.name in names)
        return twin

    def is_channels_last(self, fused: onnx.NodeProto) -> bool:
        if self.channels_last is not None:
            return self.channels_last
        return any(a.name == "channels_last" and a.i for a in fused.attribute)


TWINS: dict[str, Twin] = {
    "FusedConv": Twin("Conv", range(3), False),
    "NhwcConv": Twin("Conv", range(3), True),
    "NhwcFusedConv": Twin("Conv", range(3), True),
    "NhwcMaxPool": Twin("MaxPool", (0,), True),
    "FusedGemm": Twin("Gemm", range(3)),
    "GemmFastGelu": Twin("MatMul", (0, 1)),
    "GridSample": Twin("GridSample", (0, 1), version=16),
    "Trilu": Twin("Identity", (0,)),
    "QuantizeLinear": Twin("QuantizeLinear", range(3), typed_by=None),
    "DequantizeLinear": Twin("DequantizeLinear", range(3), typed_by=None),
    "QLinearAdd": Twin("Add", (0, 3)),
    "QLinearMul": Twin("Mul", (0, 3)),
    "QLinearConv": Twin("Conv", (0, 3)),
    "QLinearConcat": Twin("Concat", range(2, 1 << 20, 3)),
    "QLinearAveragePool": Twin("AveragePool", (0,)),
    "QLinearGlobalAveragePool": Twin("GlobalAveragePool", (0,)),
    "QLinearLeakyRelu": Twin("Identity", (0,)),
    "QLinearSigmoid": Twin("Identity", (0,)),
    "QLinearSoftmax": Twin("Identity", (0,)),
    "QLinearWhere": Twin("Where", (0, 1, 4), typed_by=None),
    "QGemm": Twin("Gemm", (0, 3, 6), float_without=7),
    "QLinearReduceMean": Twin("ReduceMean", (0,), version=13),
}


# --- functions -------------------------------------------------------------------------------


def _like_first(inputs: Shapes, _attributes: Mapping[str, Any]) -> list[Dims | None]:
    return [inputs[0]]


def _need(shape: Dims | None) -> Dims:
    if shape is None:
        raise ValueError("an input has no known shape")
    return shape


def _at(inputs: Shapes, slot: int) -> Dims | None:
    return inputs[slot] if slot < len(inputs) else None


def _skip_norm(inputs: Shapes, _attributes: Mapping[str, Any]) -> list[Dims | None]:
    # output, mean, inverse standard deviation, input + skip (+ bias)
    x = _need(inputs[0])
    statistics = (*x[:-1], 1)
    return [x, statistics, statistics, x]


def _embed_norm(inputs: Shapes, _attributes: Mapping[str, Any]) -> list[Dims | None]:
    batch, length = _need(inputs[0])
    hidden = _need(inputs[2])[1]
    out = (batch, length, hidden)
    return [out, (batch,), out]


def _bias_split(inputs: Shapes, _attributes: Mapping[str, Any]) -> list[Dims | None]:
    x = _need(inputs[0])
    return [(*x[:-1], x[-1] // 2)]


def _attention(past_slot: int) -> ShapeFunction:
    """Attention and its quantised form: (batch, sequence, v hidden) and what is cached."""

    def infer(inputs: Shapes, attributes: Mapping[str, Any]) -> list[Dims | None]:
        batch, length, _ = _need(inputs[0])
        sizes = attributes.get("qkv_hidden_sizes")
        hidden = sizes[2] if sizes else _need(inputs[1])[-1] // 3
        heads, past = attributes["num_heads"], _at(inputs, past_slot)
        total = length + (past[3] if past else 0)
        if past and attributes.get("past_present_share_buffer"):
            total = past[3]
        return [(batch, length, hidden), (2, batch, heads, total, hidden // heads)]

    return infer


def _multi_head_attention(inputs: Shapes, attributes: Mapping[str, Any]) -> list[Dims | None]:
    query, heads = _need(inputs[0]), attributes["num_heads"]
    key, value, past = _at(inputs, 1), _at(inputs, 2), _at(inputs, 6)
    batch, length = query[:2]
    size = query[-1] if len(query) == 5 else query[-1] // heads
    value_size = size
    if value is not None:
        value_size = value[-1] // heads if len(value) == 3 else value[-1]
    kv_length = length if key is None else key[2] if len(key) == 4 else key[1]
    total = kv_length + (past[2] if past else 0)
    return [
        (batch, length, heads * value_size),
        (batch, heads, total, size),
        (batch, heads, total, value_size),
        (batch, heads, length, total),
    ]


def _group_query_attention(inputs: Shapes, attributes: Mapping[str, Any]) -> list[Dims | None]:
    batch, length, width = _need(inputs[0])
    heads, shared = attributes["num_heads"], attributes["kv_num_heads"]
    packed = _at(inputs, 1) is None
    size = width // (heads + 2 * shared) if packed else width // heads
    past = _at(inputs, 3)
    total = length + (past[2] if past else 0)
    cache = (batch, shared, total, size)
    return [(batch, length, heads * size), cache, cache, (batch, heads, length, total)]


def _lstm(inputs: Shapes, _attributes: Mapping[str, Any]) -> list[Dims | None]:
    steps, batch, _ = _need(inputs[0])
    directions, hidden, _ = _need(inputs[2])  # R (directions, hidden, 4 * hidden)
    state = (directions, batch, hidden)
    return [(steps, directions, batch, hidden), state, state]


def _packed_matmul(inputs: Shapes, attributes: Mapping[str, Any]) -> list[Dims | None]:
    return [(*_need(inputs[0])[:-1], attributes["N"])]


def _matmul(inputs: Shapes, attributes: Mapping[str, Any]) -> list[Dims | None]:
    left, right = list(_need(inputs[0])), list(_need(inputs[1]))
    if attributes.get("transBatchA") or attributes.get("transBatchB"):
        raise ValueError("transposed batch axes are not supported")
    if len(left) < 2 or len(right) < 2:
        raise ValueError("products of vectors are not supported")
    if attributes.get("transA"):
        left[-2:] = left[:-3:-1]
    if attributes.get("transB"):
        right[-2:] = right[:-3:-1]
    batch = np.broadcast_shapes(tuple(left[:-2]), tuple(right[:-2]))
    return [(*batch, left[-2], right[-1])]


IN_ONNX_DOMAIN = frozenset(
    {"SimplifiedLayerNormalization", "GroupNormalization", "MeanVarianceNormalization"}
)
"""Operators in ONNX's own domain that are unknown to onnx, or that it infers no shape for."""

SHAPES: dict[str, ShapeFunction] = {
    **dict.fromkeys(
        ("BiasGelu", "FastGelu", "Gelu", "QuickGelu", "BiasAdd", "GroupNorm", "RotaryEmbedding",
         "MoE",
         *IN_ONNX_DOMAIN),
        _like_first,
    ),
    "BiasSplitGelu": _bias_split,
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_norm,
    "EmbedLayerNormalization": _embed_norm,
    "Attention": _attention(past_slot=4),
    "QAttention": _attention(past_slot=8),
    "DynamicQuantizeLSTM": _lstm,
    "MatMulNBits": _packed_matmul,
    "MatMulBnb4": _packed_matmul,
    "MultiHeadAttention": _multi_head_attention,
    "GroupQueryAttention": _group_query_attention,
    **dict.fromkeys(
        ("FusedMatMul", "FusedMatMulActivation", "TransposeMatMul", "DynamicQuantizeMatMul",
         "MatMulIntegerToFloat"),
        _matmul,
    ),
}  # fmt: skip
