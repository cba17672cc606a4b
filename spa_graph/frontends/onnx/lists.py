"""Lists of tensors, as far as their parts are known: cut at constant sizes, taken by position.

PyTorch's exporter writes `split` so before it optimises. What onnx infers of a list is one type for
all its parts, so that sizes which the file states would count as dependent on data.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray


def part_sizes(split: NDArray[np.int64], whole: int) -> list[int]:
    """The sizes that a SplitToSequence cuts an axis into; one number is the size of each part.

    >>> part_sizes(np.array(4), 10), part_sizes(np.array([7, 3]), 10)
    ([4, 4, 2], [7, 3])
    """
    if split.ndim:
        return [int(size) for size in split]
    size = int(split)
    return [min(size, whole - start) for start in range(0, whole, size)]


def part_types(
    proto: onnx.NodeProto, whole: onnx.TypeProto, values: Mapping[str, NDArray[np.int64]]
) -> list[onnx.TypeProto]:
    """The types of a SplitToSequence's parts; empty if they are not known."""
    split = values.get(proto.input[1]) if len(proto.input) > 1 else None
    dims = whole.tensor_type.shape.dim
    axis = next((a.i for a in proto.attribute if a.name == "axis"), 0)
    if split is None or not -len(dims) <= axis < len(dims) or not dims[axis].HasField("dim_value"):
        return []
    found = []
    for size in part_sizes(split, dims[axis].dim_value):
        part = onnx.TypeProto()
        part.CopyFrom(whole)
        part.tensor_type.shape.dim[axis].dim_value = size
        found.append(part)
    return found
