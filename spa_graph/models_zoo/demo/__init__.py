"""The demo network: a ResNet-20 trained on real MNIST digits, with 1000 held-out digits.

    >>> model_path().name
    'resnet20_mnist.onnx'
    >>> images, labels = load_heldout()
    >>> images.shape, labels.shape
    ((1000, 1, 28, 28), (1000,))

`train.py` made both files; this module needs numpy, and ONNX Runtime only for `accuracy`.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["accuracy", "load_heldout", "model_path"]

MODEL_FILE = Path(__file__).with_name("resnet20_mnist.onnx")
HELDOUT_FILE = Path(__file__).with_name("heldout.npz")

FloatArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.int64]


def model_path() -> Path:
    """The trained network: input `image` (N, 1, 28, 28), output `logits` (N, 10)."""
    return MODEL_FILE


def load_heldout(path: Path = HELDOUT_FILE) -> tuple[FloatArray, LabelArray]:
    """The 1000 digits that the network never saw, 100 of each class.

    Returns normalised images, float32 (1000, 1, 28, 28), and labels, int64 (1000,).
    """
    with np.load(path) as file:
        scaled = file["images"][:, None].astype(np.float32) / np.float32(255)
        labels: LabelArray = file["labels"]
        images: FloatArray = (scaled - file["mean"]) / file["std"]
    return images, labels


def accuracy(
    model: InferenceSession | str | PathLike[str],
    images: FloatArray | None = None,
    labels: LabelArray | None = None,
    batch_size: int = 250,
) -> float:
    """The share of digits that `model` (a session or a file) names right, in 0..1.

    Without `images` and `labels` the held-out digits are used.

        >>> accuracy(model_path()) >= 0.985
        True

    Raises:
        ValueError: one of `images` and `labels` is missing, or their lengths differ.

    """
    if images is None and labels is None:
        images, labels = load_heldout()
    if images is None or labels is None or len(images) != len(labels):
        raise ValueError("accuracy needs as many images as labels, or neither")
    session = open_session(model) if isinstance(model, (str, PathLike)) else model
    name = session.get_inputs()[0].name
    right = 0
    for start in range(0, len(labels), batch_size):
        part = slice(start, start + batch_size)
        logits = np.asarray(session.run(None, {name: images[part]})[0])
        right += int((logits.argmax(axis=1) == labels[part]).sum())
    return right / len(labels)


def open_session(path: str | PathLike[str]) -> InferenceSession:
    """A CPU session of the file; imported here, so that the paths cost no ONNX Runtime."""
    from onnxruntime import InferenceSession

    return InferenceSession(str(Path(path)), providers=["CPUExecutionProvider"])
