"""Small torch networks with the topologies that torchvision's classifiers don't have.

Each takes the input resolution or sequence length. Weights are torch's own initial ones;
`architectures` settles them and exports the networks.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

WORDS = 500  # vocabulary of the text networks


class Recurrent(nn.Module):
    """A text classifier: embedding, two recurrent layers, mean over time, linear head."""

    def __init__(self, cell: type[nn.LSTM | nn.GRU | nn.RNN], bidirectional: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 48)
        self.recurrent = cell(48, 64, num_layers=2, bidirectional=bidirectional, batch_first=True)
        self.head = nn.Linear(128 if bidirectional else 64, 10)

    def forward(self, tokens: Tensor) -> Any:
        """(n, t) -> (n, 10)."""
        sequence, _ = self.recurrent(self.embedding(tokens))
        return self.head(sequence.mean(dim=1))


def _double_conv(inputs: int, outputs: int, groups: int) -> nn.Module:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        norm = nn.GroupNorm(groups, outputs) if groups else nn.BatchNorm2d(outputs)
        layers += [nn.Conv2d(width, outputs, 3, padding=1), norm, nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A U-Net with transposed convolutions; `groups` > 0: GroupNorm instead of BatchNorm."""

    def __init__(self, groups: int = 0) -> None:
        super().__init__()
        down, up = list(pairwise((3, 16, 32, 64, 128))), list(pairwise((16, 32, 64, 128)))
        self.down = nn.ModuleList(_double_conv(a, b, groups) for a, b in down)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in up)
        self.merge = nn.ModuleList(_double_conv(2 * a, a, groups) for a, _ in up)
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Any:
        """(n, 3, h, w) -> (n, 5, h, w)."""
        skips = [x := self.down[0](x)]
        for down in list(self.down)[1:]:
            skips.append(x := down(self.pool(x)))
        for i in reversed(range(len(self.up))):
            x = self.merge[i](torch.cat((self.up[i](x), skips[i]), dim=1))
        return self.head(x)


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.SiLU())


class CSP(nn.Module):
    """Cross-stage partial block: half of the channels pass through, and again with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.enter, self.leave = _conv(width, width, 1), _conv(3 * half, width, 1)
        self.inner = nn.Sequential(_conv(half, half), _conv(half, half))

    def forward(self, x: Tensor) -> Any:
        """(n, width, h, w) -> the same."""
        left, right = self.enter(x).chunk(2, dim=1)
        return self.leave(torch.cat((left, right, right + self.inner(right)), dim=1))


class SPPF(nn.Module):
    """Spatial pyramid pooling: one tensor concatenated with its repeated poolings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.leave = _conv(width, width // 2, 1), _conv(2 * width, width, 1)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Any:
        """(n, width, h, w) -> the same."""
        levels = [self.enter(x)]
        for _ in range(3):
            levels.append(self.pool(levels[-1]))
        return self.leave(torch.cat(levels, dim=1))


class Yolo(nn.Module):
    """A tiny YOLO-like detector: CSP backbone, SPPF, top-down path, two levels of heads."""

    anchors, values = 3, 9  # values: box, objectness, four classes

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 16, 3, 2), _conv(16, 32, 3, 2), CSP(32))
        self.middle = nn.Sequential(_conv(32, 64, 3, 2), CSP(64))
        self.deep = nn.Sequential(_conv(64, 128, 3, 2), CSP(128), SPPF(128))
        self.up = nn.Upsample(scale_factor=2)
        self.merge = nn.Sequential(_conv(192, 64, 1), CSP(64))
        self.heads = nn.ModuleList(
            nn.Sequential(_conv(width, 64), nn.Conv2d(64, self.anchors * self.values, 1))
            for width in (64, 128)
        )

    def forward(self, image: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, boxes, values)."""
        middle = self.middle(self.stem(image))
        deep = self.deep(middle)
        merged = self.merge(torch.cat((self.up(deep), middle), dim=1))
        levels = zip(self.heads, (merged, deep), strict=True)
        return torch.cat([self._rows(head(x)) for head, x in levels], dim=1).sigmoid()

    def _rows(self, level: Tensor) -> Tensor:
        """(n, anchors * values, h, w) -> (n, anchors * h * w, values)."""
        split = torch.unflatten(level, 1, (self.anchors, self.values))
        return split.permute(0, 1, 3, 4, 2).flatten(1, 3)


class RMSNorm(nn.Module):
    """RMSNorm spelt out: the TorchScript exporter has no translation of torch's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same."""
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-6) * self.weight


