"""A Flax ResNet, trained on MNIST digits with optax, by jax2onnx.

pip install -r benchmarks/frameworks/requirements-jax.txt
python benchmarks/frameworks/train_jax.py FOLDER
"""

from __future__ import annotations

from pathlib import Path

import exporting
import jax
import numpy as np
import optax
from flax import nnx
from flax_networks import ResNet
from jax2onnx import to_onnx

EPOCHS = 12
BATCH = 64


def loss(model: ResNet, images: jax.Array, labels: jax.Array) -> jax.Array:
    logits = model(images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@nnx.jit
def step(model: ResNet, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> None:
    optimizer.update(model, nnx.grad(loss)(model, images, labels))


def trained(path: Path, small: bool) -> None:
    images, labels = exporting.training_digits(path)
    widths = (8, 16) if small else (16, 32, 64)
    model = ResNet(widths, 1, 1, exporting.CLASSES, nnx.Rngs(0))
    batches = len(images) // BATCH  # whole ones: another size would be compiled anew
    rate = optax.cosine_decay_schedule(3e-3, EPOCHS * batches)
    optimizer = nnx.Optimizer(model, optax.adamw(rate, weight_decay=1e-2), wrt=nnx.Param)
    generator = np.random.default_rng(0)
    for _ in range(EPOCHS):
        order = generator.permutation(len(images))[: batches * BATCH]
        for chosen in order.reshape(batches, BATCH):
            step(model, optimizer, images[chosen][..., None], labels[chosen])
    model.eval()
    to_onnx(model, inputs=[("B", 28, 28, 1)], return_mode="file", output_path=str(path))


if __name__ == "__main__":
    exporting.main(
        "JAX / Flax",
        {"flax-digits-resnet": trained},
        ["jax", "flax", "optax", "jax2onnx", "onnx"],
        task=exporting.DIGITS,
    )
