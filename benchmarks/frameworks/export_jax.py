"""Flax networks by jax2onnx.

    pip install -r benchmarks/frameworks/requirements-jax.txt
    python benchmarks/frameworks/export_jax.py FOLDER

Weights are random; statistics of BatchNorm are made random, too, as trained ones are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import exporting
import jax
from flax import nnx
from flax_networks import Mixer, Recurrent, ResNet, ViT
from jax2onnx import to_onnx

CLASSES = 10


def resnet(small: bool, rngs: nnx.Rngs) -> tuple[nnx.Module, tuple[int, ...]]:
    if small:
        return ResNet((8, 16), 1, 3, CLASSES, rngs), (32, 32, 3)
    return ResNet((64, 128, 256, 512), 2, 3, 1000, rngs), (64, 64, 3)


def vit(small: bool, rngs: nnx.Rngs) -> tuple[nnx.Module, tuple[int, ...]]:
    if small:
        return ViT(16, 4, 24, 4, 2, CLASSES, rngs), (16, 16, 3)
    return ViT(224, 16, 192, 3, 12, 1000, rngs), (224, 224, 3)


def mixer(small: bool, rngs: nnx.Rngs) -> tuple[nnx.Module, tuple[int, ...]]:
    if small:
        return Mixer(16, 4, 24, 2, CLASSES, rngs), (16, 16, 3)
    return Mixer(224, 32, 512, 8, 1000, rngs), (224, 224, 3)


def recurrent(small: bool, rngs: nnx.Rngs) -> tuple[nnx.Module, tuple[int, ...]]:
    if small:
        return Recurrent(6, 12, CLASSES, rngs), (8, 6)
    return Recurrent(40, 128, CLASSES, rngs), (50, 40)


def export(
    build: Callable[..., tuple[nnx.Module, tuple[int, ...]]], path: Path, small: bool
) -> None:
    model, shape = build(small, nnx.Rngs(0))
    model.eval()
    keys = iter(jax.random.split(jax.random.key(0), 1000))
    for _, module in model.iter_modules():
        if isinstance(module, nnx.BatchNorm):
            for value in (module.mean, module.var, module.scale, module.bias):
                value[...] = jax.random.uniform(next(keys), value.shape, minval=0.5, maxval=1.5)
    graph, state = nnx.split(model)  # nnx.RNN can't be traced with parameters from outside

    def run(x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x)

    traced = run if build is recurrent else model
    to_onnx(traced, inputs=[("B", *shape)], return_mode="file", output_path=str(path))


NETWORKS: dict[str, exporting.Export] = {
    "flax-resnet18": partial(export, resnet),
    "flax-vit-tiny": partial(export, vit),
    "flax-mixer-s32": partial(export, mixer),
    "flax-lstm": partial(export, recurrent),
}

if __name__ == "__main__":
    exporting.main("JAX / Flax", NETWORKS, ["jax", "flax", "jax2onnx", "onnx"])
