"""Where features wait between the pieces of a run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from spa_graph.runtime.verify import Array

CHUNK = 8 << 20
"""Bytes of a file that are mapped at a time: what was read or written is in memory until then."""


class Store:
    """Arrays by (value, batch): in memory up to a limit, beyond it in files of a folder."""

    def __init__(self, limit: int, folder: Path) -> None:
        self._limit = limit
        self._folder = Path(tempfile.mkdtemp(dir=folder))
        self._arrays: dict[str, dict[int, Array | Path]] = {}
        self._bytes = 0
        self._files = 0

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def names(self) -> list[str]:
        return list(self._arrays)

    def put(self, name: str, batch: int, array: Array) -> None:
        """Keep an array, at another place if it is too much for memory."""
        kept: Array | Path = array
        if self._bytes + array.nbytes > self._limit and not array.dtype.hasobject:  # strings
            kept = self._new_file()
            np.save(kept, array)
        else:
            self._bytes += array.nbytes
        self._arrays.setdefault(name, {})[batch] = kept

    def _new_file(self) -> Path:
        self._files += 1
        return self._folder / f"{self._files}.npy"

    def create(self, name: str, batch: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        """A file for an array that comes part by part."""
        path = self._new_file()
        np.lib.format.open_memmap(path, "w+", dtype, shape)
        self._arrays.setdefault(name, {})[batch] = path

    def write(self, name: str, batch: int, axis: int, part: slice, array: Array) -> None:
        """Fill elements of an axis of an array that was created."""
        path = self._arrays[name][batch]
        assert isinstance(path, Path)
        for rows in _rows(array):
            whole = np.lib.format.open_memmap(path, "r+")
            _part(whole, axis, part, rows)[...] = array[rows]

    def read(self, name: str, batch: int, axis: int, part: slice) -> Array:
        """A copy of elements of an axis; the others don't stay in memory."""
        whole = self.get(name, batch)
        shape = list(whole.shape)
        shape[axis] = len(range(*part.indices(shape[axis])))
        found = np.empty(shape, whole.dtype)
        for rows in _rows(found):
            found[rows] = _part(self.get(name, batch), axis, part, rows)
        return found

    def get(self, name: str, batch: int) -> Array:
        kept = self._arrays[name][batch]
        return np.load(kept, mmap_mode="r") if isinstance(kept, Path) else kept

    def drop(self, name: str) -> None:
        for kept in self._arrays.pop(name).values():
            if isinstance(kept, Path):
                kept.unlink()
            else:
                self._bytes -= kept.nbytes


def _rows(array: Array) -> Iterator[slice]:
    """Parts of the first axis of about `CHUNK` bytes."""
    step = max(CHUNK * len(array) // max(array.nbytes, 1), 1)
    yield from (slice(start, start + step) for start in range(0, len(array), step))


def _part(whole: Array, axis: int, part: slice, rows: slice) -> Array:
    """Elements of an axis, and of these some of the first axis."""
    return whole[rows][(slice(None),) * axis + (part,)] if axis else whole[part][rows]
