"""A PaddlePaddle network of depthwise separable blocks, trained on MNIST digits, by paddle2onnx.

pip install -r benchmarks/frameworks/requirements-paddle.txt
python benchmarks/frameworks/train_paddle.py FOLDER
"""

from __future__ import annotations

from pathlib import Path

import exporting
import numpy as np
import paddle
from paddle import nn

EPOCHS = 12
BATCH = 64


def block(width_in: int, width: int, stride: int) -> nn.Sequential:
    """A depthwise separable block, as in PP-LCNet and MobileNet (arXiv 1704.04861)."""
    return nn.Sequential(
        nn.Conv2D(width_in, width_in, 3, stride, padding=1, groups=width_in, bias_attr=False),
        nn.BatchNorm2D(width_in),
        nn.Hardswish(),
        nn.Conv2D(width_in, width, 1, bias_attr=False),
        nn.BatchNorm2D(width),
        nn.Hardswish(),
    )


def separable_network(width: int) -> nn.Sequential:
    layers = [nn.Conv2D(1, width, 3, padding=1, bias_attr=False), nn.BatchNorm2D(width)]
    layers.append(nn.Hardswish())
    for _ in range(2):
        layers += [block(width, 2 * width, 2), block(2 * width, 2 * width, 1)]
        width *= 2
    layers += [nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(width, exporting.CLASSES)]
    return nn.Sequential(*layers)


def trained(path: Path, small: bool) -> None:
    images, labels = exporting.training_digits(path)
    paddle.seed(0)
    model = separable_network(8 if small else 24)
    generator = np.random.default_rng(0)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = paddle.optimizer.lr.CosineAnnealingDecay(3e-3, steps)
    optimizer = paddle.optimizer.AdamW(schedule, parameters=model.parameters(), weight_decay=1e-2)
    for _ in range(EPOCHS):
        order = generator.permutation(len(images))
        for start in range(0, len(images), BATCH):
            chosen = order[start : start + BATCH]
            logits = model(paddle.to_tensor(images[chosen][:, None]))
            nn.functional.cross_entropy(logits, paddle.to_tensor(labels[chosen])).backward()
            optimizer.step()
            optimizer.clear_grad()
            schedule.step()
    model.eval()
    spec = [paddle.static.InputSpec([None, 1, 28, 28], "float32", "image")]
    paddle.onnx.export(model, str(path.with_suffix("")), spec, opset_version=17)


if __name__ == "__main__":
    exporting.main(
        "PaddlePaddle",
        {"paddle-digits-separable": trained},
        ["paddlepaddle", "paddle2onnx", "onnx"],
        task=exporting.DIGITS,
    )
