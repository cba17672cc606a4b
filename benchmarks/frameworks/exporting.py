"""What the export scripts share: which networks to write, where to, and what became of each.

Each script runs in an environment of its own framework (`requirements-*.txt`), without spa-prune:

    python benchmarks/frameworks/export_keras.py FOLDER [NAME ...] [--small]

It writes NAME.onnx for each network, and a line for each in FOLDER/exports.jsonl. With `--small`
networks are as narrow as their builders allow: these are the fixtures in tests/frameworks.

Scripts named `train_*.py` do the same with networks that they train first, on the digits that
`python -m benchmarks.frameworks.table digits FOLDER` puts there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DIGITS = "digits.npz"
CLASSES = 10
Export = Callable[[Path, bool], None]
"""Writes a network to a path; the flag asks for a small one."""


def main(
    framework: str,
    networks: Mapping[str, Export],
    packages: Sequence[str],
    *,
    task: str | None = None,
) -> None:
    """Export the networks that the command line names, all if none is named.

    Args:
        networks: what writes each, by name.
        packages: whose versions are kept.
        task: the data that the networks are trained on.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(networks)}")
    parser.add_argument("--small", action="store_true", help="as narrow as the builders allow")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    versions = {package: metadata.version(package) for package in packages}
    for name in arguments.names or networks:
        path = arguments.folder / f"{name}.onnx"
        record = {"framework": framework, "name": name, "versions": versions}
        if task:
            record["task"] = task
        record |= _attempt(networks[name], path, arguments.small)
        print(json.dumps(record), flush=True)
        with (arguments.folder / "exports.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")


def _attempt(export: Export, path: Path, small: bool) -> dict[str, object]:
    """Run one export; a failure is a result like any other."""
    start = time.perf_counter()
    try:
        export(path, small)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return {"status": "not exportable", "reason": reason[:500]}
    seconds = round(time.perf_counter() - start, 1)
    return {"status": "ok", "seconds": seconds, "bytes": path.stat().st_size}


def training_digits(path: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images (n, 28, 28) and labels (n,) to train the network on that goes to a path."""
    with np.load(path.with_name(DIGITS)) as file:
        return file["training_images"], file["training_labels"]
