"""Files of other frameworks -> ONNX, by the exporter that each framework keeps.

Each format is a module here that runs as a process of its own: what it imports (TensorFlow, torch)
stays out of this one, and so does what it prints. A module is called with the source and the ONNX
file to write.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

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
        unsized: whether the module must be told the sizes of inputs.
    """

    name: str
    module: str
    needs: tuple[str, ...]
    extra: str
    unsized: bool = False


_TENSORFLOW = ("tensorflow", ("tensorflow", "tf2onnx"), "tensorflow")
KERAS = Format("Keras file", *_TENSORFLOW)
SAVED_MODEL = Format("SavedModel", *_TENSORFLOW)
TFLITE = Format("TFLite file", *_TENSORFLOW)
EXPORTED = Format("torch.export file", "exported_program", ("torch", "onnxscript"), "torch")
TORCHSCRIPT = Format("TorchScript file", "torchscript", ("torch",), "torch", unsized=True)
SUFFIXES = {".keras": KERAS, ".tflite": TFLITE, ".pt2": EXPORTED}
STAMP = "spa-prune.converted_from"
"""A property of a converted file; see `_stamp`."""
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
) -> bool:
    """Write a network of another framework as ONNX, unless that was done before.

    Args:
        target: written completely or not at all.
        shapes: sizes of inputs, for formats that don't hold them.

    Returns:
        Whether it was written now.

    Raises:
        ModelError: the exporter isn't installed, the target is another file, or the exporter fails.
    """
    given = [f"{name}={','.join(map(str, sizes))}" for name, sizes in shapes if kind.unsized]
    stamp = _stamp(source, given)
    if target.exists():
        if _stamped(target) == stamp:
            return False
        raise ModelError(
            f"{source} is converted to {target}, which exists: give that file, or move it away"
        )
    missing = [name for name in kind.needs if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"{source} is a {kind.name}; converting it needs {' and '.join(missing)}: "
            f"pip install 'spa-prune[{kind.extra}]'"
        )
    with files.staged(target) as draft:
        module = f"spa_graph.frontends.convert.{kind.module}"
        line = [sys.executable, "-W", "ignore", "-m", module, str(source), str(draft), *given]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode or not draft.is_file():
            lines = done.stderr.strip().splitlines() or ["it says nothing"]
            raise ModelError(f"{source}: the exporter of {kind.name}s failed: {lines[-1]}")
        complaint = checker.complaint(draft)
        if complaint is not None:  # an operator that the exporter doesn't know, and left as it is
            raise ModelError(f"{source}: what the exporter wrote is not valid ONNX: {complaint}")
        message = onnx.load(draft, load_external_data=False)
        message.metadata_props.add(key=STAMP, value=stamp)
        draft.write_bytes(message.SerializeToString())
    return True


def _stamp(source: Path, given: Sequence[str]) -> str:
    """What tells a conversion from that of another file: a digest of all that it was made from."""
    digest = hashlib.sha256(" ".join(given).encode())
    for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _stamped(target: Path) -> str | None:
    """The stamp of a conversion; None of any other file."""
    try:
        found = onnx.load(target, load_external_data=False).metadata_props
    except (OSError, DecodeError):
        return None
    return next((entry.value for entry in found if entry.key == STAMP), None)
