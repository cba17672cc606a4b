"""Photographs from PyPI scikit-image and scikit-learn, and random crops of them.

They are what EfficientNet is calibrated with, and out of distribution for the networks that read
text.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from spa_graph.models_zoo.trained.base import package_file

PHOTOGRAPHS = (
    ("scikit-image==0.26.0", "skimage", "data", "astronaut.png"),
    ("scikit-image==0.26.0", "skimage", "data", "chelsea.png"),
    ("scikit-image==0.26.0", "skimage", "data", "coffee.png"),
    ("scikit-image==0.26.0", "skimage", "data", "motorcycle_left.png"),
    ("scikit-image==0.26.0", "skimage", "data", "rocket.jpg"),
    ("scikit-learn==1.9.1", "sklearn", "datasets", "images", "china.jpg"),
    ("scikit-learn==1.9.1", "sklearn", "datasets", "images", "flower.jpg"),
)


@cache
def _photographs() -> tuple[Image.Image, ...]:
    paths = [package_file(*place, requirement=requirement) for requirement, *place in PHOTOGRAPHS]
    return tuple(Image.open(path).convert("RGB") for path in paths)


def mirror(image: Image.Image) -> Image.Image:
    """Swap left and right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def maybe_mirror(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Mirror half of the images."""
    return mirror(image) if rng.random() < 0.5 else image


def random_view(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Return a crop of a random photograph, scaled to `size` (width, height), maybe mirrored.

    It covers 15 % to 100 % of the area, with a side ratio of 3/4 to 4/3.
    """
    photographs = _photographs()
    image = photographs[int(rng.integers(len(photographs)))]
    area = image.width * image.height * rng.uniform(0.15, 1)
    ratio = np.exp(rng.uniform(-1, 1) * np.log(4 / 3))
    width = min(image.width, (area * ratio) ** 0.5)
    height = min(image.height, (area / ratio) ** 0.5)
    x, y = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    crop = image.resize(size, Image.Resampling.BICUBIC, box=(x, y, x + width, y + height))
    return maybe_mirror(crop, rng)
