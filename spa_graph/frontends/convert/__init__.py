"""Files of other frameworks -> ONNX, by the exporter that each framework keeps.

Each format is a module here that runs as a process of its own: what it imports (TensorFlow, torch)
stays out of this one, and so does what it prints. A module is called with the source and the ONNX
file to write.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from spa_graph.errors import ModelError
from spa_graph.frontends.onnx import checker, files


@dataclass(frozen=True, slots=True)
class Format:
    """A format that is converted.

    Attributes:
        name: as people call it.
        module: the module of this package that converts it.
        needs: the packages that it imports.
        extra: the extra of spa-prune that installs them.
    """

    name: str
    module: str
    needs: tuple[str, ...]
    extra: str


_TENSORFLOW = ("tensorflow", ("tensorflow", "tf2onnx"), "tensorflow")
KERAS = Format("Keras file", *_TENSORFLOW)
SAVED_MODEL = Format("SavedModel", *_TENSORFLOW)
TFLITE = Format("TFLite file", *_TENSORFLOW)
EXPORTED = Format("torch.export file", "exported_program", ("torch", "onnxscript"), "torch")
TORCHSCRIPT = Format("TorchScript file", "torchscript", ("torch",), "torch")
SUFFIXES = {".keras": KERAS, ".tflite": TFLITE, ".pt2": EXPORTED}
PICKLES = (".pt", ".pth", ".ts", ".torchscript")


def format_of(path: Path) -> Format | None:
    """The format of a file or folder that must be converted; None for ONNX and what isn't known.

    Raises:
        ModelError: a file of torch that holds no network.
    """
    if path.is_dir() and (path / "saved_model.pb").is_file():
        return SAVED_MODEL
    suffix = path.suffix.lower()
    if not path.is_file() or suffix not in PICKLES or not zipfile.is_zipfile(path):
        return SUFFIXES.get(suffix) if path.is_file() else None
    with zipfile.ZipFile(path) as archive:
        parts = {tuple(name.split("/")[1:2]) for name in archive.namelist()}
    if ("code",) in parts:
        return TORCHSCRIPT
    raise ModelError(
        f"{path} holds weights, or a module that can't be read without its Python code: export the "
        "network with torch.onnx.export, or torch.export.save to a .pt2 file"
    )


def convert(
    source: Path,
    kind: Format,
    target: Path,
    shapes: Iterable[tuple[str, tuple[int, ...]]] = (),
) -> None:
    """Write a network of another framework as ONNX; complete or not at all.

    Args:
        shapes: sizes of inputs, for formats that don't hold them.

    Raises:
        ModelError: the exporter isn't installed, the target exists, or the exporter fails.
    """
    missing = [name for name in kind.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"{source} is a {kind.name}; converting it needs {' and '.join(missing)}: "
            f"pip install 'spa-prune[{kind.extra}]'"
        )
    if target.exists():
        raise ModelError(
            f"{source} is converted to {target}, which exists: give that file, or move it away"
        )
    with files.staged(target) as draft:
        module = f"spa_graph.frontends.convert.{kind.module}"
        line = [sys.executable, "-W", "ignore", "-m", module, str(source), str(draft)]
        if kind is TORCHSCRIPT:
            line += [f"{name}={','.join(map(str, sizes))}" for name, sizes in shapes]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode or not draft.is_file():
            lines = done.stderr.strip().splitlines() or ["it says nothing"]
            raise ModelError(f"{source}: the exporter of {kind.name}s failed: {lines[-1]}")
        complaint = checker.complaint(draft)
        if complaint is not None:  # an operator that the exporter doesn't know, and left as it is
            raise ModelError(f"{source}: what the exporter wrote is not valid ONNX: {complaint}")
