"""Sounds shared by the networks that listen: speech of Debian's espeak-ng, and harmonic tones."""

from __future__ import annotations

import io
import subprocess
import wave

import numpy as np

from spa_graph.models_zoo.trained.base import Array, MissingRequirementError

RATE = 16000
"""Samples per second."""

CALIBRATION_TEXTS = (
    "the train to the north leaves in ten minutes",
    "nobody had seen the old lighthouse for years",
    "could you bring two bottles of milk",
    "every good story begins with a question",
    "my brother repairs bicycles in the garage",
    "the winter was long but the house was warm",
    "open the window and let the morning in",
    "eleven musicians played under the bridge",
)


def speak(text: str, voice: str, speed: int, pitch: int) -> Array:
    """Return speech at 16 kHz.

    Raises:
        MissingRequirementError: espeak-ng is not installed.
    """
    from scipy.signal import resample_poly

    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    try:
        sound = subprocess.run(command, capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise MissingRequirementError(
            "espeak-ng is not installed; run: apt-get install espeak-ng"
        ) from error
    with wave.open(io.BytesIO(sound)) as file:
        # espeak-ng streams with a header length of 2 GB: read to the end.
        samples = np.frombuffer(file.readframes(1 << 28), np.int16) / 32768
        rate = file.getframerate()
    return np.asarray(resample_poly(samples, RATE, rate))


def tone(frequency: float, length: int, rng: np.random.Generator) -> Array:
    """Return `length` normalised samples of a harmonic tone with a random spectrum and noise."""
    harmonics = np.arange(1, 1 + min(20, int(RATE / 2 / frequency)))
    decay = rng.uniform(0.0, 1.0)
    amplitudes = rng.uniform(0.1, 1.0, len(harmonics)) * harmonics**-decay
    phases = rng.uniform(0, 2 * np.pi, len(harmonics))
    time = np.arange(length) / RATE
    waves = np.sin(2 * np.pi * frequency * np.outer(harmonics, time) + phases[:, None])
    sound = amplitudes @ waves
    loudness = sound.std() * rng.uniform(0.05, 0.7)
    sound = sound + rng.normal(0, loudness, length)
    return np.asarray((sound - sound.mean()) / sound.std(), np.float32)
