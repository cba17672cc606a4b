"""Small torch networks of the families that libraries of image classifiers and transformers lack.

Detection with a feature pyramid, super-resolution, volumes, signals, generators, graphs, point
clouds, diffusion, recommendation, mixtures of experts. Each class names its topology's trait in one
line; weights are torch's own initial ones.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# --- images ----------------------------------------------------------------------------------


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    """Convolution, BatchNorm, ReLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class PyramidDetector(nn.Module):
    """FPN: lateral 1 x 1 convolutions, a top-down path of sums, heads shared by all levels."""

    anchors, classes = 3, 5

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64, 96)
        self.stem = conv(3, 16, 3, 2)
        self.stages = nn.ModuleList(conv(a, b, 3, 2) for a, b in pairwise(widths))
        self.lateral = nn.ModuleList(nn.Conv2d(width, 48, 1) for width in widths[1:])
        self.smooth = nn.ModuleList(conv(48, 48) for _ in widths[1:])
        self.tower = nn.Sequential(conv(48, 48), conv(48, 48))
        self.scores = nn.Conv2d(48, self.anchors * self.classes, 3, padding=1)
        self.boxes = nn.Conv2d(48, self.anchors * 4, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, h, w) -> scores (n, boxes, classes), boxes (n, boxes, 4)."""
        x, found = self.stem(image), []
        for stage in self.stages:
            found.append(x := stage(x))
        levels = [self.lateral[-1](found[-1])]
        for i in reversed(range(len(found) - 1)):
            up = functional.interpolate(levels[0], scale_factor=2.0, mode="nearest")
            levels.insert(0, self.lateral[i](found[i]) + up)
        levels = [self.tower(s(level)) for s, level in zip(self.smooth, levels, strict=True)]
        scores = [self._rows(self.scores(level), self.classes) for level in levels]
        boxes = [self._rows(self.boxes(level), 4) for level in levels]
        return torch.cat(scores, dim=1).sigmoid(), torch.cat(boxes, dim=1)

    def _rows(self, level: Tensor, values: int) -> Tensor:
        """(n, anchors * values, h, w) -> (n, h * w * anchors, values)."""
        split = torch.unflatten(level, 1, (self.anchors, values))
        return split.permute(0, 3, 4, 1, 2).flatten(1, 3)


class SuperResolution(nn.Module):
    """EDSR-like: residual blocks between a long skip, then PixelShuffle twice."""

    def __init__(self, width: int = 32, blocks: int = 3) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(blocks)
        )  # fmt: skip
        up = [
            layer
            for _ in range(2)
            for layer in (nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2))
        ]
        self.up, self.tail = nn.Sequential(*up), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, image: Tensor) -> Any:
        """(n, 3, h, w) -> (n, 3, 4 h, 4 w)."""
        x = first = self.head(image)
        for block in self.blocks:
            x = x + 0.5 * block(x)
        return self.tail(self.up(x + first))


class SubPixel(nn.Module):
    """ESPCN: one convolution makes all pixels of a block, and nothing comes behind PixelShuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 48, 5, padding=2), nn.Tanh(), nn.Conv2d(48, 24, 3, padding=1), nn.Tanh()
        )
        self.last, self.shuffle = nn.Conv2d(24, 27, 3, padding=1), nn.PixelShuffle(3)

    def forward(self, image: Tensor) -> Any:
        """(n, 3, h, w) -> (n, 3, 3 h, 3 w)."""
        return self.shuffle(self.last(self.body(image)))


class Excite(nn.Module):
    """A residual block whose channels are scaled by what their means say (squeeze-excite)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(width, width), nn.Conv2d(width, width, 3, padding=1))
        self.squeeze = nn.Sequential(
            nn.Linear(width, width // 4), nn.ReLU(), nn.Linear(width // 4, width), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Any:
        """(n, width, h, w) -> the same."""
        inner = self.body(x)
        weights = self.squeeze(inner.mean(dim=(2, 3)))
        return functional.relu(x + inner * weights[:, :, None, None])


def squeeze_excite() -> nn.Module:
    """Return a classifier of squeeze-excite blocks."""
    body = (conv(3, 32, 3, 2), Excite(32), conv(32, 64, 3, 2), Excite(64))
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Residual3d(nn.Module):
    """A residual block of 3-D convolutions, the spatial and the temporal one apart (R(2+1)D)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(inputs, outputs, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
            nn.BatchNorm3d(outputs), nn.ReLU(),
            nn.Conv3d(outputs, outputs, (3, 1, 1), 1, (1, 0, 0), bias=False),
            nn.BatchNorm3d(outputs),
        )  # fmt: skip
        self.skip = nn.Conv3d(inputs, outputs, 1, (1, stride, stride), bias=False)

    def forward(self, x: Tensor) -> Any:
        """(n, inputs, t, h, w) -> (n, outputs, t, h / stride, w / stride)."""
        return functional.relu(self.body(x) + self.skip(x))


