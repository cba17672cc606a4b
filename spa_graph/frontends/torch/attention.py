"""`nn.MultiheadAttention` with fewer heads than its width would hold.

PyTorch's own takes it that heads x head size is the width of its queries. Once heads are removed it
isn't, so the module becomes an instance of a subclass, with the same parameters and arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.backends import mha
from torch.nn import functional

from spa_graph.plan import AxisIndices


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keep PyTorch from its fused layers of transformers: what they give where the input is padding
    is something else, and they have no ONNX translation."""
    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(before)


class PrunedMultiheadAttention(nn.MultiheadAttention):
    """Multi-head attention whose heads need not fill the width: see `nn.MultiheadAttention`."""

    @property
    def _qkv_same_embed_dim(self) -> bool:  # type: ignore[override]
        """`nn.TransformerEncoderLayer` looks here whether its fused form fits: no."""
        return False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As of `nn.MultiheadAttention`, for inputs with a batch."""
        del is_causal  # a hint: the mask says the same
        if query.dim() != 3:
            raise ValueError("a pruned MultiheadAttention needs inputs with a batch")
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (self._split(x) for x in self._project(query, key, value))
        mask = self._mask(q, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self._scale
            weights = functional.softmax(scores if mask is None else scores + mask, -1)
            mixed = functional.dropout(weights, dropout, self.training) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = functional.scaled_dot_product_attention(
                q, k, v, mask, dropout, scale=self._scale
            )
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), weights

    @property
    def _scale(self) -> float:
        """What scores are multiplied by: heads that were made narrower keep theirs."""
        return float(getattr(self, "scale", self.head_dim**-0.5))

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [
            functional.linear(x, weight, bias)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

    def _mask(self, q: Tensor, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Both masks as one, (batch, heads, queries, keys), added to the scores."""
        if mask is not None:
            mask = _added(mask, q)
            if mask.dim() == 3:  # (batch x heads, queries, keys)
                mask = mask.reshape(q.shape[0], -1, *mask.shape[1:])
        if padding is not None:
            hidden = _added(padding, q)[:, None, None, :]
            mask = hidden if mask is None else mask + hidden
        return mask


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def stated(
    module: nn.MultiheadAttention, shapes: dict[str, tuple[int, ...]], kept: AxisIndices
) -> dict[str, Any]:
    """The attributes of a module whose weights get these shapes; kept: of the packed weight."""
    packed, queries = shapes.get("in_proj_weight"), shapes.get("q_proj_weight")
    if packed is None and queries is None:
        return {}
    inner = packed[0] // 3 if packed is not None else queries[0]  # type: ignore[index]
    width = (packed or queries or ())[1]
    heads, size = module.num_heads, module.head_dim
    if inner != heads * size:
        rows = kept.get(0, np.arange(inner))[:inner]
        if packed is None or _whole_heads(rows, size):
            heads = inner // size
        else:
            size = inner // heads
    found: dict[str, Any] = {"num_heads": heads, "head_dim": size, "embed_dim": width}
    if size != module.head_dim:
        found["scale"] = module.head_dim**-0.5
    if packed is not None:
        found |= {"kdim": width, "vdim": width}
    else:
        found |= {"kdim": shapes["k_proj_weight"][1], "vdim": shapes["v_proj_weight"][1]}
    return found


def _whole_heads(rows: np.ndarray[Any, Any], size: int) -> bool:
    counts = np.bincount(rows // size)
    return bool(np.isin(counts, (0, size)).all())


def convert(module: nn.MultiheadAttention) -> None:
    """Make a module whose heads don't fill its width one that can work so."""
    if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
        return  # the proof will tell
    fills = module.num_heads * module.head_dim == module.embed_dim
    if type(module) is nn.MultiheadAttention and not fills:
        module.__class__ = PrunedMultiheadAttention


def pad_inputs(model: nn.Module) -> None:
    """Keep encoders with such layers from nested tensors, which only fused layers take."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(
            isinstance(each, PrunedMultiheadAttention) for each in module.modules()
        ):
            module.use_nested_tensor = False
