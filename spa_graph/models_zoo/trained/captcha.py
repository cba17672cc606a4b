"""captcha-whisperer: a CRNN that reads four-character captchas.

Weights: PyPI captcha-whisperer 0.1.0 (MIT).  24 Conv with residual and dense links, BatchNorm
folded, and a bidirectional LSTM unrolled into Gemm, Sigmoid and Tanh.  4.8 M parameters.

Data: PyPI captcha 0.7.1 (BSD), which draws its randomness from `secrets`; here from a seed.
Metric: exact match of the four characters on 200 images.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from spa_graph.models_zoo.trained.base import (
    Array,
    Arrays,
    Runner,
    Score,
    Trained,
    accuracy,
    calibration_rng,
    copy_from_package,
    evaluation_rng,
)
from spa_graph.models_zoo.trained.photographs import random_view
from spa_graph.models_zoo.trained.rendering import collapse_repeats

REQUIREMENT = "captcha-whisperer==0.1.0"
ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"
LABELS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BLANK = len(LABELS)
SAMPLES = 200


class _SeededSecrets:
    """The three functions of `secrets` that the captcha package calls, from a seed."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def randbelow(self, bound: int) -> int:
        return int(self._rng.integers(bound))

    def randbits(self, bits: int) -> int:
        return int(self._rng.integers(1 << bits))

    def choice(self, items: Any) -> Any:
        return items[int(self._rng.integers(len(items)))]


@contextmanager
def _generator(rng: np.random.Generator) -> Iterator[Any]:
    """Yield an image generator whose randomness is `rng` until the context closes."""
    module: Any = importlib.import_module("captcha.image")
    original = module.secrets
    module.secrets = _SeededSecrets(rng)
    try:
        yield module.ImageCaptcha(160, 60)
    finally:
        module.secrets = original


def _pixels(image: Image.Image) -> Array:
    """``(3, 60, 160)`` BGR in 0..255."""
    return np.asarray(image, np.float32)[:, :, ::-1].transpose(2, 0, 1)


def _render(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return ``(n, 3, 60, 160)`` BGR images in 0..255 and their `n` texts."""
    images = np.empty((n, 3, 60, 160), np.float32)
    texts = []
    with _generator(rng) as generator:
        for image in images:
            text = "".join(ALPHABET[i] for i in rng.integers(len(ALPHABET), size=4))
            image[:] = _pixels(generator.generate_image(text).convert("RGB"))
            texts.append(text)
    return images, np.array(texts)


@cache
def _evaluation() -> tuple[Array, Array]:
    return _render(SAMPLES, evaluation_rng())


def _read(runner: Runner, images: Array) -> Array:
    """Return the texts that the network reads."""
    logits = runner.batched(images, axis=1)  # (steps, n, labels)
    paths = logits.argmax(-1).T
    return np.array(["".join(LABELS[i] for i in collapse_repeats(path, BLANK)) for path in paths])


def _measure(runner: Runner, dense: Runner | None) -> Score:
    images, texts = _evaluation()
    read = _read(runner, images)
    score = {"exact match": accuracy(read, texts)}
    if dense is not None:
        score["agreement"] = accuracy(read, _read(dense, images))
    return score


def _sample(n: int, seed: int) -> Arrays:
    return {"image": _render(n, calibration_rng(seed))[0]}


def _foreign(n: int, seed: int) -> Arrays:
    """Photographs."""
    rng = calibration_rng(seed)
    return {"image": np.stack([_pixels(random_view(rng, (160, 60))) for _ in range(n)])}


CAPTCHA = Trained(
    name="captcha",
    requirement=REQUIREMENT,
    licence="MIT",
    metric="exact match",
    build=copy_from_package(
        "captcha_whisperer", "models", "captcha_crnn.onnx", requirement=REQUIREMENT
    ),
    measure=_measure,
    sample=_sample,
    foreign=_foreign,
)
