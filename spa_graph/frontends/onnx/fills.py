"""Weights that a file doesn't hold but makes: a ConstantOfShape whose shape is stored.

All their elements are equal. They are weights like any other, written in a few bytes; pruned ones
are made at their new shape, so that the file doesn't grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


class FilledTensor(ir.LazyTensor):
    """One repeated value; it takes no memory, whatever its shape."""

    def __init__(self, fill: NDArray[Any], sizes: Sequence[int], name: str | None = None) -> None:
        self.fill = fill
        whole = np.broadcast_to(fill, tuple(sizes))
        dtype = ir.DataType.from_numpy(fill.dtype)
        super().__init__(lambda: ir.Tensor(whole), dtype, ir.Shape(sizes), name=name)


def generated(node: ir.Node) -> FilledTensor | None:
    """What a ConstantOfShape makes, if its shape is stored and it holds floating-point numbers."""
    if node.op_type != "ConstantOfShape" or node.domain not in ("", "ai.onnx"):
        return None
    sizes = node.inputs[0].const_value if node.inputs[0] is not None else None
    value = node.attributes.get("value")
    fill = value.as_tensor().numpy().reshape(()) if value is not None else np.zeros((), np.float32)
    if sizes is None or fill.dtype.kind != "f" or np.prod(sizes.numpy()) < 2:
        return None
    return FilledTensor(fill, sizes.numpy().tolist(), node.outputs[0].name)