def video() -> nn.Module:
    """Return a 3-D classifier of video clips."""
    stem = (nn.Conv3d(3, 16, 3, (1, 2, 2), 1), nn.BatchNorm3d(16), nn.ReLU())
    body = (Residual3d(16, 32, 1), nn.MaxPool3d(2), Residual3d(32, 64, 2))
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(64, 10))


def generator() -> nn.Module:
    """Return a DCGAN generator: noise (n, 64) -> images (n, 3, 32, 32)."""
    layers: list[nn.Module] = [nn.Linear(64, 128 * 16), nn.Unflatten(1, (128, 4, 4))]
    for a, b in pairwise((128, 64, 32)):
        layers += [nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh())


class Siamese(nn.Module):
    """One encoder applied to two inputs; the head sees how their codes differ."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            conv(3, 32, 3, 2), conv(32, 64, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(64, 48),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, left: Tensor, right: Tensor) -> Any:
        """(n, 3, h, w) twice -> (n, 1)."""
        return self.head((self.encoder(left) - self.encoder(right)).abs())


# --- signals ---------------------------------------------------------------------------------


class Causal(nn.Module):
    """A residual block of a temporal CNN: dilated convolutions that see the past only."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.past = 2 * dilation
        self.first = nn.Conv1d(inputs, outputs, 3, dilation=dilation)
        self.second = nn.Conv1d(outputs, outputs, 3, dilation=dilation)
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        """(n, inputs, t) -> (n, outputs, t)."""
        y = functional.relu(self.first(functional.pad(x, (self.past, 0))))
        y = functional.relu(self.second(functional.pad(y, (self.past, 0))))
        return functional.relu(y + self.skip(x))


def temporal() -> nn.Module:
    """Return a temporal CNN: (n, 8, t) -> (n, 10, t)."""
    blocks = (Causal(8, 32, 1), Causal(32, 32, 2), Causal(32, 48, 4))
    return nn.Sequential(*blocks, nn.Conv1d(48, 10, 1))


class WaveNet(nn.Module):
    """Gated dilated convolutions; every layer adds to the residual path and to the skip path."""

    def __init__(self, width: int = 32, skip: int = 48, layers: int = 4) -> None:
        super().__init__()
        self.enter = nn.Conv1d(1, width, 1)
        self.gated = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 3, padding=2**i, dilation=2**i) for i in range(layers)
        )
        self.leave = nn.ModuleList(nn.Conv1d(width, width + skip, 1) for _ in range(layers))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(skip, 32, 1), nn.ReLU(), nn.Conv1d(32, 8, 1))
        self.width, self.skip = width, skip

    def forward(self, signal: Tensor) -> Any:
        """(n, 1, t) -> (n, 8, t)."""
        x = self.enter(signal)
        total: Any = 0.0
        for gated, leave in zip(self.gated, self.leave, strict=True):
            value, gate = gated(x).chunk(2, dim=1)
            residual, skip = leave(torch.tanh(value) * torch.sigmoid(gate)).split(
                (self.width, self.skip), dim=1
            )
            x, total = x + residual, total + skip
        return self.head(total)


class TasNet(nn.Module):
    """Conv-TasNet: a learned filter bank, masks from depthwise blocks, and the bank's inverse."""

    speakers, bank = 2, 48

    def __init__(self, width: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, self.bank, 16, 8, bias=False)
        self.norm, self.enter = nn.GroupNorm(1, self.bank), nn.Conv1d(self.bank, width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(width, hidden, 1), nn.PReLU(), nn.GroupNorm(1, hidden),
                nn.Conv1d(hidden, hidden, 3, padding=2**i, dilation=2**i, groups=hidden),
                nn.PReLU(), nn.GroupNorm(1, hidden), nn.Conv1d(hidden, width, 1),
            )
            for i in range(3)
        )  # fmt: skip
        self.masks = nn.Conv1d(width, self.speakers * self.bank, 1)
        self.decoder = nn.ConvTranspose1d(self.bank, 1, 16, 8, bias=False)

    def forward(self, mixture: Tensor) -> Tensor:
        """(n, 1, t) -> (n, speakers, t)."""
        bank = functional.relu(self.encoder(mixture))
        x = self.enter(self.norm(bank))
        for block in self.blocks:
            x = x + block(x)
        masks = torch.unflatten(self.masks(x).sigmoid(), 1, (self.speakers, self.bank))
        parts = [self.decoder(masks[:, i] * bank) for i in range(self.speakers)]
        return torch.cat(parts, dim=1)


