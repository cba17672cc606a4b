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
from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from spa_graph.errors import ModelError
from spa_graph.frontends.formats import Format
from spa_graph.frontends.onnx import checker, files

STAMP = "spa-prune.converted_from"
"""A property of a converted file; see `_stamp`."""


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
        made = _stamped(target)
        if made == stamp:
            return False
        why = "was not made from it" if made is None else f"was made {_otherwise(target, kind)}"
        raise ModelError(
            f"{source} would be converted to {target}, which exists, and {why}: move or rename one "
            "of them"
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


def _otherwise(target: Path, kind: Format) -> str:
    """How a conversion that is there differs from the one that is wanted, as far as it tells."""
    if not kind.unsized:
        return "from another content"
    sizes = []
    for value in onnx.load(target, load_external_data=False).graph.input:
        dims = ",".join(str(dim.dim_value) for dim in value.type.tensor_type.shape.dim)
        sizes.append(f"--input-shape {value.name}={dims}")
    return f"from another content, or by other options than {' '.join(sizes)}"
