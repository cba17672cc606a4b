"""A small layer on onnx-graphsurgeon for writing networks by hand, with seeded random weights.

    net = Builder("tiny")
    x = net.input("image", ("batch", 3, 32, 32))
    x = net.relu(net.norm(net.conv("stem", x, 3, 8, 3)))
    model = net.finish(net.linear("head", net.pool(x), 8, 10), ("batch", 10))

Weights are called after their layer (`stem.weight`), values are numbered. Feature maps are
(n, c, h, w), sequences (n, t, c).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

Value: TypeAlias = gs.Tensor
Dims = Sequence[int | str]


class Builder:
    """One network being written."""

    def __init__(self, name: str, *, seed: int = 0, opset: int = 18) -> None:
        self.graph = gs.Graph(name=name, opset=opset, import_domains=None)
        self._random = np.random.default_rng(seed)
        self._values = 0

    # --- values and operators -----------------------------------------------------------------

    def input(self, name: str, shape: Dims, dtype: type = np.float32) -> Value:
        value = gs.Variable(name, dtype=dtype, shape=list(shape))
        self.graph.inputs.append(value)
        return value

    def op(self, op_type: str, *inputs: Value | None, **attributes: Any) -> Value:
        """An operator with one output."""
        return self.ops(op_type, 1, *inputs, **attributes)[0]

    def ops(
        self, op_type: str, outputs: int, *inputs: Value | None, **attributes: Any
    ) -> list[Value]:
        """An operator with several outputs; an absent input is None."""
        self._values += 1
        name = f"{op_type.lower()}{self._values}"
        results = [gs.Variable(name if i == 0 else f"{name}.{i}") for i in range(outputs)]
        operands = [gs.Variable.empty() if value is None else value for value in inputs]
        self.graph.nodes.append(
            gs.Node(op_type, name, attrs=attributes, inputs=operands, outputs=results)
        )
        return results

    def constant(self, values: Any, dtype: type = np.int64) -> Value:
        self._values += 1
        return gs.Constant(f"constant{self._values}", np.asarray(values, dtype))

    def weight(self, name: str, *shape: int, fan_in: int) -> Value:
        """Random weights that keep the variance of what passes."""
        values = self._random.standard_normal(shape) * np.sqrt(2 / fan_in)
        return gs.Constant(name, values.astype(np.float32))

    def vector(self, name: str, size: int, low: float, high: float) -> Value:
        return gs.Constant(name, self._random.uniform(low, high, size).astype(np.float32))

    def finish(self, output: Value | Sequence[Value], *shapes: Dims) -> onnx.ModelProto:
        """The network; a shape for each output."""
        outputs = [output] if isinstance(output, gs.Variable) else list(output)
        for value, shape in zip(outputs, shapes, strict=True):
            value.dtype, value.shape = np.float32, list(shape)
        self.graph.outputs = outputs
        model = gs.export_onnx(self.graph, ir_version=10)
        onnx.checker.check_model(model)
        return model

    # --- layers -------------------------------------------------------------------------------

    def conv(
        self, name: str, x: Value, inputs: int, outputs: int, kernel: int = 1, *,
        stride: int = 1, groups: int = 1, bias: bool = False,
    ) -> Value:  # fmt: skip
        """A padded convolution."""
        shape = (outputs, inputs // groups, kernel, kernel)
        weight = self.weight(f"{name}.weight", *shape, fan_in=int(np.prod(shape[1:])))
        operands = [x, weight]
        if bias:
            operands.append(self.vector(f"{name}.bias", outputs, -0.2, 0.2))
        return self.op(
            "Conv", *operands, kernel_shape=[kernel] * 2, strides=[stride] * 2,
            pads=[kernel // 2] * 4, group=groups,
        )  # fmt: skip

    def norm(self, name: str, x: Value, size: int) -> Value:
        """BatchNormalization."""
        bounds = {"weight": (0.5, 1.5), "bias": (-0.2, 0.2), "mean": (-0.2, 0.2), "var": (0.5, 1.5)}
        parts = [self.vector(f"{name}.{part}", size, *span) for part, span in bounds.items()]
        return self.op("BatchNormalization", x, *parts)

    def conv_norm(
        self, name: str, x: Value, inputs: int, outputs: int, *args: Any, **options: Any
    ) -> Value:
        x = self.conv(name, x, inputs, outputs, *args, **options)
        return self.norm(f"{name}.norm", x, outputs)

    def layer_norm(self, name: str, x: Value, size: int) -> Value:
        scale = self.vector(f"{name}.weight", size, 0.5, 1.5)
        bias = self.vector(f"{name}.bias", size, -0.2, 0.2)
        return self.op("LayerNormalization", x, scale, bias, axis=-1)

    def rms_norm(self, name: str, x: Value, size: int) -> Value:
        """Written out, as exporters do."""
        square = self.op("Mul", x, x)
        mean = self.op("ReduceMean", square, self.constant([-1]), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.constant(1e-6, np.float32)))
        scaled = self.op("Div", x, root)
        return self.op("Mul", scaled, self.vector(f"{name}.weight", size, 0.5, 1.5))

    def linear(self, name: str, x: Value, inputs: int, outputs: int, *, bias: bool = True) -> Value:
        """MatMul along the last axis."""
        x = self.op("MatMul", x, self.weight(f"{name}.weight", inputs, outputs, fan_in=inputs))
        if not bias:
            return x
        return self.op("Add", x, self.vector(f"{name}.bias", outputs, -0.2, 0.2))

    def relu(self, x: Value) -> Value:
        return self.op("Relu", x)

    def silu(self, x: Value) -> Value:
        return self.op("Mul", x, self.op("Sigmoid", x))

    def gelu(self, x: Value) -> Value:
        """Written out with Erf, as exporters do."""
        inner = self.op("Erf", self.op("Div", x, self.constant(2**0.5, np.float32)))
        shifted = self.op("Add", inner, self.constant(1, np.float32))
        return self.op("Mul", self.op("Mul", x, shifted), self.constant(0.5, np.float32))

    def pool(self, x: Value) -> Value:
        """Global average, (n, c, h, w) -> (n, c)."""
        return self.op("Flatten", self.op("GlobalAveragePool", x), axis=1)

    def reshape(self, x: Value, *shape: int) -> Value:
        return self.op("Reshape", x, self.constant(shape))

    def transpose(self, x: Value, *order: int) -> Value:
        return self.op("Transpose", x, perm=list(order))

    def concat(self, axis: int, *values: Value) -> Value:
        return self.op("Concat", *values, axis=axis)

    def slice(self, x: Value, axis: int, start: int, stop: int) -> Value:
        bounds = (self.constant([bound]) for bound in (start, stop, axis))
        return self.op("Slice", x, *bounds)

    def split(self, x: Value, axis: int, *sizes: int) -> list[Value]:
        return self.ops("Split", len(sizes), x, self.constant(sizes), axis=axis)

    def table(self, name: str, *shape: int) -> NDArray[np.float32]:
        """Random numbers that are part of the network, such as embeddings."""
        return self.weight(name, *shape, fan_in=2).values
