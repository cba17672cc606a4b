"""What each input of a network takes, and whether given arrays are that.

Samples lie along one axis of an input, the *sample axis*: the batch axis, wherever it stands
(`[layers, batch, width]` for a recurrent state), or axis 0 of a network whose sizes are all fixed.
An input without one, such as an initial state of fixed size or a sampling rate, is the same for
every run.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spa_graph.errors import ModelError, OptionError, SpaWarning
from spa_graph.graph import Graph

Array = NDArray[Any]

_BATCH = re.compile(r"n|b|bs|bsz|batch.*|.*batch(_?size)?", re.IGNORECASE)
"""How exporters name a batch axis."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one input takes.

    shape: the size of each axis, None where it is free.
    nominal: sizes that the network accepts.
    axis: the sample axis, or None.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    nominal: tuple[int, ...]
    axis: int | None

    @property
    def batch(self) -> int | None:
        """How many samples a run takes, or None if it takes any number."""
        return None if self.axis is None else self.shape[self.axis]

    @property
    def floating(self) -> bool:
        """Whether it takes real numbers; bfloat16 is none of NumPy's own types."""
        return self.dtype.kind not in "biu"

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join('?' if n is None else str(n) for n in self.shape)}]"


def wanted(graph: Graph, model: ir.Model | None = None) -> tuple[Wanted, ...]:
    """What the inputs of a network take.

    Args:
        model: tells which axes are free, and their names; else the graph's samples show it.

    Raises:
        ModelError: an input is no tensor of numbers.
    """
    for name in graph.inputs:
        if name not in graph.dtypes or name not in graph.samples[0]:
            raise ModelError(f"input `{name}` is not a tensor of numbers; it can't be calibrated")
    labels = {name: _labels(graph, name, _declared(model, name)) for name in graph.inputs}
    axes = _sample_axes(graph, labels)
    return tuple(
        Wanted(
            name=name,
            dtype=graph.dtypes[name],
            shape=tuple(
                size if label is None else None
                for size, label in zip(graph.samples[0][name], labels[name], strict=True)
            ),
            nominal=graph.samples[0][name],
            axis=axes[name],
        )
        for name in graph.inputs
    )


def with_batch(
    shapes: Mapping[str, tuple[int, ...]], wants: tuple[Wanted, ...], batch: int
) -> dict[str, tuple[int, ...]]:
    """Sizes of the inputs with another number of samples.

    Raises:
        OptionError: the network doesn't take so many.
    """
    changed = dict(shapes)
    for want in wants:
        if want.axis is not None:
            if want.batch not in (None, batch):
                raise OptionError(f"--batch {batch}: input `{want.name}` {want} has a fixed batch")
            sizes = list(shapes[want.name])
            sizes[want.axis] = batch
            changed[want.name] = tuple(sizes)
    if changed == shapes and not any(want.axis is not None for want in wants):
        raise OptionError(f"--batch {batch}: no input has a batch axis")
    return changed


Label = str | tuple[int, ...]
"""What tells free axes apart: the name in the file, or the sizes in the graph's samples."""


def _declared(model: ir.Model | None, name: str) -> ir.Shape | None:
    if model is None:
        return None
    return next((value.shape for value in model.graph.inputs if value.name == name), None)


def _labels(graph: Graph, name: str, declared: ir.Shape | None) -> tuple[Label | None, ...]:
    """For each axis of an input what it is known by if it is free, else None."""
    sizes = list(zip(*(sample[name] for sample in graph.samples), strict=True))
    if declared is None or len(declared) != len(sizes):
        return tuple(seen if len(set(seen)) > 1 else None for seen in sizes)
    labels: list[Label | None] = []
    for dim, seen in zip(declared, sizes, strict=True):
        fixed = isinstance(dim, int) and dim > 0
        labels.append(None if fixed else (getattr(dim, "value", None) or seen))
    return tuple(labels)


def _sample_axes(
    graph: Graph, labels: Mapping[str, tuple[Label | None, ...]]
) -> dict[str, int | None]:
    """The sample axis of each input; Keras' exporter gives that of each input another name."""
    free = [label for name in graph.inputs for label in labels[name] if label is not None]
    named = [label for label in free if isinstance(label, str) and _BATCH.fullmatch(label)]
    leading = [labels[name][0] for name in graph.inputs if labels[name]]
    batch = next(iter(named), next((label for label in leading if label is not None), None))
    if batch is not None:
        found = {name: own.index(batch) if batch in own else None for name, own in labels.items()}
        return found | _named_otherwise(graph, labels, found)
    shapes = graph.samples[0]
    principal = max(graph.inputs, key=lambda name: (len(shapes[name]), np.prod(shapes[name])))
    fixed = shapes[principal][:1]
    return {name: 0 if fixed and shapes[name][:1] == fixed else None for name in graph.inputs}


