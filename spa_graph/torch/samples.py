"""Calibration data as people have it for modules: what loaders yield, as arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor


def as_calibration(given: Any, inputs: Sequence[str]) -> Any:
    """Calibration data for the ONNX export of a module.

    Args:
        given: as `runtime.calibration` takes it, or tensors in the place of arrays. A batch may
            come with targets: (inputs, targets), where inputs are a tensor, a tuple of arguments or
            a mapping of named ones; or a mapping with more entries than there are inputs.
        inputs: the names of the inputs.
    """
    if isinstance(given, str | os.PathLike) or callable(given):
        return given
    if isinstance(given, Tensor | Mapping | tuple) or hasattr(given, "__array__"):
        return _batch(given, inputs)
    return Loader(given, inputs) if isinstance(given, Iterable) else given


class Loader:
    """The batches of a loader, as arrays."""

    def __init__(self, loader: Iterable[Any], inputs: Sequence[str]) -> None:
        self._loader, self._inputs = loader, inputs

    def __iter__(self) -> Iterator[Any]:
        return (_batch(batch, self._inputs) for batch in self._loader)


def _batch(batch: Any, inputs: Sequence[str]) -> Any:
    if isinstance(batch, Mapping):
        return {name: _array(value) for name, value in _by_input(batch, inputs).items()}
    if isinstance(batch, tuple | list):
        if batch and isinstance(batch[0], tuple | list | Mapping):
            return _batch(batch[0], inputs)  # the rest are targets
        return tuple(map(_array, batch))
    return _array(batch)


def _by_input(batch: Mapping[str, Any], inputs: Sequence[str]) -> Mapping[str, Any]:
    """The entries that inputs take: those of their names; where a mapping is one argument of
    `forward`, its entries are inputs called `<argument>_<entry>`."""
    if batch.keys() >= set(inputs):
        return {name: batch[name] for name in inputs}
    within = {name: [key for key in batch if name.endswith(f"_{key}")] for name in inputs}
    if all(len(keys) == 1 for keys in within.values()):
        return {name: batch[keys[0]] for name, keys in within.items()}
    return batch


def _array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
