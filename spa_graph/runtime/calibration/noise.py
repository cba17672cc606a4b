"""Structured noise that stands in for natural images and sounds.

Networks trained on procedural images alone see a good part of what networks trained on photographs
see (Baradad et al., "Learning to See by Looking at Noise", NeurIPS 2021, arXiv 2106.05963): dead
leaves, which have the edges and the occlusion of scenes, and noise with the spectrum of natural
images, |frequency|^-a. To these come gradients with edges, and strokes on a plain ground, as in
text and drawings.

An image is `(channels, height, width)` in [0, 1]; a sound is `(channels, length)` of mean 0 and
deviation 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from spa_graph.runtime.calibration.wanted import Array

Rng = np.random.Generator
ImageMaker = Callable[[tuple[int, int, int], Rng], Array]


# --- images --------------------------------------------------------------------------------------


def dead_leaves(shape: tuple[int, int, int], rng: Rng) -> Array:
    """Opaque disks and rectangles over one another, their radii r distributed as r^-3."""
    channels, height, width = shape
    image = np.empty(shape, np.float32)
    image[:] = _color(channels, rng)[:, None, None]
    side = max(height, width)
    smallest, largest = max(side / 40, 1.0), side / 2
    rows, columns = np.ogrid[:height, :width]
    radii = _power_law(smallest, largest, int(rng.integers(40, 120)), rng)
    for radius in radii.tolist():
        top, left = rng.uniform(0, height), rng.uniform(0, width)
        box = (_span(top, radius, height), _span(left, radius, width))
        y, x = rows[box[0]] - top, columns[:, box[1]] - left
        if rng.random() < 0.5:
            inside = y**2 + x**2 < radius**2
        else:
            angle, aspect = rng.uniform(0, np.pi), rng.uniform(0.2, 0.7)
            across = np.abs(np.cos(angle) * y + np.sin(angle) * x)
            along = np.abs(np.cos(angle) * x - np.sin(angle) * y)
            inside = (across < aspect * radius) & (along < 0.7 * radius)
        image[:, box[0], box[1]][:, inside] = _color(channels, rng)[:, None]
    grain = spectral(shape, rng) - np.float32(0.5)
    return np.clip(_blurred(image) + np.float32(rng.uniform(0, 0.3)) * grain, 0, 1)


def spectral(shape: tuple[int, int, int], rng: Rng) -> Array:
    """Noise of spectrum |frequency|^-a with a random in [0.5, 2], the channels correlated."""
    channels, height, width = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    gray, *chroma = (
        _filtered(rng.standard_normal((height, width)), frequency ** -rng.uniform(0.5, 2))
        for _ in range(1 + (channels if channels > 1 else 0))
    )
    amount = rng.uniform(0, 0.6)
    planes = [gray + amount * plane for plane in chroma] or [gray]
    image = np.stack(planes[:channels]) if channels > 1 else gray[None]
    contrast, brightness = rng.uniform(0.1, 0.3), rng.uniform(0.3, 0.7)
    return np.clip(brightness + contrast * image, 0, 1).astype(np.float32)


def gradients(shape: tuple[int, int, int], rng: Rng) -> Array:
    """Smooth ramps between random colours, cut by a few straight edges."""
    channels, height, width = shape
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    image = np.zeros(shape, np.float32)
    region = np.zeros((height, width), int)
    for _ in range(int(rng.integers(0, 4))):
        angle, side = rng.uniform(0, 2 * np.pi), max(height, width)
        distance = np.cos(angle) * (columns - rng.uniform(0, width))
        distance += np.sin(angle) * (rows - rng.uniform(0, height))
        region = 2 * region + (distance > rng.uniform(-0.1, 0.1) * side)
    for label in np.unique(region):
        angle = rng.uniform(0, 2 * np.pi)
        ramp = np.cos(angle) * columns / width + np.sin(angle) * rows / height
        ramp = (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-6)
        start, stop = (_color(channels, rng)[:, None] for _ in range(2))
        inside = region == label
        image[:, inside] = start + (stop - start) * ramp[inside]
    return _blurred(image)


def strokes(shape: tuple[int, int, int], rng: Rng) -> Array:
    """Bent lines of one colour on a ground of another, in a row as letters are, a bit noisy."""
    channels, height, width = shape
    ground, ink = _color(channels, rng), _color(channels, rng)
    if np.abs(ground - ink).mean() < 0.3:
        ink = (ground < 0.5).astype(np.float32)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    size = min(height, width) * rng.uniform(0.3, 0.9)
    thickness = max(size * rng.uniform(0.03, 0.12), 0.7)
    middle = rng.uniform(0.4, 0.6) * height
    cover = np.zeros((height, width), np.float32)
    for left in np.arange(-0.2 * size, width, size * rng.uniform(0.5, 1.0)):
        for _ in range(int(rng.integers(2, 5))):
            cover = np.maximum(cover, _stroke(rows, columns, middle, left, size, thickness, rng))
    image = ground[:, None, None] + (ink - ground)[:, None, None] * cover
    noise = rng.standard_normal(shape) * rng.uniform(0, 0.1)
    return np.clip(image + noise, 0, 1).astype(np.float32)


def _stroke(
    rows: Array,
    columns: Array,
    middle: float,
    left: float,
    size: float,
    thickness: float,
    rng: Rng,
) -> Array:
    """How much each pixel is covered by a piece of a line or of a circle within a square."""
    y, x = rows - middle, columns - left - size / 2
    box = (np.abs(y) < size / 2) & (np.abs(x) < size / 2)
    if rng.random() < 0.4:
        radius = size * rng.uniform(0.15, 0.4)
        distance = np.abs(np.hypot(y - rng.uniform(-0.2, 0.2) * size, x) - radius)
    else:
        angle = rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)])
        shift = rng.uniform(-0.4, 0.4) * size
        distance = np.abs(np.cos(angle) * x + np.sin(angle) * y - shift)
    return np.clip(thickness - distance + 0.5, 0, 1) * box


def _power_law(smallest: float, largest: float, count: int, rng: Rng) -> Array:
    """Numbers r with density proportional to r^-3, the largest first."""
    ends = smallest**-2.0, max(largest, smallest) ** -2.0
    return np.sort((ends[0] + rng.random(count) * (ends[1] - ends[0])) ** -0.5)[::-1]


def _span(centre: float, radius: float, size: int) -> slice:
    return slice(max(int(centre - radius), 0), min(int(centre + radius) + 2, size))


def _color(channels: int, rng: Rng) -> Array:
    """A random colour; like those of things, most are rather gray."""
    gray = rng.uniform(0, 1)
    chroma = rng.uniform(-0.5, 0.5, channels) * rng.beta(1, 2)
    return np.clip(gray + chroma, 0, 1).astype(np.float32)


def _blurred(image: Array) -> Array:
    """Averaged over 2 x 2 pixels, since no camera sees perfectly sharp edges."""
    padded = np.pad(image, ((0, 0), (0, 1), (0, 1)), mode="edge")
    down = padded[:, 1:] + padded[:, :-1]
    return (down[:, :, 1:] + down[:, :, :-1]) / 4


def _filtered(noise: Array, gain: Array) -> Array:
    """Noise with its spectrum multiplied, of mean 0 and deviation 1."""
    shaped = np.fft.irfft2(np.fft.rfft2(noise) * gain, noise.shape)
    return (shaped - shaped.mean()) / max(float(shaped.std()), 1e-12)


IMAGES: Mapping[str, ImageMaker] = {
    "dead-leaves": dead_leaves,
    "spectral": spectral,
    "gradients": gradients,
    "strokes": strokes,
}


# --- sounds --------------------------------------------------------------------------------------


def sound(shape: tuple[int, int], rng: Rng) -> Array:
    """Harmonic tones with changing loudness in coloured noise, of mean 0 and deviation 1."""
    channels, length = shape
    made = np.empty(shape)
    for channel in range(channels):
        noise = colored(length, rng.uniform(0, 1.5), rng)
        tone = _tone(length, rng)
        made[channel] = tone * rng.beta(0.7, 0.7) + noise * rng.uniform(0.05, 1)
    made -= made.mean(1, keepdims=True)
    return (made / np.maximum(made.std(1, keepdims=True), 1e-12)).astype(np.float32)


def _tone(length: int, rng: Rng) -> Array:
    """A tone of up to 20 harmonics; its base lies between 4 periods and 1/13 of the rate."""
    base = np.exp(rng.uniform(np.log(min(4 / length, 0.02)), np.log(1 / 13)))
    harmonics = np.arange(1, 1 + min(20, max(int(0.5 / base), 1)))
    loudness = rng.uniform(0.1, 1, len(harmonics)) * harmonics ** -rng.uniform(0, 1.5)
    phases = rng.uniform(0, 2 * np.pi, len(harmonics))
    waves = np.sin(2 * np.pi * np.outer(harmonics * base, np.arange(length)) + phases[:, None])
    tone = loudness @ waves
    slow = np.interp(np.arange(length), np.linspace(0, length, 6), rng.uniform(0.2, 1, 6))
    return tone * slow / max(float(tone.std()), 1e-12)


def colored(length: int, exponent: float, rng: Rng) -> Array:
    """Noise of spectrum frequency^-exponent, of mean 0 and deviation 1."""
    frequency = np.fft.rfftfreq(length)
    frequency[0] = np.inf
    shaped = np.fft.irfft(np.fft.rfft(rng.standard_normal(length)) * frequency**-exponent, length)
    return (shaped - shaped.mean()) / max(float(shaped.std()), 1e-12)


def texture(shape: tuple[int, ...], rng: Rng) -> Array:
    """Smooth noise of mean 0 and deviation 1 along the last two axes: spectrograms, features."""
    *outer, height, width = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    gain = frequency ** -rng.uniform(0, 1.5)
    planes = [
        _filtered(rng.standard_normal((height, width)), gain) for _ in range(int(np.prod(outer)))
    ]
    return np.stack(planes).reshape(shape).astype(np.float32)
