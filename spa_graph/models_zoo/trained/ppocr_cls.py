"""PP-OCR mobile v2.0 direction classifier: is a line of text upright or turned by 180 degrees?

Weights: PyPI rapidocr-onnxruntime 1.4.4 (Apache-2.0).  Like a small MobileNetV3: 53 Conv, 11 of
them depthwise, nine squeeze-excite blocks, live BatchNorm.  0.13 M parameters.

Data: rendered English words, half of them turned.  Metric: accuracy on 200.
"""

from __future__ import annotations

from functools import cache

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
    fidelity,
    log_probabilities,
)
from spa_graph.models_zoo.trained.photographs import random_view
from spa_graph.models_zoo.trained.rendering import (
    CALIBRATION_WORDS,
    EVALUATION_WORDS,
    render_word,
    text_line,
)

REQUIREMENT = "rapidocr-onnxruntime==1.4.4"
WIDTH = 192
SAMPLES = 200


def _render(n: int, words: tuple[str, ...], rng: np.random.Generator) -> tuple[Array, Array]:
    """Return ``(n, 3, 48, WIDTH)`` lines and `n` labels: 0 upright, 1 turned, in turns."""
    turned = np.arange(n) % 2
    lines = []
    for turn in turned:
        image = render_word(words[int(rng.integers(len(words)))], rng)
        lines.append(
            text_line(image.transpose(Image.Transpose.ROTATE_180) if turn else image, WIDTH)
        )
    return np.stack(lines), turned


@cache
def _evaluation() -> tuple[Array, Array]:
    return _render(SAMPLES, EVALUATION_WORDS, evaluation_rng())


def _measure(runner: Runner, dense: Runner | None) -> Score:
    lines, turned = _evaluation()
    probabilities = runner.batched(lines)
    score = {"accuracy": accuracy(probabilities.argmax(-1), turned)}
    if dense is not None:
        score |= fidelity(log_probabilities(probabilities), log_probabilities(dense.batched(lines)))
    return score


def _sample(n: int, seed: int) -> Arrays:
    return {"x": _render(n, CALIBRATION_WORDS, calibration_rng(seed))[0]}


def _foreign(n: int, seed: int) -> Arrays:
    """Photographs."""
    rng = calibration_rng(seed)
    return {"x": np.stack([text_line(random_view(rng, (WIDTH, 48)), WIDTH) for _ in range(n)])}


PPOCR_CLS = Trained(
    name="ppocr_cls",
    requirement=REQUIREMENT,
    licence="Apache-2.0",
    metric="accuracy",
    build=copy_from_package(
        "rapidocr_onnxruntime",
        "models",
        "ch_ppocr_mobile_v2.0_cls_infer.onnx",
        requirement=REQUIREMENT,
    ),
    measure=_measure,
    sample=_sample,
    foreign=_foreign,
    input_shapes={"x": (1, 3, 48, WIDTH)},
)
