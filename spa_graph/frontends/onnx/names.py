"""Names for what is added to a model: no value and no node has them yet."""

from __future__ import annotations

from collections.abc import Iterator
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


def _names(model: ir.Model) -> Iterator[str]:
    """The names of all values and nodes, in subgraphs too: those see the outer ones."""
    for graph in model.graphs():
        yield from graph.initializers
        yield from (value.name or "" for value in graph.inputs)
        for node in graph:
            yield node.name or ""
            yield from (value.name or "" for value in node.outputs)
