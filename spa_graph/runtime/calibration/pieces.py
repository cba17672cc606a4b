"""Samples that are arrays: in memory, mapped from files, or set aside as they arrive."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from spa_graph.errors import OptionError
from spa_graph.graph import Graph
from spa_graph.runtime.calibration.batches import Calibration, Group, Indices, batch_size, in_units
from spa_graph.runtime.calibration.wanted import (
    Array,
    Wanted,
    by_name,
    check_shape,
    convert,
    warn_unscaled,
)
from spa_graph.runtime.inputs import Feeds

IN_MEMORY = 2**28
"""Arrays that only pass by are kept in memory up to this many bytes in all, then on disk."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Some samples of one shape, one array for each input.

    Args:
        arrays: by input; the samples lie along the input's sample axis.
        same: inputs whose array is the same for every run.
        whole: whether these samples make one run and are never cut or joined.
    """

    arrays: Mapping[str, Array]
    same: frozenset[str]
    count: int
    whole: bool = False

    def signature(self, wants: Sequence[Wanted]) -> tuple[Any, ...]:
        """What must be equal for samples of two pieces to share a run."""
        shapes = []
        for want in wants:
            shape = list(self.arrays[want.name].shape)
            if want.name not in self.same and want.axis is not None:
                del shape[want.axis]
            shapes.append(tuple(shape))
        same = tuple(self.arrays[name].tobytes() for name in sorted(self.same))
        return (*shapes, same, id(self) if self.whole or self.ordered(wants) else None)

    def ordered(self, wants: Sequence[Wanted]) -> bool:
        """Whether the samples may be the steps of a sequence: a state is given to start from."""
        return any(
            want.floating and want.name in self.same and self.arrays[want.name].ndim > 1
            for want in wants
        )


def piece(given: Mapping[str, Any], wants: tuple[Wanted, ...], where: str) -> Piece:
    """Check one array for each input, and find how many samples they are.

    The samples' number is the longest sample axis; an array that doesn't have as many there, but
    what a run takes, is the same for every run.

    Raises:
        OptionError: a name, type or shape is wrong, or the numbers of samples differ.
    """
    arrays: dict[str, Array] = {}
    for name, (want, value) in by_name(given, wants, where).items():
        array = as_array(value, want, where)
        as_given = array.shape
        if want.axis is not None and array.ndim == len(want.shape) - 1:
            array = np.expand_dims(array, want.axis)  # a single sample
        check_shape(want, array.shape, where, as_given)
        arrays[name] = array
    lengths = {
        want.name: arrays[want.name].shape[want.axis] for want in wants if want.axis is not None
    }
    count = max(lengths.values(), default=1)
    same = frozenset(want.name for want in wants if lengths.get(want.name) != count)
    for want in wants:
        if want.name in same and want.axis is not None:
            _check_same(want, lengths, count, where)
    return Piece(arrays, same, count)


def _check_same(want: Wanted, lengths: Mapping[str, int], count: int, where: str) -> None:
    """An array that isn't one per sample must be what one run takes."""
    if lengths[want.name] != (want.batch or 1):
        other = next(name for name, length in lengths.items() if length == count)
        raise OptionError(
            f"{where}: `{want.name}` has {lengths[want.name]} samples, `{other}` has {count}; "
            "give equally many"
        )


def stacked(given: Mapping[str, Any], wants: tuple[Wanted, ...], where: str) -> list[Piece] | None:
    """Runs of a network of fixed sizes that are stacked along an axis of their own, or None."""
    arrays = {
        name: as_array(value, want, where)
        for name, (want, value) in by_name(given, wants, where).items()
    }
    fixed = all(want.axis is None or want.batch is not None for want in wants)
    if not fixed or any(arrays[want.name].ndim != len(want.shape) + 1 for want in wants):
        return None
    runs = min(array.shape[0] for array in arrays.values())
    if any(array.shape[0] != runs for array in arrays.values()):
        raise OptionError(f"{where}: the inputs have unequal numbers of samples")
    for want in wants:
        check_shape(want, arrays[want.name].shape[1:], where, arrays[want.name].shape)
    return [
        piece({name: array[run] for name, array in arrays.items()}, wants, where)
        for run in range(runs)
    ]


def as_array(value: Any, want: Wanted, where: str) -> Array:
    """A NumPy array of anything that can be one: a tensor of any framework, nested lists.

    Raises:
        OptionError: it can't be one.
    """
    if isinstance(value, np.ndarray):
        return value
    for step in ("detach", "cpu"):  # a torch.Tensor that has a gradient or lies on a GPU
        value = getattr(value, step, lambda same=value: same)()
    try:
        return np.asarray(value)
    except Exception as error:  # whatever a foreign __array__ raises
        raise OptionError(
            f"{where}: what is given for `{want.name}`, a {type(value).__name__}, is no array: "
            f"{' '.join(str(error).split())}"
        ) from error


