"""A network with sizes for its inputs, read for being run and not for being pruned."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from spa_graph.errors import OptionError
from spa_graph.frontends.onnx import files
from spa_graph.frontends.onnx.sizes import InputShapes, Key, free_inputs, keys, sums
from spa_graph.graph import Graph
from spa_graph.passes.canonicalize import canonicalize
from spa_graph.runtime.calibration.wanted import Wanted, wanted, with_batch
from spa_graph.runtime.inputs import Feeds, random_inputs

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A network's file and inputs.

    shapes: sizes of the inputs to run it with.
    """

    path: Path
    model: ir.Model
    graph: Graph
    wants: tuple[Wanted, ...]
    shapes: Shapes

    @property
    def batch(self) -> int:
        """How many samples a run takes."""
        sizes = [self.shapes[w.name][w.axis] for w in self.wants if w.axis is not None]
        return sizes[0] if sizes else 1

    @property
    def bytes(self) -> int:
        """The size of the file and of those that hold its weights."""
        return files.size(self.model)

    def random_feeds(self, seed: int = 0) -> Feeds:
        """Random values for every input."""
        return random_inputs(self.graph, seed=seed, shapes=self.shapes)


def open_network(
    path: str | os.PathLike[str],
    *,
    input_shapes: InputShapes | None = None,
    batch: int | None = None,
    dynamic: Mapping[str, int] | None = None,
) -> Opened:
    """Read a network.

    Args:
        input_shapes: sizes of inputs by name, where a guess wouldn't fit.
        batch: how many samples a run takes, if the batch axis is dynamic.
        dynamic: sizes of dynamic axes, by the names that the file gives them.

    Raises:
        ModelError: it can't be read.
        OptionError: it has no such axes, or two of these contradict each other.
    """
    original = files.load(Path(path))
    model = original.clone()
    model.meta.update(original.meta)
    graph, _ = canonicalize(model, input_shapes or {})
    wants = wanted(graph, original)
    shapes = dict(graph.samples[0])
    if batch is not None:
        shapes = with_batch(shapes, wants, batch)
    if dynamic:
        shapes = _with_dynamic(shapes, original, dynamic)
    opened = Opened(Path(path), original, graph, wants, shapes)
    if batch not in (None, opened.batch):
        raise OptionError(f"--batch {batch}: --dynamic makes it {opened.batch}")
    return opened


def _with_dynamic(shapes: Shapes, model: ir.Model, dynamic: Mapping[str, int]) -> Shapes:
    named = {value.name or "": keys(value, shapes) for value in free_inputs(model)}
    there = {key for own in named.values() for key in own if isinstance(key, str)}
    for name in dynamic:
        if name not in there:
            known = ", ".join(sorted(there)) or "none"
            raise OptionError(
                f"--dynamic {name}: no input has an axis of this name; named: {known}"
            )
    chosen: dict[Key, int] = {
        key: size
        for name, sizes in shapes.items()
        for key, size in zip(named[name], sizes, strict=True)
        if isinstance(key, str)
    }
    chosen.update(dynamic.items())
    chosen |= sums(chosen, told=dynamic)
    return {
        name: tuple(
            size if key is None else chosen.get(key, size)
            for key, size in zip(named[name], sizes, strict=True)
        )
        for name, sizes in shapes.items()
    }


def same_inputs(first: Opened, other: Opened) -> None:
    """Check that two networks take the same inputs.

    Raises:
        OptionError: they don't.
    """

    def taken(network: Opened) -> dict[str, str]:
        return {want.name: f"{want.dtype}, {len(want.shape)} axes" for want in network.wants}

    def listed(network: Opened) -> str:
        return ", ".join(f"`{want.name}` {want}" for want in network.wants)

    clash = taken(first) != taken(other) or any(
        size not in (None, given)
        for want in other.wants
        for size, given in zip(want.shape, first.shapes[want.name], strict=True)
    )
    if clash:
        raise OptionError(
            f"{other.path.name} takes other inputs than {first.path.name}: {listed(other)} instead "
            f"of {listed(first)}"
        )
