"""magika standard_v3_3: the type of a file from its first and last bytes.

Weights: PyPI magika 1.0.3 (Apache-2.0).  tf2onnx export, opset 15: embedding as a MatMul with
one-hot bytes, Conv, LayerNorm in single operators, dense, 214 classes.  0.8 M parameters.

Data: files of this machine, the extension as label, 30 of each type.  Metric: accuracy.  The
score depends on the machine's files: compare within one run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

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
    fidelity,
    log_probabilities,
    package_file,
)

REQUIREMENT = "magika==1.0.3"
FOLDERS = ("/usr/lib", "/usr/share", "/usr/include")
PER_TYPE = 30
BLOCK, ENDS, PADDING = 4096, 1024, 256
SMALLEST = 64
# Bounds the walk: more files of one type add nothing.
MOST_PATHS = 20000
# Where a type's extension is not its name.
TYPES = {
    "c": "c", "cpp": "cpp", "csv": "csv", "css": "css", "deb": "deb", "el": "lisp", "gif": "gif",
    "go": "go", "gz": "gzip", "html": "html", "java": "java", "jpg": "jpeg", "js": "javascript",
    "json": "json", "lua": "lua", "m4": "m4", "md": "markdown", "npy": "npy", "o": "elf",
    "onnx": "onnx", "pdf": "pdf", "php": "php", "pl": "perl", "pm": "perl", "png": "png",
    "po": "po", "proto": "proto", "py": "python", "pyc": "pythonbytecode", "rb": "ruby",
    "rs": "rust", "rst": "rst", "sh": "shell", "so": "elf", "sql": "sql", "svg": "svg",
    "tex": "latex", "toml": "toml", "ts": "typescript", "ttf": "ttf", "wav": "wav", "whl": "zip",
    "xml": "xml", "yaml": "yaml", "yml": "yaml", "zip": "zip",
}  # fmt: skip


@cache
def _labels() -> tuple[str, ...]:
    """Names of the 214 classes, in the order of the outputs."""
    path = package_file(
        "magika", "models", "standard_v3_3", "config.min.json", requirement=REQUIREMENT
    )
    return tuple(json.loads(path.read_text())["target_labels_space"])


def _walk() -> Iterator[Path]:
    for folder in FOLDERS:
        for parent, folders, names in os.walk(folder):
            folders.sort()
            yield from (Path(parent, name) for name in sorted(names))


@cache
def _paths_by_type() -> dict[str, list[Path]]:
    """Return the files of the machine whose extension tells a type that magika knows."""
    known = set(_labels())
    found: dict[str, list[Path]] = {}
    for path in _walk():
        kind = TYPES.get(path.suffix[1:].lower())
        if kind in known and len(found.setdefault(kind, [])) < MOST_PATHS:
            found[kind].append(path)
    return dict(sorted(found.items()))


def _is_for_evaluation(features: Array) -> bool:
    """Split by content, so that copies of a file never fall on both sides."""
    return hashlib.sha256(features.tobytes()).digest()[0] % 2 == 0


def _read(path: Path) -> Array | None:
    """Return 2048 byte values of a file, 256 for padding; None where it can't be used.

    Layout as in the magika package: the first 1024 bytes padded behind, the last 1024 padded
    before, white space stripped at both ends of the file.
    """
    try:
        if path.is_symlink() or path.stat().st_size < SMALLEST:
            return None
        with path.open("rb") as file:
            first = file.read(BLOCK).lstrip()[:ENDS]
            file.seek(max(0, path.stat().st_size - BLOCK))
            last = file.read(BLOCK).rstrip()[-ENDS:]
    except OSError:
        return None
    features = np.full(2 * ENDS, PADDING, np.int32)
    features[: len(first)] = list(first)
    features[2 * ENDS - len(last) :] = list(last)
    return features


def _read_type(
    paths: list[Path], count: int, evaluation: bool, rng: np.random.Generator
) -> list[Array]:
    """Read up to `count` random files of one type from one side of the split."""
    chosen: list[Array] = []
    for index in rng.permutation(len(paths)):
        if len(chosen) == count:
            break
        features = _read(paths[index])
        if features is not None and _is_for_evaluation(features) == evaluation:
            chosen.append(features)
    return chosen


@cache
def _evaluation() -> tuple[Array, Array]:
    """Return ``(n, 2048)`` features and `n` label indices."""
    rng = evaluation_rng()
    features, labels = [], []
    for kind, paths in _paths_by_type().items():
        read = _read_type(paths, PER_TYPE, True, rng)
        features += read
        labels += [_labels().index(kind)] * len(read)
    return np.stack(features), np.array(labels)


def _measure(runner: Runner, dense: Runner | None) -> Score:
    features, labels = _evaluation()
    probabilities = runner.batched(features)
    score = {"accuracy": accuracy(probabilities.argmax(-1), labels)}
    if dense is not None:
        score |= fidelity(
            log_probabilities(probabilities), log_probabilities(dense.batched(features))
        )
    return score


def _sample(n: int, seed: int) -> Arrays:
    """Read equally many files of every type, repeating if the machine has too few."""
    rng = calibration_rng(seed)
    types = _paths_by_type()
    share = -(-n // len(types))
    pool = [
        features for paths in types.values() for features in _read_type(paths, share, False, rng)
    ]
    order = rng.permutation(len(pool))
    return {"bytes": np.stack([pool[order[i % len(pool)]] for i in range(n)])}


def _foreign(n: int, seed: int) -> Arrays:
    """Files of types that none of `TYPES` is."""
    others = [path for path in islice(_walk(), MOST_PATHS) if path.suffix[1:].lower() not in TYPES]
    found = []
    for index in calibration_rng(seed).permutation(len(others)):
        features = _read(others[index])
        if features is not None:
            found.append(features)
        if len(found) == n:
            break
    return {"bytes": np.stack([found[i % len(found)] for i in range(n)])}


MAGIKA = Trained(
    name="magika",
    requirement=REQUIREMENT,
    licence="Apache-2.0",
    metric="accuracy",
    build=copy_from_package(
        "magika", "models", "standard_v3_3", "model.onnx", requirement=REQUIREMENT
    ),
    measure=_measure,
    sample=_sample,
    foreign=_foreign,
)
