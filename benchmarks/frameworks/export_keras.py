"""Keras applications, a Keras transformer and recurrent networks, by tf2onnx and by Keras itself.

    pip install -r benchmarks/frameworks/requirements-keras.txt
    pip install -e .  # for the network that goes through a .keras file
    python benchmarks/frameworks/export_keras.py FOLDER

Weights are random: trained ones can't be had offline. BatchNormalization's statistics are made
random too, as trained ones are, so that folding them into convolutions has an effect.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import exporting
import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from keras.src.applications import convnext, densenet, efficientnet_v2, mobilenet_v3, nasnet, resnet

Build = Callable[[bool], keras.Model]
CLASSES = 10  # of small networks
SMALL = {"weights": None, "input_shape": (32, 32, 3), "classes": CLASSES}
FULL = {"weights": None, "input_shape": (224, 224, 3)}


# --- networks ---------------------------------------------------------------------------------


def resnet50v2(small: bool) -> keras.Model:
    if not small:
        return keras.applications.ResNet50V2(**FULL)

    def stacks(x: keras.KerasTensor) -> keras.KerasTensor:
        x = resnet.stack_residual_blocks_v2(x, 8, 2, name="conv2")
        return resnet.stack_residual_blocks_v2(x, 12, 2, stride1=1, name="conv3")

    return resnet.ResNet(stacks, True, True, weights_name="resnet", **SMALL)


def mobilenet_v3_small(small: bool) -> keras.Model:
    if not small:
        return keras.applications.MobileNetV3Small(**FULL)

    def stack(x, kernel, activation, se_ratio):  # type: ignore[no-untyped-def]
        block = mobilenet_v3._inverted_res_block
        x = block(x, 1, 8, 3, 2, se_ratio, mobilenet_v3.relu, 0)
        x = block(x, 3, 16, kernel, 2, se_ratio, activation, 1)
        return block(x, 3, 16, kernel, 1, se_ratio, activation, 2)

    return mobilenet_v3.MobileNetV3(stack, 32, **SMALL)


def efficientnet_v2_b0(small: bool) -> keras.Model:
    if not small:
        return keras.applications.EfficientNetV2B0(**FULL)
    blocks = efficientnet_v2.DEFAULT_BLOCKS_ARGS["efficientnetv2-b0"]
    chosen = [blocks[0], blocks[1] | {"num_repeat": 1}, blocks[3] | {"num_repeat": 2}]
    return efficientnet_v2.EfficientNetV2(0.25, 1.0, 32, blocks_args=chosen, **SMALL)


def densenet121(small: bool) -> keras.Model:
    if not small:
        return keras.applications.DenseNet121(**FULL)
    inputs = x = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(x)
    x = densenet.conv_block(x, 8, name="conv2")
    x = densenet.conv_block(x, 8, name="conv3")
    x = densenet.transition_block(x, 0.5, name="pool")
    x = densenet.conv_block(x, 8, name="conv4")
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, activation="softmax")(x))


def nasnet_mobile(small: bool) -> keras.Model:
    if not small:
        return keras.applications.NASNetMobile(**FULL)
    return nasnet.NASNet(
        penultimate_filters=96,
        num_blocks=1,
        stem_block_filters=8,
        skip_reduction=False,
        filter_multiplier=1,
        default_size=32,
        **SMALL,
    )


def convnext_tiny(small: bool) -> keras.Model:
    if not small:
        return keras.applications.ConvNeXtTiny(**FULL)
    return convnext.ConvNeXt([1, 1, 1, 1], [8, 16, 24, 32], default_size=32, **SMALL)


def gelu(x: keras.KerasTensor) -> keras.KerasTensor:
    """By tanh; tf2onnx 1.17 has no ONNX form of the Erfc that the exact one is computed by."""
    return keras.activations.gelu(x, approximate=True)


def transformer(small: bool) -> keras.Model:
    """Pre-norm blocks with keras.layers.MultiHeadAttention on embedded tokens."""
    width, heads, blocks, length, words = (32, 4, 2, 16, 100) if small else (256, 8, 6, 128, 8000)
    tokens = keras.Input((length,), dtype="int32")
    x = keras.layers.Embedding(words, width)(tokens)
    for _ in range(blocks):
        y = keras.layers.LayerNormalization()(x)
        y = keras.layers.MultiHeadAttention(heads, width // heads)(y, y)
        x = keras.layers.Add()([x, y])
        y = keras.layers.LayerNormalization()(x)
        y = keras.layers.Dense(4 * width, activation=gelu)(y)
        x = keras.layers.Add()([x, keras.layers.Dense(width)(y)])
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    return keras.Model(tokens, keras.layers.Dense(CLASSES, activation="softmax")(x))


def recurrent(small: bool, unroll: bool = False) -> keras.Model:
    """Two LSTMs, the first in both directions, and a GRU."""
    width, length, features = (12, 8, 6) if small else (128, 50, 40)
    inputs = x = keras.Input((length, features))
    first = keras.layers.LSTM(width, return_sequences=True, unroll=unroll)
    x = keras.layers.Bidirectional(first)(x)
    x = keras.layers.LSTM(width, return_sequences=True, unroll=unroll)(x)
    x = keras.layers.GRU(width, unroll=unroll)(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))


# --- exporters --------------------------------------------------------------------------------


def _built(build: Build, small: bool) -> keras.Model:
    """The network with seeded weights, and statistics of BatchNormalization as if trained."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    model = build(small)
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights(
                [generator.uniform(0.5, 1.5, w.shape).astype(w.dtype) for w in layer.get_weights()]
            )
    first = model.inputs[0]
    model(np.zeros((1, *first.shape[1:]), first.dtype))  # Keras exports only what was called
    return model