# --- graphs and points -----------------------------------------------------------------------


class GraphAttention(nn.Module):
    """GAT on dense adjacency: scores of node pairs as a sum of two projections, masked softmax."""

    def __init__(self, inputs: int, heads: int, size: int, concat: bool) -> None:
        super().__init__()
        self.heads, self.size, self.concat = heads, size, concat
        self.project = nn.Linear(inputs, heads * size, bias=False)
        self.source = nn.Parameter(torch.randn(heads, size) / size**0.5)
        self.target = nn.Parameter(torch.randn(heads, size) / size**0.5)

    def forward(self, x: Tensor, edges: Tensor) -> Any:
        """(n, nodes, inputs), (n, nodes, nodes) -> (n, nodes, heads * size or size)."""
        h = torch.unflatten(self.project(x), 2, (self.heads, self.size)).transpose(1, 2)
        source = (h * self.source[:, None]).sum(dim=-1)
        target = (h * self.target[:, None]).sum(dim=-1)
        scores = functional.leaky_relu(source[..., None] + target[..., None, :], 0.2)
        scores = scores.masked_fill(edges[:, None] < 0.5, -1e9)
        mixed = scores.softmax(dim=-1) @ h
        return mixed.transpose(1, 2).flatten(2) if self.concat else mixed.mean(dim=1)


