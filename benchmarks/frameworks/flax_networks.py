"""A ResNet, a ViT, an MLP-Mixer and a recurrent network in Flax (nnx), as its users write them.

Images are (n, h, w, c), which is Flax's own layout.

* ResNet: He et al., arXiv 1512.03385, basic blocks.
* ViT: Dosovitskiy et al., arXiv 2010.11929, with average pooling instead of a class token.
* MLP-Mixer: Tolstikhin et al., arXiv 2105.01601.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array


class BasicBlock(nnx.Module):
    """Two 3 x 3 convolutions and a skip connection."""

    def __init__(self, width_in: int, width: int, stride: int, rngs: nnx.Rngs) -> None:
        strides = (stride, stride)
        self.conv1 = nnx.Conv(width_in, width, (3, 3), strides, use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(width, rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(width, rngs=rngs)
        same = stride == 1 and width_in == width
        skip = nnx.Conv(width_in, width, (1, 1), strides, use_bias=False, rngs=rngs)
        self.skip = nnx.data(None if same else skip)

    def __call__(self, x: Array) -> Array:
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return nnx.relu(y + (x if self.skip is None else self.skip(x)))


class ResNet(nnx.Module):
    """A stem, stages of basic blocks, and a classifier."""

    def __init__(
        self, widths: Sequence[int], depth: int, channels: int, classes: int, rngs: nnx.Rngs
    ) -> None:
        self.stem = nnx.Conv(channels, widths[0], (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(widths[0], rngs=rngs)
        blocks, before = [], widths[0]
        for stage, width in enumerate(widths):
            for number in range(depth):
                stride = 2 if stage and not number else 1
                blocks.append(BasicBlock(before, width, stride, rngs))
                before = width
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(before, classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2)))


class MlpBlock(nnx.Module):
    """Two linear layers with a GELU between them, on the last axis."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.down(nnx.gelu(self.up(x)))


class EncoderBlock(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.mlp = MlpBlock(width, 4 * width, rngs)

    def __call__(self, x: Array) -> Array:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MixerBlock(nnx.Module):
    """Mixes tokens, then channels."""

    def __init__(self, width: int, tokens: int, rngs: nnx.Rngs) -> None:
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.mix_tokens = MlpBlock(tokens, tokens // 2, rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.mix_channels = MlpBlock(width, 4 * width, rngs)

    def __call__(self, x: Array) -> Array:
        y = jnp.swapaxes(self.norm1(x), 1, 2)
        x = x + jnp.swapaxes(self.mix_tokens(y), 1, 2)
        return x + self.mix_channels(self.norm2(x))


class Patches(nnx.Module):
    """Cuts images into patches, each of which becomes a token of `width` features."""

    def __init__(self, channels: int, width: int, patch: int, rngs: nnx.Rngs) -> None:
        sizes = (patch, patch)
        self.conv = nnx.Conv(channels, width, sizes, sizes, padding="VALID", rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = self.conv(x)
        return x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])


class ViT(nnx.Module):
    """A vision transformer."""

    def __init__(
        self, size: int, patch: int, width: int, heads: int, depth: int, classes: int,
        rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        tokens = (size // patch) ** 2
        self.patches = Patches(3, width, patch, rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, tokens, width)))
        self.blocks = nnx.List([EncoderBlock(width, heads, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = self.patches(x) + self.positions[...]
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(self.norm(x), axis=1))


class Mixer(nnx.Module):
    """An MLP-Mixer."""

    def __init__(
        self, size: int, patch: int, width: int, depth: int, classes: int, rngs: nnx.Rngs
    ) -> None:
        self.patches = Patches(3, width, patch, rngs)
        tokens = (size // patch) ** 2
        self.blocks = nnx.List([MixerBlock(width, tokens, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        x = self.patches(x)
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(self.norm(x), axis=1))


class Recurrent(nnx.Module):
    """An LSTM, which jax.lax.scan steps through its sequence, and a classifier."""

    def __init__(self, features: int, width: int, classes: int, rngs: nnx.Rngs) -> None:
        self.layer = nnx.RNN(nnx.OptimizedLSTMCell(features, width, rngs=rngs))
        self.head = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        zeros = jnp.zeros((x.shape[0], self.layer.cell.hidden_features))
        return self.head(self.layer(x, initial_carry=(zeros, zeros))[:, -1])