class Pieces:
    """Reads samples of many pieces by their number over all of them."""

    def __init__(self, pieces: Sequence[Piece], wants: tuple[Wanted, ...], where: str) -> None:
        self._pieces, self._wants, self._where = pieces, wants, where
        self._starts = np.cumsum([0, *(each.count for each in pieces)])

    def read(self, indices: Indices) -> Feeds:
        """Feeds for one run."""
        return {
            want.name: convert(want, self.stored(want, indices), self._where)
            for want in self._wants
        }

    def stored(self, want: Wanted, indices: Indices) -> Array:
        """What one run gets for an input, in the type that it was given in."""
        owners = np.searchsorted(self._starts, indices, side="right") - 1
        first = self._pieces[int(owners[0])]
        if want.axis is None or want.name in first.same:
            return first.arrays[want.name]
        runs = np.flatnonzero(np.diff(owners, prepend=-1, append=-1))
        return np.concatenate(
            [
                self._rows(want, int(owners[start]), indices[start:stop])
                for start, stop in pairwise(runs.tolist())
            ],
            axis=want.axis,
        )

    def _rows(self, want: Wanted, owner: int, indices: Indices) -> Array:
        rows = indices - self._starts[owner]
        return np.take(self._pieces[owner].arrays[want.name], rows, axis=want.axis)

    def groups(self) -> dict[tuple[Any, ...], tuple[Piece, Indices]]:
        """The samples of each signature, and a piece that has it."""
        found: dict[tuple[Any, ...], tuple[Piece, list[Indices]]] = {}
        for each, start in zip(self._pieces, self._starts[:-1], strict=True):
            key = each.signature(self._wants)
            found.setdefault(key, (each, []))[1].append(np.arange(start, start + each.count))
        return {key: (each, np.concatenate(parts)) for key, (each, parts) in found.items()}


def calibrate(
    pieces: Sequence[Piece],
    graph: Graph,
    wants: tuple[Wanted, ...],
    label: str,
    *,
    samples: int,
    seed: int,
    batch: int | None,
) -> Calibration:
    """Calibration of at most `samples` samples, a random choice if there are more."""
    reader = Pieces(pieces, wants, label)
    groups, unit = [], batch_size(graph, wants, batch)[1]
    samples = max(samples, unit)
    chosen = _chosen(pieces, samples, seed)
    for each, members in reader.groups().values():
        ordered = each.ordered(wants)
        growth = _growth(each, wants)
        size, _ = batch_size(graph, wants, batch, growth=growth, ordered=ordered)
        indices = members[:samples] if ordered else members[chosen[members]]
        if each.whole:
            groups.append(Group(members, each.count, ordered))
        elif len(indices):
            groups.append(Group(in_units(indices, unit), size, ordered))
    for want in wants:
        if any(each.arrays[want.name].dtype.kind in "iu" for each in pieces):
            used = (reader.stored(want, run) for group in groups for run in group.batches())
            label += warn_unscaled(want, used, label)
    return Calibration(label, "data", reader, tuple(groups), unit, seed)


def _chosen(pieces: Sequence[Piece], samples: int, seed: int) -> Any:
    """Which samples are used: spread over all, since files are often sorted by class."""
    count = sum(each.count for each in pieces)
    chosen = np.zeros(count, bool)
    chosen[np.random.default_rng(seed).permutation(count)[:samples]] = True
    return chosen


def _growth(each: Piece, wants: Sequence[Wanted]) -> float:
    """How much larger a sample is than at nominal sizes."""
    ratios = [
        float(np.prod(each.arrays[want.name].shape, dtype=float))
        / each.count
        * want.nominal[want.axis]
        / max(float(np.prod(want.nominal, dtype=float)), 1.0)
        for want in wants
        if want.axis is not None and want.name not in each.same
    ]
    return max(ratios, default=1.0)


class Shelf:
    """Sets arrays aside, in memory as long as they are few, then in a file that vanishes."""

    def __init__(self) -> None:
        self._free = IN_MEMORY

    def keep(self, array: Array) -> Array:
        """The same numbers, in a place of their own."""
        if array.nbytes <= self._free:
            self._free -= array.nbytes
            return np.array(array)
        with tempfile.TemporaryFile() as file:
            mapped = np.memmap(file, array.dtype, "w+", shape=array.shape)
        mapped[...] = array
        return mapped
