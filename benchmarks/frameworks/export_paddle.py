"""PaddlePaddle networks by paddle2onnx (`paddle.onnx.export`).

    pip install -r benchmarks/frameworks/requirements-paddle.txt
    python benchmarks/frameworks/export_paddle.py FOLDER

Weights are random; statistics of BatchNorm are made random, too, as trained ones are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import exporting
import numpy as np
import paddle
from paddle import nn
from paddle_networks import CRNN, PPLCNet

CLASSES = 10
IMAGES = (None, 3, 224, 224)
SMALL_IMAGES = (None, 3, 32, 32)


def resnet(small: bool) -> nn.Layer:
    if not small:
        return paddle.vision.models.resnet18()
    block = paddle.vision.models.resnet.BasicBlock
    model = paddle.vision.models.ResNet(block, 18, num_classes=CLASSES)
    model.inplanes = 8
    model.conv1 = nn.Conv2D(3, 8, 3, padding=1, bias_attr=False)
    model.bn1 = nn.BatchNorm2D(8)
    model.layer1 = model._make_layer(block, 8, 1)
    model.layer2 = model._make_layer(block, 16, 1, stride=2)
    model.layer3, model.layer4 = nn.Identity(), nn.Identity()
    model.fc = nn.Linear(16, CLASSES)
    return model


def mobilenet_v3(small: bool) -> nn.Layer:
    scale = 0.25 if small else 1.0
    return paddle.vision.models.MobileNetV3Small(scale, num_classes=CLASSES if small else 1000)


def pp_lcnet(small: bool) -> nn.Layer:
    return PPLCNet(0.1, CLASSES, 32) if small else PPLCNet(1.0, 1000, 1280)


def recogniser(small: bool) -> nn.Layer:
    return CRNN(8, 12, 20) if small else CRNN(32, 96, 6625)


def export(
    build: Callable[[bool], nn.Layer], path: Path, small: bool, shape: Sequence[int | None] = IMAGES
) -> None:
    paddle.seed(0)
    model = build(small)
    model.eval()
    generator = np.random.default_rng(0)
    for layer in model.sublayers():
        if isinstance(layer, nn.BatchNorm2D):
            for value in (layer._mean, layer._variance, layer.weight, layer.bias):
                value.set_value(generator.uniform(0.5, 1.5, value.shape).astype(np.float32))
    if small and shape is IMAGES:
        shape = SMALL_IMAGES
    spec = [paddle.static.InputSpec(list(shape), "float32", "image")]
    paddle.onnx.export(model, str(path.with_suffix("")), spec, opset_version=17)


NETWORKS: dict[str, exporting.Export] = {
    "paddle-resnet18": partial(export, resnet),
    "paddle-mobilenet-v3-small": partial(export, mobilenet_v3),
    "paddle-pp-lcnet": partial(export, pp_lcnet),
    "paddle-crnn": partial(export, recogniser, shape=(None, 3, 32, None)),
}

if __name__ == "__main__":
    exporting.main("PaddlePaddle", NETWORKS, ["paddlepaddle", "paddle2onnx", "onnx"])
