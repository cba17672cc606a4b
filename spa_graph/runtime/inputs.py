"""Random inputs that a network accepts: its types, its sizes, indices within its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph.errors import ModelError
from spa_graph.graph import Graph

Feeds = dict[str, NDArray[Any]]
# Operators behind which an integer still is the same index.
_PASSING = frozenset(
    {
        "Cast",
        "Identity",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Transpose",
        "Slice",
        "Expand",
    }
)


def shapes_text(shapes: Mapping[str, Sequence[int]]) -> str:
    """The sizes of inputs for people: `image 1x3x224x224, scale 1`."""
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())


def random_inputs(
    graph: Graph,
    *,
    sample: int = 0,
    seed: int = 0,
    scale: float = 1.0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Feeds:
    """Random values for every input, at given sizes, or those of one of the graph's samples.

    Floats are normal with standard deviation `scale`, integers that index a table lie within it,
    other integers are 1 (a mask that attends everything), booleans true.

    Raises:
        ModelError: an input has a type that can't be made up.
    """
    generator = np.random.default_rng(seed)
    sizes = graph.samples[sample] if shapes is None else shapes
    feeds: Feeds = {}
    for name in graph.inputs:
        dtype = graph.dtypes.get(name)
        if dtype is None or name not in sizes:
            raise ModelError(f"input `{name}` is not a tensor of numbers; it can't be made up")
        shape = sizes[name]
        if dtype.kind == "b":
            feeds[name] = np.ones(shape, dtype)
        elif dtype.kind in "iu":
            bound = table_size(graph, name)
            values = generator.integers(0, bound, shape) if bound else np.ones(shape)
            feeds[name] = np.asarray(values, dtype)
        else:  # numpy makes numbers of arrays without axes, which ONNX Runtime doesn't take
            feeds[name] = np.asarray(scale * generator.standard_normal(shape), dtype)
    return feeds


def table_size(graph: Graph, name: str) -> int | None:
    """The size of the smallest table that an integer input indexes, or None."""
    uses = graph.uses()
    waiting, seen, sizes = [name], {name}, []
    while waiting:
        for operator, slot in uses.get(waiting.pop(), ()):
            if operator.op_type == "Gather" and slot == 1:
                shape = graph.shapes.get(operator.inputs[0])
                if shape:
                    sizes.append(shape[operator.attributes.get("axis", 0)].nominal)
            elif operator.op_type == "OneHot" and slot == 0:
                sizes.extend(_depth(graph, operator.inputs[1]))
            elif operator.op_type == "Equal":
                sizes.extend(_compared(graph, operator.inputs[1 - slot]))
            elif operator.op_type in _PASSING and slot == 0:
                fresh = [out for out in operator.outputs if out not in seen]
                seen.update(fresh)
                waiting.extend(fresh)
            elif operator.op_type == "EmbedLayerNormalization" and slot < 2:
                shape = graph.shapes.get(operator.inputs[2 if slot == 0 else 4])
                if shape:
                    sizes.append(shape[0].nominal)
    return min(sizes) if sizes else None


def _depth(graph: Graph, name: str) -> list[int]:
    """How many values one-hot vectors tell apart, if that is fixed."""
    known = graph.known.get(name)
    return [int(known.nominal.flat[0])] if known is not None and known.nominal.size == 1 else []


def _compared(graph: Graph, name: str) -> list[int]:
    """One-hot vectors made by comparison with 0, 1, 2, ...: how many there are."""
    parameter = graph.parameters.get(name)
    if parameter is None or not 2 < int(np.prod(parameter.shape)) < 2**20:
        return []
    values = np.sort(parameter.load(), axis=None)
    return [values.size] if np.array_equal(values, np.arange(values.size)) else []
