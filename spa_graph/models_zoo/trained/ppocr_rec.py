"""PP-OCRv4 recognition: a line of text to characters.

Weights: PyPI rapidocr-onnxruntime 1.4.4 (Apache-2.0).  Paddle export, opset 12: LCNet backbone
with squeeze-excite, two transformer blocks, CTC head over 6625 labels; all weights in Constant
nodes and all axes dynamic.  2.7 M parameters.

Data: rendered English words.  Metric: exact match on 200 words.
"""

from __future__ import annotations

from functools import cache

import numpy as np

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
from spa_graph.models_zoo.trained.rendering import (
    CALIBRATION_WORDS,
    EVALUATION_WORDS,
    collapse_repeats,
    render_word,
    text_line,
)

REQUIREMENT = "rapidocr-onnxruntime==1.4.4"
WIDTH = 320
SAMPLES = 200
BLANK = 0


def _render(n: int, words: tuple[str, ...], rng: np.random.Generator) -> tuple[Array, Array]:
    """Return ``(n, 3, 48, WIDTH)`` lines and their `n` words."""
    chosen = [words[i] for i in rng.integers(len(words), size=n)]
    lines = np.stack([text_line(render_word(word, rng), WIDTH) for word in chosen])
    return lines, np.array(chosen)


@cache
def _evaluation() -> tuple[Array, Array]:
    return _render(SAMPLES, EVALUATION_WORDS, evaluation_rng())


def _read(runner: Runner, labels: list[str], lines: Array) -> Array:
    """Return the texts that the network reads."""
    paths = runner.batched(lines, size=20).argmax(-1)
    texts = ["".join(labels[i] for i in collapse_repeats(path, BLANK)) for path in paths]
    # The margin before and behind a word is often read as a space, and is no mistake.
    return np.array([text.strip() for text in texts])


def _labels(runner: Runner) -> list[str]:
    """Labels in the order of the outputs: blank, the file's characters, space."""
    return ["", *runner.metadata["character"].splitlines(), " "]


def _measure(runner: Runner, dense: Runner | None) -> Score:
    lines, words = _evaluation()
    labels = _labels(runner)
    read = _read(runner, labels, lines)
    score = {"exact match": accuracy(read, words)}
    if dense is not None:
        score["agreement"] = accuracy(read, _read(dense, labels, lines))
    return score


def _sample(n: int, seed: int) -> Arrays:
    return {"x": _render(n, CALIBRATION_WORDS, calibration_rng(seed))[0]}


def _foreign(n: int, seed: int) -> Arrays:
    """Photographs."""
    rng = calibration_rng(seed)
    return {"x": np.stack([text_line(random_view(rng, (WIDTH, 48)), WIDTH) for _ in range(n)])}


PPOCR_REC = Trained(
    name="ppocr_rec",
    requirement=REQUIREMENT,
    licence="Apache-2.0",
    metric="exact match",
    build=copy_from_package(
        "rapidocr_onnxruntime", "models", "ch_PP-OCRv4_rec_infer.onnx", requirement=REQUIREMENT
    ),
    measure=_measure,
    sample=_sample,
    foreign=_foreign,
)