def _named_otherwise(
    graph: Graph, labels: Mapping[str, tuple[Label | None, ...]], found: Mapping[str, int | None]
) -> dict[str, int]:
    """Free first axes of inputs without a sample axis that are as long as the others' always is."""
    sizes = next(
        [sample[name][axis] for sample in graph.samples]
        for name, axis in found.items()
        if axis is not None
    )
    return {
        name: 0
        for name, own in labels.items()
        if found[name] is None and own and own[0] is not None
        if [sample[name][0] for sample in graph.samples] == sizes
    }


# --- arrays --------------------------------------------------------------------------------------


def check_shape(
    want: Wanted, shape: tuple[int, ...], where: str, given: tuple[int, ...] | None = None
) -> None:
    """Whether an array along whose sample axis any number of samples lie has a right shape.

    Args:
        given: the shape that the array was given in, if this isn't it: of several runs, or of one
            sample.

    Raises:
        OptionError: it hasn't; the text shows both shapes.
    """
    fits = len(shape) == len(want.shape) and all(
        size is None or size == got or axis == want.axis
        for axis, (size, got) in enumerate(zip(want.shape, shape, strict=True))
    )
    told = list(shape if given is None else given)
    if not fits:
        free = "" if want.batch is None else f", with any number of samples along axis {want.axis}"
        raise OptionError(
            f"{where}: `{want.name}` has shape {told}, but the network's input is {want}{free}"
        )
    if 0 in shape:
        raise OptionError(f"{where}: `{want.name}` is empty, its shape is {told}")


def convert(want: Wanted, array: Array, where: str) -> Array:
    """An array's numbers in the type of an input.

    Raises:
        OptionError: they can't be: text, NaN, fractions for integers, numbers out of range.
    """
    if array.dtype.kind not in "biuf" and not _is_extended_float(array.dtype):
        raise OptionError(
            f"{where}: `{want.name}` holds {array.dtype}, but the network's input is {want}"
        )
    if array.dtype.kind not in "biu" and np.isnan(array).any():
        raise OptionError(f"{where}: `{want.name}` has NaN; leave out or repair these samples")
    if array.dtype == want.dtype:
        return np.ascontiguousarray(array)
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(want.dtype)
    if not want.floating and not np.array_equal(converted, array):
        raise OptionError(
            f"{where}: `{want.name}` is {array.dtype} and has numbers that are no {want.dtype}, "
            f"but the network's input is {want}"
        )
    return converted


def warn_unscaled(want: Wanted, arrays: Iterable[Array], where: str) -> str:
    """Warn of images and sounds as they are stored, for an input of real numbers.

    Nobody knows whether the network scales them itself. Integers of more than two bytes are taken
    for numbers as they are meant, and so is what lies between -1 and 1, such as a mask.

    Returns:
        What to add to a label: empty if there is nothing to be said.
    """
    if not want.floating:
        return ""
    stored = [each for each in arrays if each.dtype.kind in "iu" and each.dtype.itemsize <= 2]
    low = min((int(each.min()) for each in stored), default=0)
    high = max((int(each.max()) for each in stored), default=0)
    if low >= -1 and high <= 1:
        return ""
    dtype = stored[0].dtype
    warnings.warn(
        f"{where}: `{want.name}` is {dtype} from {low} to {high}, and the network gets these "
        f"numbers as they are; if it takes scaled ones, store those, as in "
        f"(x / {np.iinfo(dtype).max}).astype('float32'); --preprocess scales images in a folder",
        SpaWarning,
        stacklevel=2,
    )
    return f", `{want.name}` as stored: {dtype} from {low} to {high}"


def _is_extended_float(dtype: np.dtype[Any]) -> bool:
    """Whether a type that NumPy doesn't know is bfloat16 or an 8-bit float."""
    return dtype.kind == "V" and "float" in dtype.name


def by_name(
    given: Mapping[str, Any], wants: tuple[Wanted, ...], where: str
) -> dict[str, tuple[Wanted, Any]]:
    """What was given for each input.

    Raises:
        OptionError: an input is missing, or a name is not an input's.
    """
    names = ", ".join(f"`{want.name}`" for want in wants)
    for name in given:
        if name not in {want.name for want in wants}:
            raise OptionError(f"{where}: the network has no input `{name}`; its inputs are {names}")
    for want in wants:
        if want.name not in given:
            raise OptionError(f"{where}: nothing for input `{want.name}`; the inputs are {names}")
    return {want.name: (want, given[want.name]) for want in wants}


def only_input(wants: tuple[Wanted, ...], where: str) -> Wanted:
    """The input that a lone array feeds: the only one, or the only one of real numbers.

    Raises:
        OptionError: there are several.
    """
    floating = [want for want in wants if want.floating]
    for candidates in (wants, floating):
        if len(candidates) == 1:
            return candidates[0]
    names = ", ".join(f"`{want.name}`" for want in wants)
    raise OptionError(f"{where}: one array, but the network has the inputs {names}; name them")
