"""How accurate networks are that were trained in their own framework, before and after pruning.

Images are grey, (n, 28, 28); what a framework makes of them, (n, 1, 28, 28), (n, 28, 28, 1) or
(n, 784), has the same order in memory, so that the sizes of a network's input tell all.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.frameworks.exporting import DIGITS
from benchmarks.frameworks.measured import prune
from spa_graph.models_zoo.demo.digits import (
    find_digits,
    pixel_statistics,
    read_digits,
    stratified_split,
)
from spa_graph.runtime.sessions import Session, open_session, run

Array = NDArray[Any]
BUDGETS = ("0.7", "0.5")
SAMPLES = "{samples}"
REPAIRS = {
    "plain": (),
    "samples": ("--calibrate", SAMPLES),
    "data-free": ("--calibrate", "data-free"),
}
"""Options of the command; SAMPLES stands for a file of what the network was trained on."""
HELDOUT_PER_CLASS = 100
BATCH = 250
SEED = 0


def write_digits(folder: Path) -> None:
    """What networks are trained on (4000 digits), and what they are judged by (1000 others)."""
    training, heldout = stratified_split(read_digits(find_digits()), HELDOUT_PER_CLASS, SEED)
    mean, std = pixel_statistics(training)
    arrays = {}
    for name, part in (("training", training), ("heldout", heldout)):
        arrays[f"{name}_images"] = ((part.images / 255 - mean) / std).astype(np.float32)
        arrays[f"{name}_labels"] = part.labels
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / DIGITS, **arrays)


def accuracies(path: Path) -> dict[str, Any]:
    """The accuracy on held-out digits: of a file, and by budget and repair of what is left of it.

    Raises:
        PruningError: the command failed.
    """
    with np.load(path.with_name(DIGITS)) as file:
        images, labels = file["heldout_images"], file["heldout_labels"]
        training = file["training_images"]
    found: dict[str, Any] = {"dense": accuracy(open_session(path), images, labels)}
    with tempfile.TemporaryDirectory() as folder:
        samples, target = Path(folder) / "samples.npy", Path(folder) / "pruned.onnx"
        np.save(samples, as_input(open_session(path), training))
        for budget in BUDGETS:
            found[budget] = {}
            for repair, options in REPAIRS.items():
                given = (each.replace(SAMPLES, str(samples)) for each in options)
                prune(path, target, "--flops", budget, *given)
                found[budget][repair] = accuracy(open_session(target), images, labels)
    return found


def as_input(session: Session, images: Array) -> Array:
    """Images in the layout of a network's only input."""
    (taken,) = session.get_inputs()
    return images.reshape(len(images), *taken.shape[1:])


def accuracy(session: Session, images: Array, labels: Array) -> float:
    """The share of images that a network names right."""
    (taken,) = session.get_inputs()
    feeds = as_input(session, images)
    batch = taken.shape[0] if isinstance(taken.shape[0], int) else BATCH
    right = 0
    for start in range(0, len(feeds), batch):
        part = slice(start, start + batch)
        first = run(session, {taken.name: feeds[part]})[0]
        named = first if first.ndim == 1 else first.argmax(1)  # scikit-learn gives labels
        right += int((named == labels[part]).sum())
    return right / len(labels)
