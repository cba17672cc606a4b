"""MXNet Gluon networks by MXNet's own exporter.

    pip install -r benchmarks/frameworks/requirements-mxnet.txt
    python benchmarks/frameworks/export_mxnet.py FOLDER

MXNet is retired; its last release needs an old numpy. Weights are random.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import exporting
import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock, model_zoo

CLASSES = 10


def resnet(small: bool) -> HybridBlock:
    if not small:
        return model_zoo.vision.resnet18_v1()
    block = model_zoo.vision.BasicBlockV1
    return model_zoo.vision.ResNetV1(block, [1, 1], [8, 8, 16], CLASSES, thumbnail=True)


def mobilenet_v2(small: bool) -> HybridBlock:
    if not small:
        return model_zoo.vision.mobilenet_v2_1_0()
    return model_zoo.vision.MobileNetV2(0.1, CLASSES)


def export(build: Callable[[bool], HybridBlock], path: Path, small: bool) -> None:
    mx.random.seed(0)
    np.random.seed(0)
    model = build(small)
    model.initialize(mx.init.Xavier())
    model.hybridize()
    write(model, (1, 3, 32, 32) if small else (1, 3, 224, 224), path)


def write(model: HybridBlock, shape: tuple[int, ...], path: Path) -> None:
    """As ONNX, by way of the files that MXNet keeps networks in."""
    model(mx.nd.zeros(shape))  # Gluon learns sizes from the first run
    with tempfile.TemporaryDirectory() as folder:
        model.export(f"{folder}/model")
        files = f"{folder}/model-symbol.json", f"{folder}/model-0000.params"
        mx.onnx.export_model(*files, [shape], np.float32, str(path))


NETWORKS: dict[str, exporting.Export] = {
    "mxnet-resnet18": partial(export, resnet),
    "mxnet-mobilenet-v2": partial(export, mobilenet_v2),
}

if __name__ == "__main__":
    exporting.main("MXNet", NETWORKS, ["mxnet", "onnx"])