class GraphNetwork(nn.Module):
    """Two graph attention layers: heads side by side, then averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.first = GraphAttention(16, 4, 12, concat=True)
        self.middle = GraphAttention(48, 4, 16, concat=True)
        self.last = GraphAttention(64, 4, 7, concat=False)

    def forward(self, nodes: Tensor, edges: Tensor) -> Any:
        """(n, nodes, 16), (n, nodes, nodes) -> (n, nodes, 7)."""
        x = functional.elu(self.first(nodes, edges))
        return self.last(functional.elu(self.middle(x, edges)), edges)


class EdgeConv(nn.Module):
    """DGCNN: neighbours are found among the features, each edge is (x, neighbour - x)."""

    neighbours = 8

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mix = conv(2 * inputs, outputs, 1)

    def forward(self, x: Tensor) -> Any:
        """(n, inputs, points) -> (n, outputs, points)."""
        points = x.transpose(1, 2)
        norms = points.square().sum(dim=2)
        distance = 2 * points @ x - norms[:, :, None] - norms[:, None]
        nearest = distance.topk(self.neighbours, dim=2)[1]
        index = nearest[..., None].expand(-1, -1, -1, x.shape[1])
        every = points[:, None].expand(-1, x.shape[2], -1, -1)
        near = torch.gather(every, 2, index)
        here = points[:, :, None].expand_as(near)
        edges = torch.cat((near - here, here), dim=3).permute(0, 3, 1, 2)
        return self.mix(edges).max(dim=3)[0]


class DynamicGraph(nn.Module):
    """DGCNN classifier: edge convolutions, their outputs side by side, two kinds of pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EdgeConv(a, b) for a, b in pairwise((3, 24, 32, 48)))
        self.mix = nn.Sequential(nn.Conv1d(104, 64, 1, bias=False), nn.BatchNorm1d(64), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(128, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, points: Tensor) -> Any:
        """(n, 3, points) -> (n, 10)."""
        x, found = points, []
        for layer in self.layers:
            found.append(x := layer(x))
        x = self.mix(torch.cat(found, dim=1))
        return self.head(torch.cat((x.max(dim=2)[0], x.mean(dim=2)), dim=1))


class PointNet(nn.Module):
    """A learned 8 x 8 transform of the features, and a maximum over all points."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = self._shared(3, 8)
        self.look = self._shared(8, 48)
        self.transform = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 64))
        self.body = nn.Sequential(self._shared(8, 48), self._shared(48, 96))
        self.head = nn.Sequential(nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10))

    @staticmethod
    def _shared(inputs: int, outputs: int) -> nn.Module:
        layer = nn.Conv1d(inputs, outputs, 1, bias=False)
        return nn.Sequential(layer, nn.BatchNorm1d(outputs), nn.ReLU())

    def forward(self, points: Tensor) -> Any:
        """(n, 3, points) -> (n, 10)."""
        x = self.enter(points)
        turn = torch.unflatten(self.transform(self.look(x).max(dim=2)[0]), 1, (8, 8))
        x = torch.bmm(turn, x) + x
        return self.head(self.body(x).max(dim=2)[0])


# --- diffusion -------------------------------------------------------------------------------


class TimedBlock(nn.Module):
    """A residual block to which the embedding of the time step is added."""

    def __init__(self, inputs: int, outputs: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(8, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Any:
        """(n, inputs, h, w), (n, time) -> (n, outputs, h, w)."""
        y = self.conv1(functional.silu(self.norm1(x)))
        y = y + self.time(functional.silu(time))[:, :, None, None]
        return self.skip(x) + self.conv2(functional.silu(self.norm2(y)))


class CrossAttention(nn.Module):
    """Queries from one sequence, keys and values from another."""

    def __init__(self, width: int, context: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(context, width, bias=False)
        self.value = nn.Linear(context, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Any:
        """(n, t, width), (n, s, context) -> (n, t, width)."""
        q, k, v = self.query(x), self.key(context), self.value(context)
        q, k, v = (torch.unflatten(y, 2, (self.heads, -1)).transpose(1, 2) for y in (q, k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class SpatialTransformer(nn.Module):
    """Pixels attend to each other and to the text; the feed-forward part is a GEGLU."""

    def __init__(self, width: int, context: int) -> None:
        super().__init__()
        self.norm, self.enter = nn.GroupNorm(8, width), nn.Conv2d(width, width, 1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.itself = CrossAttention(width, width)
        self.text = CrossAttention(width, context)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(2 * width, width)
        self.leave = nn.Conv2d(width, width, 1)

    def forward(self, image: Tensor, context: Tensor) -> Any:
        """(n, width, h, w), (n, s, context) -> (n, width, h, w)."""
        x = self.enter(self.norm(image)).flatten(2).transpose(1, 2)
        normed = self.norms[0](x)
        x = x + self.itself(normed, normed)
        x = x + self.text(self.norms[1](x), context)
        value, gate = self.up(self.norms[2](x)).chunk(2, dim=2)
        x = x + self.down(value * functional.gelu(gate))
        return image + self.leave(x.transpose(1, 2).reshape(image.shape))


class DiffusionUNet(nn.Module):
    """A latent diffusion U-Net: time embedding, cross-attention to a text, skips side by side."""

    def __init__(self, time: int = 64, context: int = 32) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(32, time), nn.SiLU(), nn.Linear(time, time))
        self.enter = nn.Conv2d(4, 32, 3, padding=1)
        self.down1, self.look1 = TimedBlock(32, 32, time), SpatialTransformer(32, context)
        self.shrink = nn.Conv2d(32, 32, 3, 2, 1)
        self.down2, self.look2 = TimedBlock(32, 64, time), SpatialTransformer(64, context)
        self.middle = TimedBlock(64, 64, time)
        self.up2, self.look3 = TimedBlock(128, 64, time), SpatialTransformer(64, context)
        self.grow = nn.Conv2d(64, 64, 3, padding=1)
        self.up1 = TimedBlock(96, 32, time)
        self.leave = nn.Sequential(nn.GroupNorm(8, 32), nn.SiLU(), nn.Conv2d(32, 4, 3, padding=1))

    def forward(self, latent: Tensor, step: Tensor, context: Tensor) -> Any:
        """(n, 4, h, w), (n,), (n, s, context) -> (n, 4, h, w)."""
        rates = torch.exp(-math.log(10000.0) * torch.arange(16) / 16)
        angles = step[:, None] * rates
        time = self.time(torch.cat((angles.cos(), angles.sin()), dim=1))
        first = self.look1(self.down1(self.enter(latent), time), context)
        second = self.look2(self.down2(self.shrink(first), time), context)
        x = self.middle(second, time)
        x = self.look3(self.up2(torch.cat((x, second), dim=1), time), context)
        x = self.grow(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.leave(self.up1(torch.cat((x, first), dim=1), time))


# --- tables and experts ----------------------------------------------------------------------


class Recommender(nn.Module):
    """DLRM: embedding tables and a bottom MLP, products of all pairs of features, a top MLP."""

    tables, width = 4, 16

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(100, self.width) for _ in range(self.tables))
        self.bottom = nn.Sequential(
            nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, self.width), nn.ReLU()
        )
        count = self.tables + 1
        pairs = [count * i + j for i in range(count) for j in range(i)]
        self.pairs: Tensor
        self.register_buffer("pairs", torch.tensor(pairs))
        self.top = nn.Sequential(
            nn.Linear(self.width + len(pairs), 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(),
            nn.Linear(48, 1),
        )  # fmt: skip

    def forward(self, dense: Tensor, sparse: Tensor) -> Any:
        """(n, 13), (n, tables) -> (n, 1)."""
        bottom = self.bottom(dense)
        looked_up = [table(sparse[:, i]) for i, table in enumerate(self.embeddings)]
        features = torch.stack([bottom, *looked_up], dim=1)
        products = (features @ features.transpose(1, 2)).flatten(1)[:, self.pairs]
        return self.top(torch.cat((bottom, products), dim=1)).sigmoid()


class StackedExperts(nn.Module):
    """A soft mixture whose experts' weights are stored as one tensor each."""

    def __init__(self, width: int, hidden: int, experts: int, einsum: bool) -> None:
        super().__init__()
        self.router, self.einsum = nn.Linear(width, experts), einsum
        self.up = nn.Parameter(torch.randn(experts, width, hidden) / width**0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) / hidden**0.5)

    def forward(self, x: Tensor) -> Any:
        """(n, t, width) -> the same."""
        weights = self.router(x).softmax(dim=-1)
        if self.einsum:
            hidden = functional.gelu(torch.einsum("ntw,ewh->neth", x, self.up))
            return torch.einsum("neth,ehw,nte->ntw", hidden, self.down, weights)
        hidden = functional.gelu(x[:, None] @ self.up)
        return ((hidden @ self.down) * weights.transpose(1, 2)[..., None]).sum(dim=1)


