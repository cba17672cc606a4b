"""Weights that stay in their files: one mapping per file, read a few rows at a time.

`onnx_ir.ExternalTensor` maps the whole file once per weight, which costs a file descriptor each
(many systems allow a process 1024), and its pages stay resident until the weight is dropped. Here
the weights of a file share one mapping, whose pages are given back to the system as reading
proceeds: they stay in the page cache, so that a second look costs little.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

RESIDENT_BYTES = 1 << 24
"""Pages are given back once this much was looked at."""
CHUNK_BYTES = 1 << 22
"""Weights that are computed are written in pieces of about this size."""

Rows = Callable[[int, int], NDArray[Any]]
"""Elements start : stop along the first axis."""


class Mappings:
    """The mapped files of one model: PyTorch writes large ones with a file for each weight."""

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []
        self._touched = 0

    def add(self, mapping: mmap.mmap) -> None:
        self._maps.append(mapping)

    def look(self, size: int) -> None:
        """So many bytes are about to be read: all pages are given back if these get too many."""
        self._touched += size
        if self._touched > RESIDENT_BYTES:
            self._give_back()
            self._touched = size

    def _give_back(self) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows; views stay valid, and read again
            for mapping in self._maps:
                mapping.madvise(mmap.MADV_DONTNEED)


class MappedFile:
    """A file's bytes, mapped read-only on first use."""

    def __init__(self, path: Path, mappings: Mappings) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        self._mappings = mappings

    def view(self, dtype: np.dtype[Any], offset: int, count: int) -> NDArray[Any]:
        """`count` numbers from `offset` on; they are read when they are looked at."""
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._mappings.add(self._map)
        self._mappings.look(count * dtype.itemsize)
        return np.frombuffer(self._map, dtype, count, offset)


def mapped(tensor: ir.ExternalTensor, file: MappedFile) -> ir.LazyTensor:
    """The same weight, read through a shared mapping."""
    dtype, shape, offset = tensor.dtype, tensor.shape, tensor.offset or 0

    def read() -> ir.TensorProtocol:
        if not tensor.size:
            return ir.Tensor(np.empty(shape.numpy(), dtype.numpy()), dtype=dtype, name=tensor.name)
        if dtype.bitwidth < 8:
            packed = file.view(np.dtype(np.uint8), offset, tensor.nbytes)
            return ir.PackedTensor(packed, dtype, shape=shape, name=tensor.name)
        weights = file.view(np.dtype(dtype.numpy()).newbyteorder("<"), offset, tensor.size)
        return ir.Tensor(weights.reshape(shape.numpy()), dtype=dtype, name=tensor.name)

    return ir.LazyTensor(
        read,
        dtype,
        shape,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


class ComputedTensor(ir.LazyTensor):
    """A weight that is computed from another when it is written, a few rows at a time."""

    def __init__(self, rows: Rows, dtype: ir.DataType, shape: ir.Shape, name: str | None) -> None:
        super().__init__(self._whole, dtype, shape, name=name)
        self._rows = rows

    def _whole(self) -> ir.TensorProtocol:
        return ir.Tensor(self._rows(0, self.shape.numpy()[0]), dtype=self.dtype, name=self.name)

    def tofile(self, file: IO[bytes]) -> None:
        """Write the raw bytes."""
        if self.dtype.bitwidth < 8:  # packed: rows don't end at bytes
            file.write(self.tobytes())
            return
        count = self.shape.numpy()[0]
        step = max(1, CHUNK_BYTES * count // max(self.nbytes, 1))
        for start in range(0, count, step):
            rows = self._rows(start, min(start + step, count))
            file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)
