"""What attention layers of frameworks demand of heads that ONNX networks don't.

They divide by the root of the size that heads of queries have, where an ONNX network keeps the
number that it had. And some have one size for the heads of queries and of values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from spa_graph.errors import OptionError
from spa_graph.export.stored import Array

PROJECTIONS = ("query", "key", "value", "out")
Weight = tuple[str, str]
"""A projection, or the normalisation behind one, and which weight of it."""


def fit_heads(left: Mapping[Weight, Array], before: int, *, one_size: bool) -> dict[Weight, Array]:
    """The weights that are left of an attention layer, so that it computes what ONNX does.

    Args:
        left: of `query`, `key` and `value`, each with a `kernel` (in, heads, size), perhaps a
            `bias` of (heads, size) or as many elements in a row; of `out`, with a `kernel` (heads,
            size, out ...). Perhaps the `scale` of `query_ln`.
        before: the size of the heads of queries before pruning.
        one_size: whether heads of queries and values must have the same size: the smaller ones
            get zeros.

    Raises:
        OptionError: zeros would change what a normalisation of queries computes.
    """
    shapes = {part: left[part, "kernel"].shape for part in PROJECTIONS[:3]}
    size = shapes["query"][-1]
    fitted = {
        (part, name): array.reshape(shapes[part][1:])
        if part in shapes and name == "bias"
        else array
        for (part, name), array in left.items()
    }
    if one_size and size != shapes["value"][-1]:
        if ("query_ln", "scale") in left and size < shapes["value"][-1]:
            raise OptionError(
                f"heads of queries have {size} elements left, those of values "
                f"{shapes['value'][-1]}; this attention layer has one size for both, and "
                "normalises queries: prune whole heads, with attention='heads'"
            )
        size = max(size, shapes["value"][-1])
        for part, name in fitted:
            if part in shapes:
                fitted[part, name] = _padded(fitted[part, name], -1, size)
        fitted["out", "kernel"] = _padded(fitted["out", "kernel"], 1, size)
    last = "query_ln" if ("query_ln", "scale") in fitted else "query"
    for part, name in fitted:
        if part == last and size != before:
            array = fitted[part, name]
            fitted[part, name] = (array * math.sqrt(size / before)).astype(array.dtype)
    return fitted


def _padded(array: Array, axis: int, size: int) -> Array:
    shape = [*array.shape]
    shape[axis] = size - shape[axis]
    return np.concatenate([array, np.zeros(shape, array.dtype)], axis)
