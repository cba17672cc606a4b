"""PP-LCNet and a CRNN text recogniser in PaddlePaddle, with choosable widths.

* PP-LCNet: Cui et al., arXiv 2109.15099, table 1: depthwise separable blocks with hard-swish, 5 x 5
  kernels and squeeze-and-excitation at the end.
* CRNN: Shi et al., arXiv 1507.05717: convolutions down to a height of one, two bidirectional LSTMs
  along the width, characters per column (for CTC). PP-OCR's recogniser is built like that.
"""

from __future__ import annotations

from collections.abc import Sequence

import paddle
from paddle import nn

Tensor = paddle.Tensor
BLOCKS = (  # kernel, width in, width out, stride, squeeze-and-excitation
    (3, 16, 32, 1, False), (3, 32, 64, 2, False), (3, 64, 64, 1, False), (3, 64, 128, 2, False),
    (3, 128, 128, 1, False), (3, 128, 256, 2, False), *((5, 256, 256, 1, False),) * 5,
    (5, 256, 512, 2, True), (5, 512, 512, 1, True),
)  # fmt: skip


def convolution(
    width_in: int, width: int, kernel: int | Sequence[int], stride: int | Sequence[int] = 1,
    groups: int = 1,
) -> nn.Sequential:  # fmt: skip
    """Convolution, BatchNorm, hard-swish."""
    padding = [size // 2 for size in kernel] if not isinstance(kernel, int) else kernel // 2
    conv = nn.Conv2D(
        width_in, width, kernel, stride, padding=padding, groups=groups, bias_attr=False
    )
    return nn.Sequential(conv, nn.BatchNorm2D(width), nn.Hardswish())


class SqueezeExcite(nn.Layer):
    """Channels weighted by what their averages say."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2D(1)
        self.down = nn.Conv2D(width, width // 4, 1)
        self.up = nn.Conv2D(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = nn.functional.relu(self.down(self.pool(x)))
        return x * nn.functional.hardsigmoid(self.up(gate))


class PPLCNet(nn.Layer):
    """PP-LCNet; `scale` multiplies all widths."""

    def __init__(self, scale: float, classes: int, head: int) -> None:
        super().__init__()

        def scaled(width: int) -> int:
            return max(8, round(width * scale / 8) * 8)

        layers = [convolution(3, scaled(16), 3, 2)]
        for kernel, width_in, width, stride, squeezes in BLOCKS:
            layers.append(
                convolution(scaled(width_in), scaled(width_in), kernel, stride, scaled(width_in))
            )
            if squeezes:
                layers.append(SqueezeExcite(scaled(width_in)))
            layers.append(convolution(scaled(width_in), scaled(width), 1))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2D(1)
        self.last = nn.Conv2D(scaled(512), head, 1, bias_attr=False)
        self.activation = nn.Hardswish()
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(head, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.last(self.pool(self.features(x))))
        return self.classifier(paddle.flatten(self.dropout(x), 1))


class CRNN(nn.Layer):
    """Text in images 32 high: (n, 3, 32, w) -> (n, w / 4, characters), as probabilities."""

    def __init__(self, width: int, hidden: int, characters: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            convolution(3, width, 3, 2),
            convolution(width, 2 * width, 3, 2),
            convolution(2 * width, 4 * width, 3, (2, 1)),
            convolution(4 * width, 4 * width, 3, (2, 1)),
            nn.MaxPool2D((2, 1), (2, 1)),
        )
        self.lstm = nn.LSTM(4 * width, hidden, num_layers=2, direction="bidirect")
        self.head = nn.Linear(2 * hidden, characters)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.features(x).squeeze(2).transpose([0, 2, 1])
        return nn.functional.softmax(self.head(self.lstm(columns)[0]), axis=2)