class Attention(nn.Module):
    """Causal attention whose query heads share fewer key and value heads (GQA)."""

    heads, kv_heads, head_dim = 8, 2, 8

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, self.heads * self.head_dim, bias=False)
        self.key_value = nn.Linear(width, 2 * self.kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(self.heads * self.head_dim, width, bias=False)
        self.mask: Tensor
        self.register_buffer("mask", torch.full((length, length), -1e4).triu(1))

    def forward(self, x: Tensor) -> Any:
        """(n, t, width) -> the same."""
        key, value = self.key_value(x).chunk(2, dim=2)
        query = self._split(self.query(x), self.heads)
        repeats = self.heads // self.kv_heads
        key = self._split(key, self.kv_heads).repeat_interleave(repeats, dim=1)
        value = self._split(value, self.kv_heads).repeat_interleave(repeats, dim=1)
        scores = query @ key.transpose(2, 3) / self.head_dim**0.5 + self.mask
        return self.out((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))

    def _split(self, x: Tensor, heads: int) -> Tensor:
        """(n, t, heads * head_dim) -> (n, heads, t, head_dim)."""
        return torch.unflatten(x, 2, (heads, self.head_dim)).transpose(1, 2)


class DecoderBlock(nn.Module):
    """Pre-norm transformer block with a SwiGLU feed-forward part."""

    def __init__(self, width: int, length: int, hidden: int = 160) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.attention = Attention(width, length)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Any:
        """(n, t, width) -> the same."""
        x = x + self.attention(self.norm1(x))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=2)
        return x + self.down(nn.functional.silu(gate) * up)


class GPT(nn.Module):
    """A GPT-like decoder; the head is tied to the token embedding."""

    def __init__(self, length: int, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(WORDS, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(DecoderBlock(width, length) for _ in range(layers)))
        self.norm, self.head = RMSNorm(width), nn.Linear(width, WORDS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Any:
        """(n, t) -> (n, t, words)."""
        return self.head(self.norm(self.blocks(self.embedding(tokens) + self.position.weight)))


def autoencoder(size: int) -> nn.Module:
    """Return a convolutional autoencoder with a linear bottleneck and InstanceNorm."""
    side = size // 4
    encoder = (nn.Conv2d(3, 16, 3, 2, 1), nn.LeakyReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.PReLU(32))
    squeeze = (nn.Flatten(), nn.Linear(32 * side * side, 48), nn.ReLU())
    expand = (nn.Linear(48, 32 * side * side), nn.ReLU(), nn.Unflatten(1, (32, side, side)))
    norm = nn.InstanceNorm2d(16, affine=True)
    decoder = (nn.ConvTranspose2d(32, 16, 4, 2, 1), norm, nn.ReLU())
    output = (nn.ConvTranspose2d(16, 3, 4, 2, 1), nn.Tanh())
    return nn.Sequential(*encoder, *squeeze, *expand, *decoder, *output)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "lstm": lambda _: Recurrent(nn.LSTM, bidirectional=True),
    "lstm_forward": lambda _: Recurrent(nn.LSTM, bidirectional=False),
    "gru": lambda _: Recurrent(nn.GRU, bidirectional=False),
    "gru_bidirectional": lambda _: Recurrent(nn.GRU, bidirectional=True),
    "rnn": lambda _: Recurrent(nn.RNN, bidirectional=False),
    "rnn_bidirectional": lambda _: Recurrent(nn.RNN, bidirectional=True),
    "unet": lambda _: UNet(),
    "unet_groupnorm": lambda _: UNet(groups=8),
    "yolo": lambda _: Yolo(),
    "gpt": GPT,
    "autoencoder": autoencoder,
}
