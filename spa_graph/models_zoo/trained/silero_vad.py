"""Silero VAD: is there speech in each 32 ms of sound?

Weights: PyPI silero-vad 6.2.3 (MIT), the 16 kHz file that takes a whole sequence.  A fixed STFT
basis as Conv, four Conv1d, one LSTM of 128.  0.31 M parameters.

Data: speech of Debian's espeak-ng in strong noise; the truth is where the clean speech is
louder than 5 % of its maximum.  Metric: frame accuracy (the best energy threshold gets 0.74).
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
from spa_graph.models_zoo.trained.sounds import CALIBRATION_TEXTS, RATE, speak, tone

REQUIREMENT = "silero-vad==6.2.3"
FRAME, CONTEXT = 512, 64
HIDDEN = 128
RECORDINGS = 16
PHRASES = 4
VOICES = ("en", "en-us", "en+f3", "en+m3", "en-us+f2", "de", "fr")
EVALUATION_TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "structured pruning removes whole channels",
    "please call me tomorrow at nine",
    "a network without weights is only a drawing",
    "seven days of rain and one of sun",
    "she sells sea shells by the shore",
    "turn left at the second street",
    "how much wood would a woodchuck chuck",
)


def _phrase(texts: tuple[str, ...], rng: np.random.Generator) -> tuple[Array, Array]:
    """Return a phrase after a pause, its RMS near 0.1, and for each sample whether it speaks."""
    voice, text = rng.choice(VOICES), rng.choice(texts)
    speech = speak(str(text), str(voice), int(rng.integers(130, 191)), int(rng.integers(30, 71)))
    smoothing = np.full(2400, 1 / 2400)
    loudness = np.sqrt(np.convolve(speech**2, smoothing, "same"))
    pause = np.zeros(int(RATE * rng.uniform(0.6, 1.6)))
    sound = np.concatenate([pause, 0.1 * speech / speech.std()])
    return sound, np.concatenate([pause > 0, loudness > 0.05 * loudness.max()])


def _noise(n: int, rng: np.random.Generator) -> Array:
    """Return white noise, or darker noise in half of the cases, at 10 to 20 dB under full scale."""
    noise = rng.normal(size=n)
    if rng.random() < 0.5:
        noise = np.convolve(noise, np.full(6, 2 / 6), "same")
    return np.asarray(noise * 10 ** rng.uniform(-1.7, -0.8))


def _frames(sound: Array) -> Array:
    """Cut into ``(frames, CONTEXT + FRAME)``: each starts with the end of the one before."""
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), sound])
    windows = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME]
    return windows.copy()


def _recording(texts: tuple[str, ...], rng: np.random.Generator) -> tuple[Array, Array]:
    """Return ``(frames, CONTEXT + FRAME)`` samples and whether each frame is mostly speech."""
    sounds, speaks = zip(*(_phrase(texts, rng) for _ in range(PHRASES)), strict=True)
    sound, speaking = np.concatenate(sounds), np.concatenate(speaks)
    frames = len(sound) // FRAME
    sound = (sound + _noise(len(sound), rng))[: frames * FRAME].astype(np.float32)
    return _frames(sound), speaking[: frames * FRAME].reshape(frames, FRAME).mean(1) > 0.5


@cache
def _evaluation() -> tuple[tuple[Array, Array], ...]:
    rng = evaluation_rng()
    return tuple(_recording(EVALUATION_TEXTS, rng) for _ in range(RECORDINGS))


def _with_state(frames: Array) -> Arrays:
    """Return the network's inputs: the frames of one sequence, and its state at the start."""
    state = np.zeros((1, 1, HIDDEN), np.float32)
    return {"input": frames, "h": state, "c": state}


def _detect(runner: Runner) -> Array:
    """Return for each frame of the evaluation data whether the network hears speech."""
    probabilities = [runner(_with_state(frames)).ravel() for frames, _ in _evaluation()]
    return np.concatenate(probabilities) > 0.5


def _measure(runner: Runner, dense: Runner | None) -> Score:
    truth = np.concatenate([speaking for _, speaking in _evaluation()])
    detected = _detect(runner)
    score = {"frame accuracy": accuracy(detected, truth)}
    if dense is not None:
        score["agreement"] = accuracy(detected, _detect(dense))
    return score


def _sample(n: int, seed: int) -> Arrays:
    """Return one sequence of `n` frames, with the state at its start."""
    rng = calibration_rng(seed)
    frames = np.empty((0, CONTEXT + FRAME), np.float32)
    while len(frames) < n:
        frames = np.concatenate([frames, _recording(CALIBRATION_TEXTS, rng)[0]])
    return _with_state(frames[:n])


def _foreign(n: int, seed: int) -> Arrays:
    """Harmonic tones, a quarter of a second each."""
    rng = calibration_rng(seed)
    frequencies = np.exp(rng.uniform(np.log(60), np.log(1200), 1 + n * FRAME * 4 // RATE))
    sound = np.concatenate([0.1 * tone(frequency, RATE // 4, rng) for frequency in frequencies])
    return _with_state(_frames(sound[: n * FRAME]))


SILERO_VAD = Trained(
    name="silero_vad",
    requirement=REQUIREMENT,
    licence="MIT",
    metric="frame accuracy",
    build=copy_from_package(
        "silero_vad", "data", "silero_vad_16k_sequence.onnx", requirement=REQUIREMENT
    ),
    measure=_measure,
    sample=_sample,
    foreign=_foreign,
)
