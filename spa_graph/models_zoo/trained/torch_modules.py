"""PyTorch definitions of the networks that ship as checkpoints; imported only to export them.

Attribute names follow the checkpoints, so that ``load_state_dict`` is strict and needs no map.
The definitions are our own: the packages' modules import librosa, torchvision and more.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn


def load(module: nn.Module, checkpoint: Path) -> nn.Module:
    """Load a checkpoint into `module`, all keys matching, and switch to evaluation mode."""
    module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    return module.eval()


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding: bottom and right get the odd pixel."""

    def forward(self, input: Tensor) -> Tensor:
        """Pad only where the padding is uneven, so that no needless Pad is exported."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(input, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        size = input.shape[-1]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        before = total // 2
        padded = F.pad(input, (before, total - before) * 2)
        return F.conv2d(padded, self.weight, self.bias, stride, 0, 1, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    """BatchNorm with TensorFlow's epsilon for EfficientNet."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedResidual(nn.Module):
    """MBConv block without squeeze-excite: expand, depthwise, project, add if the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.expands = expand != 1
        self.adds = stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = SameConv2d(inputs, hidden, 1, bias=False)
            self._bn0 = _norm(hidden)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self._bn1 = _norm(hidden)
        self._project_conv = SameConv2d(hidden, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``(n, inputs, h, w) -> (n, outputs, h / stride, w / stride)``."""
        hidden = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        hidden = F.relu6(self._bn1(self._depthwise_conv(hidden)))
        projected: Tensor = self._bn2(self._project_conv(hidden))
        return projected + x if self.adds else projected


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: stem and head stay at B0's size, ReLU6 in place of swish, no SE."""

    # repeats, kernel, stride, expansion, output channels
    STAGES = (
        (1, 3, 1, 1, 16),
        (2, 3, 2, 6, 24),
        (2, 5, 2, 6, 40),
        (3, 3, 2, 6, 80),
        (3, 5, 1, 6, 112),
        (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    )

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks: list[nn.Module] = []
        channels = 32
        for repeats, kernel, stride, expand, outputs in self.STAGES:
            for step in (stride,) + (1,) * (repeats - 1):
                blocks.append(InvertedResidual(channels, outputs, kernel, step, expand))
                channels = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = SameConv2d(channels, 1280, 1, bias=False)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, image: Tensor) -> Tensor:
        """``(n, 3, 224, 224) -> (n, 1000)`` logits."""
        x = F.relu6(self._bn0(self._conv_stem(image)))
        x = F.relu6(self._bn1(self._conv_head(self._blocks(x))))
        logits: Tensor = self._fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class SVHNNet(nn.Module):
    """VGG-like digit classifier: three blocks of two Conv-BN-ReLU and a pool, two Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(self._block(3, 32), self._block(32, 64), self._block(64, 128))
        # The dropouts hold the checkpoint's indices.
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(128 * 4 * 4, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, 10)
        )

    @staticmethod
    def _block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )

    def forward(self, image: Tensor) -> Tensor:
        """``(n, 3, 32, 32) -> (n, 10)`` logits."""
        logits: Tensor = self.classifier(self.features(image).flatten(1))
        return logits


class CrepeTiny(nn.Module):
    """CREPE pitch tracker, tiny: six times Conv, ReLU, BatchNorm, MaxPool along time."""

    CHANNELS = (1, 128, 16, 16, 16, 32, 64)
    LAYERS = range(1, 7)

    def __init__(self) -> None:
        super().__init__()
        for layer in self.LAYERS:
            inputs, outputs = self.CHANNELS[layer - 1 : layer + 1]
            first = layer == 1
            kernel, stride = (512, 4) if first else (64, 1)
            self.add_module(f"conv{layer}", nn.Conv2d(inputs, outputs, (kernel, 1), (stride, 1)))
            self.add_module(f"conv{layer}_BN", nn.BatchNorm2d(outputs, eps=1e-3))
        self.classifier = nn.Linear(256, 360)

    def forward(self, audio: Tensor) -> Tensor:
        """``(n, 1024)`` normalised samples at 16 kHz -> ``(n, 360)`` bin activations."""
        x = audio[:, None, :, None]
        for layer in self.LAYERS:
            x = F.pad(x, (0, 0, 254, 254) if layer == 1 else (0, 0, 31, 32))
            x = F.relu(self.get_submodule(f"conv{layer}")(x))
            x = F.max_pool2d(self.get_submodule(f"conv{layer}_BN")(x), (2, 1))
        # (n, 64, 4, 1) -> (n, 4 * 64): time first, as the checkpoint's Linear was trained.
        features = x.permute(0, 2, 1, 3).flatten(1)
        return torch.sigmoid(self.classifier(features))


class SentenceEncoder(nn.Module):
    """A transformers encoder that returns the token embeddings only."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        transformers: Any = importlib.import_module("transformers")
        transformers.utils.logging.disable_progress_bar()
        # Eager attention: plain MatMul and Softmax in the exported graph.
        self.encoder = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager")

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """``(n, length)`` twice -> ``(n, length, 384)``."""
        hidden: Tensor = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return hidden