class ListedExperts(nn.Module):
    """A soft mixture whose experts are modules of their own."""

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Any:
        """(n, t, width) -> the same."""
        weights = self.router(x).softmax(dim=-1)
        said = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return (said * weights[..., None, :]).sum(dim=-1)


class RoutedExperts(StackedExperts):
    """Each token's best experts, whose weights are looked up."""

    def __init__(self, width: int, hidden: int, experts: int, best: int) -> None:
        super().__init__(width, hidden, experts, einsum=False)
        self.best = best

    def forward(self, x: Tensor) -> Any:
        """(n, t, width) -> the same."""
        shares, chosen = self.router(x).topk(self.best, dim=-1)
        hidden = functional.gelu(x[:, :, None, None] @ self.up[chosen])  # (n, t, best, 1, hidden)
        said = (hidden @ self.down[chosen]).squeeze(3)
        return (said * shares.softmax(dim=-1)[..., None]).sum(dim=2)


class RoutedListedExperts(ListedExperts):
    """The same with experts that are modules of their own, each run on the tokens that chose it."""

    def __init__(self, width: int, hidden: int, experts: int, best: int) -> None:
        super().__init__(width, hidden, experts)
        self.best = best

    def forward(self, x: Tensor) -> Any:
        """(n, t, width) -> the same."""
        tokens = x.flatten(0, 1)
        shares, chosen = self.router(tokens).topk(self.best, dim=-1)
        shares, said = shares.softmax(dim=-1), torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            token, rank = torch.where(chosen == number)
            own = expert(tokens[token]) * shares[token, rank, None]
            said = said.index_add(0, token, own)
        return said.view_as(x)


def mixture(kind: str, width: int = 32) -> nn.Module:
    """Return two layers of experts between linear ones.

    Args:
        kind: `einsum`, `matmul` (stacked weights), `listed` (modules); all experts are mixed. Of
            `routed` and `routed_listed` two are, for each token.
    """

    def layer() -> nn.Module:
        if kind == "listed":
            return ListedExperts(width, 64, 4)
        if kind.startswith("routed"):
            made = RoutedExperts if kind == "routed" else RoutedListedExperts
            return made(width, 64, 6, best=2)
        return StackedExperts(width, 64, 4, einsum=kind == "einsum")

    norm = nn.LayerNorm(width)
    return nn.Sequential(nn.Linear(16, width), layer(), norm, layer(), nn.Linear(width, 10))
