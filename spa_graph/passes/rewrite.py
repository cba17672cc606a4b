"""Kept channels -> `Edits`: everything in a network that must change, as plain values.

The frontend applies them. Weights are sliced; attributes and constant inputs that name sizes or
positions of pruned axes follow (`Binding`s of the rules); `expected` holds the shape that every
value must have afterwards, by which sizes that are computed inside the network are corrected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.analysis import Coupling
from spa_graph.coupling.relations import Axis
from spa_graph.coupling.scope import Binding
from spa_graph.edits import Edits
from spa_graph.graph import Extent, Shape
from spa_graph.plan import Kept, use_slices

Ints = NDArray[np.int64]


def plan_edits(coupling: Coupling, kept: Kept) -> Edits:
    """All edits that removing channels demands; `kept` has shape (channels,)."""
    edits = Edits()
    for use in coupling.relations.uses:
        edits.slices.append((use, use_slices(coupling, use, kept)))
    for binding in coupling.facts.bindings:
        axes = (*binding.axes, *_computed_from(coupling, binding))
        if any(coupling.kept_elements(axis, kept) is not None for axis in axes):
            _BIND[binding.kind](edits, coupling, binding, kept)
    for name in coupling.graph.shapes:
        shape = pruned_shape(coupling, name, kept)
        if shape is not None:
            edits.expected[name] = shape
    return edits


def _computed_from(coupling: Coupling, binding: Binding) -> Iterator[Axis]:
    """The axes whose sizes the bounds of a slice are computed from, which may be another value's.

    `in_proj_weight[:x.shape[-1]]` takes as many rows when x is narrower.
    """
    if binding.kind != "bounds":
        return
    graph = coupling.graph
    for name in graph.operators[binding.operator].inputs[1:3]:
        known = graph.known.get(name)
        if known is not None and known.static:
            yield from coupling.relations.origins(known)


def pruned_shape(coupling: Coupling, name: str, kept: Kept) -> Shape | None:
    """The shape of a value after pruning, or None for parameters and values without a shape."""
    if name in coupling.graph.parameters or name not in coupling.graph.shapes:
        return None
    axes = coupling.relations.value(name) or ()
    return tuple(_pruned_extent(coupling, axis, kept) for axis in axes)


def _pruned_extent(coupling: Coupling, axis: Axis, kept: Kept) -> Extent:
    extent = coupling.relations.extent(axis)
    stays = coupling.kept_elements(axis, kept)
    if stays is None:
        return extent
    left = int(stays.sum())
    # an axis that merges channels with a dynamic one shrinks by the same share in both probes
    return Extent(left, extent.other * left // extent.nominal)


def _left(coupling: Coupling, axis: Axis, kept: Kept) -> int:
    return _pruned_extent(coupling, axis, kept).nominal


def _stays(coupling: Coupling, axis: Axis, kept: Kept) -> NDArray[np.bool_]:
    stays = coupling.kept_elements(axis, kept)
    return np.ones(coupling.size(axis), bool) if stays is None else stays


def _size(edits: Edits, coupling: Coupling, binding: Binding, kept: Kept) -> None:
    _put(edits, binding, _left(coupling, binding.axes[0], kept))


def _sizes(edits: Edits, coupling: Coupling, binding: Binding, kept: Kept) -> None:
    _put(edits, binding, [_left(coupling, axis, kept) for axis in binding.axes])


def _put(edits: Edits, binding: Binding, value: int | list[int]) -> None:
    if isinstance(binding.target, str):
        edits.attributes.setdefault(binding.operator, {})[binding.target] = value
    else:
        edits.inputs.setdefault(binding.operator, {})[binding.target] = np.array(value, np.int64)


def _renumbered(coupling: Coupling, binding: Binding, kept: Kept) -> Ints:
    """The positions that stay, counted among those of the source that stay."""
    source, out = (_stays(coupling, axis, kept) for axis in binding.axes)
    index = binding.index if binding.index is not None else np.zeros(0, np.int64)
    new_position = np.cumsum(source) - 1
    return new_position[index[out]].astype(np.int64)


def _index(edits: Edits, coupling: Coupling, binding: Binding, kept: Kept) -> None:
    index = _renumbered(coupling, binding, kept)
    edits.inputs.setdefault(binding.operator, {})[int(binding.target)] = index


def _gather(edits: Edits, coupling: Coupling, binding: Binding, kept: Kept) -> None:
    operator = coupling.graph.operators[binding.operator]
    axes = coupling.relations.operand(operator, 0) or ()
    edits.gathers[binding.operator] = (
        axes.index(binding.axes[0]),
        _renumbered(coupling, binding, kept),
    )


def _bounds(edits: Edits, coupling: Coupling, binding: Binding, kept: Kept) -> None:
    operator = coupling.graph.operators[binding.operator]
    place = int(binding.target)
    start = int(binding.index[0]) if binding.index is not None else 0
    before = int(_stays(coupling, binding.axes[0], kept)[:start].sum())
    stop = before + _left(coupling, binding.axes[1], kept)
    for slot, name, value in ((1, "starts", before), (2, "ends", stop)):
        if name in operator.attributes:
            listed = edits.attributes.setdefault(binding.operator, {})
            listed.setdefault(name, list(operator.attributes[name]))[place] = value  # type: ignore[index]
        else:
            given = edits.inputs.setdefault(binding.operator, {})
            old = coupling.graph.known[operator.inputs[slot]].nominal
            given.setdefault(slot, old.reshape(-1).copy())[place] = value


_BIND: dict[str, Callable[[Edits, Coupling, Binding, Kept], None]] = {
    "size": _size,
    "sizes": _sizes,
    "index": _index,
    "gather": _gather,
    "bounds": _bounds,
}
