"""Running a network piece by piece over all calibration data, computing nothing twice.

A layer of the pruned network can be repaired only when all before it is. So the network is run up
to the layers that come next, what they read is kept for every batch, and the run continues from
there with the repaired weights. Values that nobody needs any more are dropped; those that don't fit
in memory wait on disk.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from spa_graph.frontends.onnx.pieces import ancestors, is_stored, piece, reads
from spa_graph.frontends.onnx.tiles import Tiling, tilings
from spa_graph.frontends.onnx.weights import stored_tensor
from spa_graph.passes.statistics.store import Store
from spa_graph.runtime.sessions import Feeds, Session, open_session, run
from spa_graph.runtime.verify import Array


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

    def advance(self, wanted: Collection[str], keep: Collection[str] = (), tiles: int = 1) -> None:
        """Compute some values of every batch, from what is known.

        Args:
            keep: values that will be wanted later; they stay if they are computed on the way.
            tiles: if a single operator does it and can be run in so many tiles, it is.
        """
        known = set(self.store.names())
        nodes = ancestors(self._todo, wanted, known)
        wanted = {*wanted, *keep}
        if nodes:
            self._run(nodes, wanted, known, tiles)
        self._forget(wanted)

    def _run(
        self, nodes: list[ir.Node], wanted: Collection[str], known: Collection[str], tiles: int
    ) -> None:
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
            tiling = None
            if tiles > 1 and len(nodes) == 1:
                tiling = self._tiling(nodes[0], batch, tiles)
            if tiling is not None:
                self._run_in_tiles(session, nodes[0], batch, tiling, tiles)
                continue
            feeds = {name: np.asarray(self.store.get(name, batch)) for name in names}
            for name, array in zip(outputs, run(session, feeds), strict=True):
                self.store.put(name, batch, array)

    def _tiling(self, node: ir.Node, batch: int, tiles: int) -> Tiling | None:
        """The outermost axis of enough elements, or that of most; none for strings."""
        known = [value for value in reads(node) if not is_stored(value)]
        if any(self.store.get(str(value.name), batch).dtype.hasobject for value in known):
            return None
        shapes = [
            tuple(stored_tensor(value).shape.numpy())
            if is_stored(value)
            else self.store.get(str(value.name), batch).shape
            for value in reads(node)
        ]
        found = tilings(node, shapes)
        return max(found, key=lambda each: min(each.extent, tiles), default=None)

    def _run_in_tiles(
        self, session: Session, node: ir.Node, batch: int, tiling: Tiling, tiles: int
    ) -> None:
        """Run an operator on a few elements of an axis at a time."""
        step = math.ceil(tiling.extent / tiles)
        for start in range(0, tiling.extent, step):
            self._run_tile(session, node, batch, tiling, slice(start, start + step))

    def _run_tile(
        self, session: Session, node: ir.Node, batch: int, tiling: Tiling, part: slice
    ) -> None:
        feeds = {
            str(value.name): np.asarray(self.store.get(str(value.name), batch))
            if slot is None
            else self.store.read(str(value.name), batch, slot, part)
            for value, slot in zip(reads(node), tiling.slots, strict=True)
            if not is_stored(value)
        }
        (made,) = run(session, feeds)
        name = str(node.outputs[0].name)
        if part.start == 0:
            shape = list(made.shape)
            shape[tiling.axis] = tiling.extent
            self.store.create(name, batch, tuple(shape), made.dtype)
        self.store.write(name, batch, tiling.axis, part, made)

    def _forget(self, wanted: Iterable[str]) -> None:
        """Drop what no node will read any more."""
        needed = {value.name for node in self._todo for value in reads(node)} | {*wanted}
        for name in self.store.names():
            if name not in needed and name not in self._outputs:
                self.store.drop(name)
