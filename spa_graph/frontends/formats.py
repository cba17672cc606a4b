"""Files that hold networks and aren't ONNX: what they are, told by their names and first bytes."""

from __future__ import annotations

import mmap
import zipfile
from dataclasses import dataclass
from pathlib import Path

from spa_graph.errors import ModelError


@dataclass(frozen=True, slots=True)
class Format:
    """A format that is converted, see `frontends/convert`.

    Attributes:
        name: as people call it.
        module: the module of `frontends.convert` that converts it.
        needs: the packages that it imports.
        extra: the extra of spa-prune that installs them.
        unsized: whether the module must be told the sizes of inputs.
        marks: what its files hold near their beginning, one of these: (place, bytes).
    """

    name: str
    module: str
    needs: tuple[str, ...]
    extra: str
    unsized: bool = False
    marks: tuple[tuple[int, bytes], ...] = ()

    def marked(self, path: Path) -> bool:
        """Whether a file begins as one of this format does, whatever it is called."""
        with path.open("rb") as file:
            start = file.read(16)
        return any(start.startswith(mark, place) for place, mark in self.marks)


_TENSORFLOW = ("tensorflow", ("tensorflow", "tf2onnx"), "tensorflow")
_ZIP, _HDF5 = (0, b"PK"), (0, b"\x89HDF\r\n\x1a\n")
GRAPH_FILE = "saved_model.pb"
KERAS = Format("Keras file", *_TENSORFLOW, marks=(_ZIP, _HDF5))
SAVED_MODEL = Format("SavedModel", *_TENSORFLOW)
TFLITE = Format("TFLite file", *_TENSORFLOW, marks=((4, b"TFL3"),))
EXPORTED = Format(
    "torch.export file", "exported_program", ("torch", "onnxscript"), "torch", marks=(_ZIP,)
)
TORCHSCRIPT = Format("TorchScript file", "torchscript", ("torch",), "torch", unsized=True)
SUFFIXES = {
    ".keras": KERAS, ".h5": KERAS, ".hdf5": KERAS, ".tflite": TFLITE, ".pt2": EXPORTED,
}  # fmt: skip
PICKLES = (".pt", ".pth", ".ts", ".torchscript")

_FROM_TORCH = "export the network with torch.onnx.export, or torch.export.save to a .pt2 file"
_FROM_KERAS = "load them into the network in Keras, and save that: model.save('NAME.keras')"
_WEIGHTS = "it holds weights without their network: "
OTHERS = {
    **dict.fromkeys((*PICKLES, ".ckpt", ".safetensors"), _WEIGHTS + _FROM_TORCH),
    **dict.fromkeys(
        (".pkl", ".pickle", ".joblib"),
        "a pickle can't be read without its Python code: export a model of scikit-learn by "
        "`skl2onnx.to_onnx`, one of PyTorch by `torch.onnx.export`",
    ),
    ".pb": "convert a TensorFlow graph by `python -m tf2onnx.convert --graphdef`",
    ".pdmodel": "convert a network of PaddlePaddle by `paddle.onnx.export`, or paddle2onnx",
    ".ort": "give the ONNX file that ONNX Runtime's own format was made from",
    **dict.fromkeys((".mlmodel", ".mlpackage", ".engine", ".trt", ".xml"),
                    "give the file that this one was made from"),
}  # fmt: skip
"""What to do with files that can't be converted here, by their names' ends."""


def format_of(path: Path) -> Format | None:
    """The format of a file or folder that must be converted; None for ONNX and what isn't known.

    Raises:
        ModelError: an empty file, or one of torch or Keras that holds no network.
    """
    if path.is_dir():
        return SAVED_MODEL if (path / GRAPH_FILE).is_file() else None
    if not path.is_file():
        return None
    if not path.stat().st_size:
        raise ModelError(f"{path} is empty; check the download or export")
    suffix = path.suffix.lower()
    if suffix in PICKLES and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                parts = {tuple(name.split("/")[1:2]) for name in archive.namelist()}
        except zipfile.BadZipFile as error:
            raise ModelError(
                f"{path} is damaged ({error}); check the download or export"
            ) from error
        if ("code",) in parts:
            return TORCHSCRIPT
        raise ModelError(
            f"{path} holds weights, or a module that can't be read without its Python code: "
            + _FROM_TORCH
        )
    kind = SUFFIXES.get(suffix)
    if kind is None or not kind.marked(path):
        return None
    if suffix in (".h5", ".hdf5") and not _describes_network(path):
        raise ModelError(f"{path} holds no Keras network, perhaps its weights alone: {_FROM_KERAS}")
    return kind


def _describes_network(path: Path) -> bool:
    """Whether Keras wrote the layers into an HDF5 file, too: as an attribute of this name."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(b"model_config") >= 0


def as_onnx(path: Path) -> Path:
    """The ONNX file that a file or folder is converted to: NAME.onnx beside it."""
    if path.is_file():
        return path.with_suffix(".onnx")
    place = path if path.name not in ("", "..") else path.resolve()  # the folder that one is in
    return place.parent / f"{path.resolve().name}.onnx"


def instead(path: Path) -> str | None:
    """What to do with a file that isn't ONNX after all, as far as its name tells.

    Raises:
        ModelError: it holds no network.
    """
    kind = format_of(path)
    if kind is None:
        return _not_converted(path)
    name = as_onnx(path).name
    return f"it is a {kind.name}, which `spa-prune inspect {path}` converts to {name}: give that"


def _not_converted(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if path.is_dir():
        empty = not any(path.iterdir())
        what = "an empty folder" if empty else f"a folder without {GRAPH_FILE}"
        return f"it is {what}; give an ONNX file, or the folder of a SavedModel"
    if path.name == GRAPH_FILE:
        return f"it is a part of a SavedModel: give its folder, {path.parent}"
    if suffix in SUFFIXES and path.is_file():
        kind = SUFFIXES[suffix].name
        return f"it is named as a {kind}, and is none either; check the download or export"
    return OTHERS.get(suffix)
