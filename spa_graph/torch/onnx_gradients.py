"""Gradients of ONNX networks: the analysed model as a module, data by the names of its inputs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spa_graph.errors import OptionError
from spa_graph.frontends.torch.calls import Call
from spa_graph.graph import Graph
from spa_graph.passes.importance.differential import FromGradients
from spa_graph.passes.network import Analysis
from spa_graph.passes.options import Options
from spa_graph.passes.pipeline import NetworkWithout, chosen_criterion
from spa_graph.runtime.calibration.wanted import check_shape, convert, wanted, warn_unscaled
from spa_graph.runtime.inputs import random_inputs
from spa_graph.torch.gradients import Differentiated, Gradients
from spa_graph.torch.objective import make_objective
from spa_graph.torch.onnx_module import OnnxModule

BATCH = 32
Arrays = Mapping[str, NDArray[Any]]


def network(analysis: Analysis, options: Options) -> NetworkWithout:
    """What `passes.pipeline.rank` takes gradients from.

    Raises:
        ModelError: the network has an operator that torch doesn't run.
        OptionError: the data can't be read, or doesn't fit the network.
    """
    criterion = chosen_criterion(options)
    assert isinstance(criterion, FromGradients)
    objective = None
    if criterion.needs_loss:
        data = batches(options.data, analysis.graph)
        objective = make_objective(data, options.loss, options.samples)
    module = OnnxModule(analysis.model, graph=analysis.graph)
    example = {name: _tensor(each) for name, each in random_inputs(analysis.graph).items()}
    found = Differentiated(module, analysis.coupling, module.watched, Call((), example))
    return partial(Gradients, found, objective, seed=options.seed)


def batches(data: Any, graph: Graph) -> Any:
    """Batches of (inputs by name, targets).

    Args:
        data: a .npz file or a mapping, with an array for each input and one more for the targets;
            anything else is taken for an iterable of batches.

    Raises:
        OptionError: it can't be read, or an array is missing or doesn't fit.
    """
    given = in_memory(data)
    return list(cut(given, graph)) if isinstance(given, Mapping) else given


def in_memory(data: Any) -> Any:
    """The arrays of a file by name; other data as it is.

    Raises:
        OptionError: the file can't be read.
    """
    return _read(Path(data)) if isinstance(data, str | os.PathLike) else data


def _read(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except OSError as error:
        raise OptionError(f"cannot read --data {path}: {error.strerror or error}") from error
    except Exception as error:  # what zip and numpy raise for files that are none of theirs
        raise OptionError(
            f"--data {path} is no .npz file of plain arrays: {type(error).__name__}"
        ) from error


def cut(
    arrays: Arrays, graph: Graph, order: NDArray[np.int64] | None = None
) -> Iterator[tuple[dict[str, Any], Any]]:
    """Arrays as batches; `order` is that of the samples.

    Raises:
        OptionError: an array is missing or doesn't fit.
    """
    missing = [name for name in graph.inputs if name not in arrays]
    others = [name for name in arrays if name not in graph.inputs]
    if missing or len(others) != 1:
        raise OptionError(
            f"--data must hold an array for each input ({', '.join(graph.inputs)}) and one for "
            f"the targets; it holds {', '.join(sorted(arrays)) or 'nothing'}"
        )
    sizes = {name: len(each) if each.ndim else 0 for name, each in arrays.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sorted(sizes.items()))
        raise OptionError(f"the arrays of --data have different numbers of samples: {listed}")
    wants = wanted(graph)
    for want in wants:
        if want.axis == 0 and arrays[want.name].ndim != len(want.shape):
            check_shape(want, arrays[want.name].shape, "--data")
        warn_unscaled(want, [arrays[want.name]], "--data")
    order = np.arange(sizes[others[0]]) if order is None else order
    for start in range(0, len(order), BATCH):
        own = order[start : start + BATCH]
        given = {
            want.name: _tensor(convert(want, arrays[want.name][own], "--data")) for want in wants
        }
        yield given, _targets(arrays[others[0]][own])


def _targets(array: NDArray[Any]) -> torch.Tensor:
    """Classes as torch's losses take them, and all else in single precision."""
    return _tensor(array.astype(np.float32 if array.dtype.kind == "f" else np.int64))


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.array(array))