def by_keras(build: Build, path: Path, small: bool) -> None:
    """`model.export(format="onnx")`."""
    _built(build, small).export(path, format="onnx", verbose=False)


def by_saved_model(build: Build, path: Path, small: bool) -> None:
    """A SavedModel, converted by `python -m tf2onnx.convert`."""
    with tempfile.TemporaryDirectory() as folder:
        _built(build, small).export(folder, format="tf_saved_model", verbose=False)
        _convert(["--saved-model", folder], path)


def by_tflite(build: Build, path: Path, small: bool, quantised: bool = False) -> None:
    """A TFLite file, converted by `python -m tf2onnx.convert --tflite`."""
    model = _built(build, small)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if quantised:
        shape = (1, *model.inputs[0].shape[1:])
        samples = np.random.default_rng(0).uniform(0, 255, (8, *shape)).astype(np.float32)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([sample] for sample in samples)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.tflite"
        file.write_bytes(converter.convert())
        _convert(["--tflite", str(file)], path)


def by_file(build: Build, path: Path, small: bool) -> None:
    """A `.keras` file, converted as `spa-prune model.keras` does it; needs spa-prune here, too."""
    from spa_graph.frontends import convert

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.keras"
        _built(build, small).save(file)
        path.unlink(missing_ok=True)  # the command replaces no file
        convert.convert(file, convert.KERAS, path)


def _convert(source: list[str], path: Path) -> None:
    command = [sys.executable, "-m", "tf2onnx.convert", *source, "--output", str(path)]
    done = subprocess.run([*command, "--opset", "17"], capture_output=True, text=True)
    if done.returncode or not path.exists():
        raise RuntimeError(done.stderr.strip().splitlines()[-1])


NETWORKS: dict[str, exporting.Export] = {
    "keras-resnet50v2": partial(by_keras, resnet50v2),
    "keras-mobilenet-v3-small": partial(by_keras, mobilenet_v3_small),
    "keras-efficientnet-v2-b0": partial(by_keras, efficientnet_v2_b0),
    "keras-densenet121": partial(by_keras, densenet121),
    "keras-nasnet-mobile": partial(by_keras, nasnet_mobile),
    "keras-convnext-tiny": partial(by_keras, convnext_tiny),
    "keras-file-convnext-tiny": partial(by_file, convnext_tiny),
    "keras-transformer": partial(by_keras, transformer),
    "keras-recurrent": partial(by_keras, recurrent),
    "keras-recurrent-unrolled": partial(by_keras, partial(recurrent, unroll=True)),
    "savedmodel-resnet50v2": partial(by_saved_model, resnet50v2),
    "savedmodel-transformer": partial(by_saved_model, transformer),
    "savedmodel-recurrent": partial(by_saved_model, recurrent),
    "tflite-mobilenet-v3-small": partial(by_tflite, mobilenet_v3_small),
    "tflite-resnet50v2": partial(by_tflite, resnet50v2),
    "tflite-resnet50v2-int8": partial(by_tflite, resnet50v2, quantised=True),
    "tflite-transformer": partial(by_tflite, transformer),
}

if __name__ == "__main__":
    assert tf2onnx.__version__  # Keras' own exporter needs it too
    exporting.main("Keras", NETWORKS, ["tensorflow-cpu", "keras", "tf2onnx", "onnx"])
