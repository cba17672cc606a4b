"""Names for what is added to a model: no value and no node has them yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import onnx_ir as ir

_TAKEN: WeakKeyDictionary[ir.Model, set[str]] = WeakKeyDictionary()
"""Collected once per model: whoever adds something asks `fresh_name` for its name."""


def fresh_name(model: ir.Model, name: str) -> str:
    """`name`, or the first of `name.0`, `name.1`, ... that is free; it is taken from now on."""
    taken = _TAKEN.get(model)
    if taken is None:
        taken = _TAKEN[model] = set(_names(model))
    free, count = name, 0
    while free in taken:
        free, count = f"{name}.{count}", count + 1
    taken.add(free)
    return free


def keep_apart(model: ir.Model, values: Sequence[ir.Value]) -> None:
    """Rename those of `values`, which joined the main graph, whose name another value has.

    Names of what was removed from the model meanwhile are free again.
    """
    _TAKEN.pop(model, None)
    present = {id(value): value for value in (*_values(model), *values)}
    count = Counter(value.name for value in present.values())
    for value in values:
        if value.name and count[value.name] > 1:
            value.name = fresh_name(model, value.name)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()
        yield from graph.inputs
        for node in graph:
            yield from node.outputs


def _names(model: ir.Model) -> Iterator[str]:
    """The names of all values and nodes, in subgraphs too: those see the outer ones."""
    yield from (value.name or "" for value in _values(model))
    yield from (node.name or "" for graph in model.graphs() for node in graph)
