"""Running a network in little more memory than its weights take, whatever its features need.

ONNX Runtime frees features as soon as they were read, but attention between the patches of a video
holds several at once that are each half as large as all weights. Such a network is run in pieces;
what one leaves for the next waits on disk. What a run needs is known from the shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from spa_graph.errors import ModelError
from spa_graph.frontends.onnx import files
from spa_graph.frontends.onnx.pieces import is_stored, reads
from spa_graph.frontends.onnx.weights import stored_tensor
from spa_graph.graph import Graph, Operator
from spa_graph.passes.statistics.runner import Runner
from spa_graph.runtime import heap
from spa_graph.runtime.sessions import Feeds, Session, open_session, run
from spa_graph.runtime.verify import Array

ROOM = 2
"""Features may need so many times the bytes of the weights at once ..."""
LEAST_ROOM = 192 << 20
"""... or so many bytes; a run that needs more is cut in pieces."""
COPIES = 4
"""How often a piece holds its weights: as a message, written, read, and in a session."""
Sizes = Mapping[str, int]


class Features:
    """What the features of a network need, in bytes, at the sizes of one of the graph's samples."""

    def __init__(self, graph: Graph, sample: int) -> None:
        self._graph = graph
        self.sizes = dict(_feature_sizes(graph, sample))
        weights = sum(parameter.nbytes for parameter in graph.parameters.values())
        self.room = max(ROOM * weights, LEAST_ROOM)

    @property
    def at_once(self) -> int:
        """The most that is needed at a time, if a value is freed once it was read."""
        graph = self._graph
        last = {name: operator.index for operator in graph.operators for name in operator.inputs}
        last |= dict.fromkeys((*graph.inputs, *graph.outputs), len(graph.operators))
        held = most = self._of(graph.inputs)
        for operator in graph.operators:
            held += self._of(operator.outputs)
            most = max(most, held)
            held -= self._of(n for n in _touches(operator) if last.get(n, -1) <= operator.index)
        return most

    def _of(self, names: Iterable[str]) -> int:
        return sum(self.sizes.get(name, 0) for name in names)


def _touches(operator: Operator) -> set[str]:
    return {*operator.inputs, *operator.outputs}


def _feature_sizes(graph: Graph, sample: int) -> Iterator[tuple[str, int]]:
    """Bytes of every feature; at a third size, which wasn't looked at, the larger of two."""
    for name, shape in graph.shapes.items():
        if name not in graph.parameters:
            sizes = [math.prod(extent[which] for extent in shape) for which in (0, 1)]
            item = graph.dtypes[name].itemsize if name in graph.dtypes else 4
            yield name, item * (sizes[sample] if sample < 2 else max(sizes))


class Network:
    """A file that is run, as a whole or in pieces.

    Args:
        graph: tells what features need; that of a larger network serves too.
        folder: where features may wait.
        plain: see `open_session`.
    """

    def __init__(self, path: Path, graph: Graph, folder: Path, *, plain: bool = True) -> None:
        self._path, self._graph, self._folder = path, graph, folder
        self._plain = plain
        self._session: Session | None = None

    def run(self, feeds: Feeds) -> list[Array]:
        """All outputs.

        Raises:
            ModelError: the network can't be run on these inputs.
        """
        features = Features(self._graph, _sample(self._graph, feeds))
        if features.at_once > features.room:
            with suppress(ModelError):  # sequences can't wait on disk; or it fails as a whole too
                return self._in_pieces(feeds, features)
        if self._session is None:
            self._session = open_session(self._path, plain=self._plain)
        return run(self._session, feeds)

    def _in_pieces(self, feeds: Feeds, features: Features) -> list[Array]:
        heap.trim()
        room = features.room // 2
        model = files.load(self._path)
        walk = Runner(model, [feeds], room // 8, self._folder, plain=self._plain)
        for piece in pieces(model.graph, features.sizes, room):
            made = [value for node in piece.nodes for value in node.outputs if _read(value)]
            number = math.ceil(piece.touched / max(room, 1))
            walk.advance([str(value.name) for value in made], tiles=number)
        outputs = model.graph.outputs
        walk.advance([str(value.name) for value in outputs if not is_stored(value)])
        return [
            stored_tensor(value).numpy()
            if is_stored(value)
            else np.array(walk.value(str(value.name), 0))
            for value in outputs
        ]


def _sample(graph: Graph, feeds: Feeds) -> int:
    """Which of the graph's samples has these shapes; behind the last if none has."""
    shapes = {name: array.shape for name, array in feeds.items()}
    return graph.samples.index(shapes) if shapes in graph.samples else len(graph.samples)


def _read(value: ir.Value) -> bool:
    return bool(value.name) and (bool(value.uses()) or value.is_graph_output())


class Piece(NamedTuple):
    """Nodes that are run at once, and how many bytes they read and write."""

    nodes: list[ir.Node]
    touched: int


def pieces(graph: ir.Graph, sizes: Sizes, room: int) -> Iterator[Piece]:
    """The nodes in order, cut so that what those of a piece read and write fits.

    Args:
        sizes: bytes of features; one that is not known is taken for as large as what it is made of.
        room: bytes; a single node may need more.
    """
    known = dict(sizes)
    nodes: list[ir.Node] = []
    touched: dict[str, int] = {}
    for node in graph:
        own = _touched(node, known)
        if nodes and sum((touched | own).values()) > room:
            yield Piece(nodes, sum(touched.values()))
            nodes, touched = [], {}
        nodes.append(node)
        touched |= own
    yield Piece(nodes, sum(touched.values()))


def _touched(node: ir.Node, known: dict[str, int]) -> dict[str, int]:
    """The bytes of each value that a node reads or writes; of new values they become known."""
    found: dict[str, int] = {}
    for value in filter(lambda value: value.name, reads(node)):
        tensor = value.const_value if is_stored(value) else None
        name = str(value.name)
        found[name] = known.get(name, 0) if tensor is None else COPIES * int(tensor.nbytes)
    largest = max((known.get(name, 0) for name in found), default=0)
    for value in node.outputs:
        found[str(value.name)] = known.setdefault(str(value.name), largest)
    return found
