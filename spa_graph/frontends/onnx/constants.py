"""Constants that nodes hold: those of Constant, and weights that a file doesn't hold but makes.

A ConstantOfShape whose shape is stored makes a weight like any other, written in a few bytes; all
its elements are equal. A pruned one is made at its new shape, so that the file doesn't grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

CONSTANTS = ("Constant", "ConstantOfShape")


class FilledTensor(ir.LazyTensor):
    """One repeated value; it takes no memory, whatever its shape."""

    def __init__(self, fill: NDArray[Any], sizes: Sequence[int], name: str | None = None) -> None:
        self.fill = fill
        whole = np.broadcast_to(fill, tuple(sizes))
        dtype = ir.DataType.from_numpy(fill.dtype)
        super().__init__(lambda: ir.Tensor(whole), dtype, ir.Shape(sizes), name=name)


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """What a Constant holds, in whichever attribute it is, or a ConstantOfShape makes."""
    if node.op_type == "ConstantOfShape":
        return _made(node)
    for key, attribute in node.attributes.items():
        if key == "value":
            return attribute.value  # as_tensor() checks its type, slowly
        if key in ("value_int", "value_ints"):
            return ir.tensor(np.array(attribute.value, np.int64))
        if key in ("value_float", "value_floats"):
            return ir.tensor(np.array(attribute.value, np.float32))
    return None


def _made(node: ir.Node) -> FilledTensor | None:
    """The floating-point weight of a ConstantOfShape, if its shape is stored."""
    sizes = _stored(node.inputs[0])
    value = node.attributes.get("value")
    fill = value.as_tensor().numpy().reshape(()) if value is not None else np.zeros((), np.float32)
    if sizes is None or fill.dtype.kind != "f" or np.prod(sizes) < 2:
        return None
    return FilledTensor(fill, sizes, node.outputs[0].name)


def _stored(value: ir.Value | None) -> list[int] | None:
    maker = value.producer() if value is not None else None
    tensor = value.const_value if value is not None else None
    if maker is not None:
        tensor = constant_tensor(maker) if maker.op_type == "Constant" else None
    return [int(size) for size in tensor.numpy()] if tensor is not None else None
