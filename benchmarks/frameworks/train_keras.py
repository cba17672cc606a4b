"""A Keras residual network, trained on MNIST digits, by Keras' own exporter.

pip install -r benchmarks/frameworks/requirements-keras.txt
python benchmarks/frameworks/train_keras.py FOLDER
"""

from __future__ import annotations

from pathlib import Path

import exporting
import keras
from keras import layers

EPOCHS = 12
BATCH = 64


def residual_block(x: keras.KerasTensor, width: int, strides: int) -> keras.KerasTensor:
    """Two 3 x 3 convolutions and a skip connection (He et al., arXiv 1512.03385)."""
    y = layers.Conv2D(width, 3, strides, padding="same", use_bias=False)(x)
    y = layers.ReLU()(layers.BatchNormalization()(y))
    y = layers.Conv2D(width, 3, padding="same", use_bias=False)(y)
    y = layers.BatchNormalization()(y)
    if strides != 1:
        x = layers.Conv2D(width, 1, strides, use_bias=False)(x)
    return layers.ReLU()(layers.Add()([x, y]))


def residual_network(width: int) -> keras.Model:
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(width, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for stage in range(3):
        x = residual_block(x, width * 2**stage, 2 if stage else 1)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(exporting.CLASSES)(x))


def trained(path: Path, small: bool) -> None:
    images, labels = exporting.training_digits(path)
    keras.utils.set_random_seed(0)
    model = residual_network(8 if small else 16)
    steps = EPOCHS * -(-len(images) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(rate, weight_decay=1e-2), loss)
    model.fit(images[..., None], labels, BATCH, EPOCHS, verbose=0)
    model.export(path, format="onnx", verbose=False)


if __name__ == "__main__":
    exporting.main(
        "Keras",
        {"keras-digits-resnet": trained},
        ["tensorflow-cpu", "keras", "tf2onnx", "onnx"],
        task=exporting.DIGITS,
    )
