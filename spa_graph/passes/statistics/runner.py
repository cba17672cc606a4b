"""Running a network piece by piece over all calibration data, computing nothing twice.

A layer of the pruned network can be repaired only when all before it is. So the network is run up
to the layers that come next, what they read is kept for every batch, and the run continues from
there with the repaired weights. Values that nobody needs any more are dropped; those that don't fit
in memory wait on disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from spa_graph.frontends.onnx.pieces import ancestors, is_stored, piece, reads
from spa_graph.runtime.sessions import Feeds, open_session, run
from spa_graph.runtime.verify import Array


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
        if self._bytes + array.nbytes > self._limit:
            kept = self._folder / f"{self._files}.npy"
            self._files += 1
            np.save(kept, array)
        else:
            self._bytes += array.nbytes
        self._arrays.setdefault(name, {})[batch] = kept

    def get(self, name: str, batch: int) -> Array:
        kept = self._arrays[name][batch]
        return np.load(kept, mmap_mode="r") if isinstance(kept, Path) else kept

    def drop(self, name: str) -> None:
        for kept in self._arrays.pop(name).values():
            if isinstance(kept, Path):
                kept.unlink()
            else:
                self._bytes -= kept.nbytes


class Runner:
    """One network on its way through calibration data.

    Args:
        limit: bytes of features that are kept in memory between pieces.
        folder: where others are kept.
        plain: see `open_session`.
    """

    def __init__(
        self,
        model: ir.Model,
        batches: Iterable[Feeds],
        limit: int,
        folder: Path,
        *,
        plain: bool = False,
    ) -> None:
        self.model = model
        self._plain = plain
        self.batches = 0
        self._todo = [node for node in model.graph if node.op_type != "Constant"]
        self._outputs = {value.name for value in model.graph.outputs}
        self.store = Store(limit, folder)
        for number, feeds in enumerate(batches):
            self.batches += 1
            for name, array in feeds.items():
                self.store.put(name, number, np.asarray(array))

    def value(self, name: str, batch: int) -> Array:
        """A value that `advance` computed and that is still needed."""
        return self.store.get(name, batch)

    def behind(self, nodes: Collection[int]) -> set[str]:
        """The values that depend on nodes, given by identity, that are still to run."""
        found: set[str] = set()
        for node in self._todo:
            if id(node) in nodes or any(value.name in found for value in reads(node)):
                found.update(value.name for value in node.outputs if value.name)
        return found

    def advance(self, wanted: Collection[str], keep: Collection[str] = ()) -> None:
        """Compute some values of every batch, from what is known.

        Args:
            keep: values that will be wanted later; they stay if they are computed on the way.
        """
        known = set(self.store.names())
        nodes = ancestors(self._todo, wanted, known)
        wanted = {*wanted, *keep}
        if nodes:
            self._run(nodes, wanted, known)
        self._forget(wanted)

    def _run(self, nodes: list[ir.Node], wanted: Collection[str], known: Collection[str]) -> None:
        done = set(map(id, nodes))
        self._todo = [node for node in self._todo if id(node) not in done]
        later = {value.name for node in self._todo for value in reads(node)} | self._outputs
        made = [value.name for node in nodes for value in node.outputs if value.name]
        outputs = [name for name in made if name in later or name in wanted]
        used = [v for node in nodes for v in reads(node) if v.name in known and not is_stored(v)]
        names = list(dict.fromkeys(str(value.name) for value in used))
        first = {name: self.store.get(name, 0) for name in names}
        kinds = {name: (array.dtype, array.ndim) for name, array in first.items()}
        session = open_session(piece(self.model, nodes, kinds, outputs), plain=self._plain)
        for batch in range(self.batches):
            feeds = {name: np.asarray(self.store.get(name, batch)) for name in names}
            for name, array in zip(outputs, run(session, feeds), strict=True):
                self.store.put(name, batch, array)

    def _forget(self, wanted: Iterable[str]) -> None:
        """Drop what no node will read any more."""
        needed = {value.name for node in self._todo for value in reads(node)} | {*wanted}
        for name in self.store.names():
            if name not in needed and name not in self._outputs:
                self.store.drop(name)
