"""Calibration data: samples that show what a network's layers see.

    calibration("calib.npz", graph)            # arrays by input name; or one for the only input
    calibration("photos/", graph, preprocess="imagenet")
    calibration("package.module:function", graph)
    calibration("data-free", graph)            # made from the network alone
    calibration(loader, graph)                 # arrays, dicts, tuples, iterables of batches

Whatever it is, it is checked against the network's inputs, and comes in batches that the network
takes, the same ones each time.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx_ir as ir

from spa_graph.errors import ModelError, OptionError
from spa_graph.graph import Graph
from spa_graph.runtime.calibration import images, sources
from spa_graph.runtime.calibration.batches import (
    Calibration,
    Group,
    batch_size,
    in_units,
)
from spa_graph.runtime.calibration.images import Preprocess
from spa_graph.runtime.calibration.matching import Probe
from spa_graph.runtime.calibration.pieces import calibrate
from spa_graph.runtime.calibration.prober import Prober
from spa_graph.runtime.calibration.synthetic import data_free, draws_tokens, method_named
from spa_graph.runtime.calibration.wanted import Wanted, wanted
from spa_graph.runtime.imported import FUNCTION, imported

__all__ = [
    "MATCHED",
    "Calibration",
    "Preprocess",
    "Probe",
    "Prober",
    "best_calibration",
    "calibration",
    "to_be_matched",
]

DATA_FREE = "data-free"
MATCHED = f"{DATA_FREE}:matched"


def calibration(
    spec: object,
    graph: Graph,
    *,
    samples: int = 256,
    seed: int = 0,
    preprocess: str | Preprocess | None = None,
    batch: int | None = None,
    model: ir.Model | None = None,
    probe: Probe | None = None,
) -> Calibration:
    """Read, find or make calibration samples for a network.

    Args:
        spec: a path to .npz or .npy, a folder of images, `package.module:function`, `data-free`
            (or `data-free:gaussian`, `data-free:uniform`, MATCHED); from Python also arrays by
            input name, one array, a function, or an iterable of batches or samples.
        samples: use at most so many; of more, a random choice (of an iterable, the first).
        seed: of every random choice.
        preprocess: how images become inputs; only for a folder.
        batch: samples per run, if the network's batch isn't fixed; chosen by size if not given.
        model: the network; tells the names of its free axes.
        probe: runs the network and returns named values, so that made-up samples can be fitted to
            it; see `Prober`.

    Raises:
        OptionError: the samples can't be read or don't fit the network.
        ModelError: the network has an input that is no tensor of numbers.
    """
    if samples < 1:
        raise OptionError(f"--samples must be at least 1, not {samples}")
    check_source(spec, preprocess)
    wants = wanted(graph, model)
    if isinstance(spec, str | os.PathLike):
        path = Path(spec)
        if path.is_dir():
            return _folder(path, graph, wants, preprocess, samples, seed, batch)
    if isinstance(spec, str) and spec.partition(":")[0] == DATA_FREE:
        method = spec.partition(":")[2]
        return data_free(graph, wants, method, samples=samples, seed=seed, batch=batch, probe=probe)
    if isinstance(spec, str | os.PathLike):
        text = os.fspath(spec)
        if path.suffix in (".npz", ".npy"):
            pieces, label = sources.from_file(path, wants), path.name
        else:
            pieces, label = sources.from_function(text, wants, samples, seed), text
    elif callable(spec) and not hasattr(spec, "__array__"):
        label = getattr(spec, "__name__", type(spec).__name__)
        pieces = sources.from_callable(spec, wants, label, samples, seed)
    else:
        label = f"a {type(spec).__name__}"
        pieces = sources.from_object(spec, wants, label, samples)
    return calibrate(pieces, graph, wants, label, samples=samples, seed=seed, batch=batch)


def to_be_matched(spec: object) -> bool:
    """Whether samples are to be moved by gradients, which `spa_graph/torch/matched.py` does:
    `calibration` makes what it starts from."""
    return isinstance(spec, str) and spec == MATCHED


def best_calibration(graph: Graph) -> str:
    """What to refit to if one has nothing but the network: data-free, or no less than a FILE."""
    with suppress(ModelError):  # nothing can be made up for it either
        return "FILE" if draws_tokens(graph, wanted(graph)) else DATA_FREE
    return "FILE"


def check_source(spec: object, preprocess: str | Preprocess | None = None) -> None:
    """All that can be said against calibration data before the network is read.

    Raises:
        OptionError: there is no such file or function, or `preprocess` can't be used.
    """
    named = isinstance(spec, str | os.PathLike)
    if named and not str(spec):
        raise OptionError("--calibrate names nothing: it is empty")
    folder = named and Path(str(spec)).is_dir()
    if preprocess is not None and not folder:
        raise OptionError("--preprocess is for a folder of images; the calibration data is none")
    if isinstance(preprocess, str):
        Preprocess.parse(preprocess)
    if folder:
        images.check(Path(str(spec)))
    if not named or folder:
        return
    text = str(spec)
    kind, _, method = text.partition(":")
    if kind == DATA_FREE:
        method_named(method)
    elif Path(text).suffix in (".npz", ".npy"):
        sources.check_file(Path(text))
    elif FUNCTION.fullmatch(text):
        imported(text)
    else:
        raise OptionError(_unknown(Path(text)))


def _unknown(path: Path) -> str:
    forms = "a .npz or .npy file, a folder of images, package.module:function or data-free"
    return f"{path} is not {forms}" if path.exists() else f"no such file: {path}; give {forms}"


def _folder(
    folder: Path,
    graph: Graph,
    wants: tuple[Wanted, ...],
    preprocess: str | Preprocess | None,
    samples: int,
    seed: int,
    batch: int | None,
) -> Calibration:
    """Samples that are the images in a folder; they feed the only input that takes images."""
    steps = Preprocess.parse(preprocess) if isinstance(preprocess, str) else preprocess
    takers = [want for want in wants if images.image_shape(want) is not None]
    if len(wants) != 1 or not takers:
        inputs = ", ".join(f"`{want.name}` {want}" for want in wants)
        raise OptionError(
            f"{folder}: a folder of images is for a network whose only input is an image; "
            f"this one's are {inputs}: give a .npz or a function"
        )
    paths = images.find(folder, samples, seed)
    reader = images.Images(paths, takers[0], steps or Preprocess())
    size, unit = batch_size(graph, wants, batch)
    members = in_units(np.arange(len(paths)), unit)
    said = f"{folder.name}/, {preprocess}" if isinstance(preprocess, str) else f"{folder.name}/"
    if steps is None:
        said += f", {reader.default}"
    return Calibration(said, "data", reader, (Group(members, size),), unit, seed)
