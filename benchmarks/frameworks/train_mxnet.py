"""A Gluon ResNet, trained on MNIST digits, by MXNet's own exporter.

pip install -r benchmarks/frameworks/requirements-mxnet.txt
python benchmarks/frameworks/train_mxnet.py FOLDER
"""

from __future__ import annotations

from pathlib import Path

import exporting
import mxnet as mx
import numpy as np
from export_mxnet import write
from mxnet.gluon import Trainer, loss, model_zoo

EPOCHS = 12
BATCH = 64


def trained(path: Path, small: bool) -> None:
    images, labels = exporting.training_digits(path)
    mx.random.seed(0)
    np.random.seed(0)
    widths = [8, 8, 16] if small else [16, 16, 32, 64]
    block = model_zoo.vision.BasicBlockV1
    depths = [1] * (len(widths) - 1)
    model = model_zoo.vision.ResNetV1(block, depths, widths, exporting.CLASSES, thumbnail=True)
    model.initialize(mx.init.Xavier())
    model.hybridize()
    steps = EPOCHS * -(-len(images) // BATCH)
    rate = mx.lr_scheduler.CosineScheduler(steps, 3e-3)
    options = {"learning_rate": 3e-3, "lr_scheduler": rate, "wd": 1e-4}
    trainer = Trainer(model.collect_params(), "adam", options)
    criterion = loss.SoftmaxCrossEntropyLoss()
    for _ in range(EPOCHS):
        order = np.random.permutation(len(images))
        for start in range(0, len(images), BATCH):
            chosen = order[start : start + BATCH]
            with mx.autograd.record():
                logits = model(mx.nd.array(images[chosen][:, None]))
                losses = criterion(logits, mx.nd.array(labels[chosen]))
            losses.backward()
            trainer.step(len(chosen))
    write(model, (1, 1, 28, 28), path)


if __name__ == "__main__":
    exporting.main(
        "MXNet", {"mxnet-digits-resnet": trained}, ["mxnet", "onnx"], task=exporting.DIGITS
    )
