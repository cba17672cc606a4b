"""What the export scripts share: which networks to write, where to, and what became of each.

Each script runs in an environment of its own framework (`requirements-*.txt`), without spa-prune:

    python benchmarks/frameworks/export_keras.py FOLDER [NAME ...] [--small]

It writes NAME.onnx for each network, and a line for each in FOLDER/exports.jsonl. With `--small`
networks are as narrow as their builders allow: these are the fixtures in tests/frameworks.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

Export = Callable[[Path, bool], None]
"""Writes a network to a path; the flag asks for a small one."""


def main(framework: str, networks: Mapping[str, Export], packages: Sequence[str]) -> None:
    """Export the networks that the command line names, all if none is named."""
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
