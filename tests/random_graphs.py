"""Random networks, built with onnx-graphsurgeon from a list of steps.

A step is (name, number): what is added, and the choices inside it. A list of steps shrinks well:
hypothesis leaves steps out and makes numbers small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

Step = tuple[str, int]
SIDE, LENGTH = 6, 5
"""Height and width of images, length of sequences."""


class Net:
    """A network under construction: `features` are (value, channels), the newest last.

    Images are (batch, channels, side, side), sequences (batch, length, channels).
    """

    def __init__(self, batch: int | str, opset: int = 17) -> None:
        self.batch = batch
        self.nodes: list[gs.Node] = []
        self.weights = np.random.default_rng(0)
        self.features: list[tuple[gs.Variable, int]] = []
        self.inputs: list[gs.Variable] = []
        self.outputs: list[gs.Variable] = []
        self.opset = opset
        self.count = 0
        self.fills: dict[tuple[float, int], gs.Constant] = {}

    def input(self, *shape: int) -> gs.Variable:
        x = gs.Variable("x", np.float32, [self.batch, *shape])
        self.inputs.append(x)
        return x

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def weight(self, *shape: int, around: float = 0.0) -> gs.Constant:
        scale = 1 / np.sqrt(max(np.prod(shape[1:]), 1))
        values = around + scale * self.weights.standard_normal(shape)
        return gs.Constant(self.name("w"), values.astype(np.float32))

    def filled(self, value: float, size: int) -> gs.Constant:
        """A vector of one number; all equal ones are the same, as exporters merge them."""
        if (value, size) not in self.fills:
            values = np.full(size, value, np.float32)
            self.fills[value, size] = gs.Constant(self.name("w"), values)
        return self.fills[value, size]

    def numbers(self, *values: int) -> gs.Constant:
        return gs.Constant(self.name("i"), np.array(values, np.int64))

    def op(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        made = [gs.Variable(self.name("v"), np.float32) for _ in range(outputs)]
        self.nodes.append(gs.Node(kind, self.name("n"), attributes, list(inputs), made))
        return made if outputs > 1 else made[0]

    def last(self) -> tuple[gs.Variable, int]:
        return self.features[-1]

    def add(self, value: gs.Variable, channels: int) -> None:
        self.features.append((value, channels))

    def other(self, pick: np.random.Generator, channels: int | None = None) -> gs.Variable | None:
        """An earlier feature, perhaps the same, of so many channels."""
        found = [value for value, c in self.features if channels in (None, c)]
        return found[int(pick.integers(len(found)))] if found else None

    def finish(self) -> onnx.ModelProto:
        graph = gs.Graph(self.nodes, self.inputs, self.outputs, name="random", opset=self.opset)
        graph.cleanup().toposort()
        model = gs.export_onnx(graph)
        model.ir_version = 9
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


StepFunction = Callable[[Net, np.random.Generator], None]


def build(steps: Sequence[Step], table: dict[str, StepFunction], net: Net) -> None:
    for name, number in steps:
        table[name](net, np.random.default_rng(number))


# --- images --------------------------------------------------------------------------------------


def image_network(steps: Sequence[Step], head: str, batch: int | str = 2) -> onnx.ModelProto:
    """A convolutional network: 3 channels in, `steps`, and 4 numbers out."""
    net = Net(batch)
    net.add(net.input(3, SIDE, SIDE), 3)
    conv(net, np.random.default_rng(1))
    build(steps, IMAGE_STEPS, net)
    x, channels = net.last()
    if head == "conv":
        net.op("Conv", x, net.weight(4, channels, 1, 1))
        net.outputs = [gs.Variable("y", np.float32, [batch, 4, SIDE, SIDE])]
    else:
        size = channels if head == "pool" else channels * SIDE * SIDE
        pooled = net.op("GlobalAveragePool", x) if head == "pool" else x
        flat = net.op("Flatten", pooled)
        net.op("Gemm", flat, net.weight(size, 4), net.weight(4))
        net.outputs = [gs.Variable("y", np.float32, [batch, 4])]
    net.nodes[-1].outputs = net.outputs
    return net.finish()


def _conv(net: Net, x: gs.Variable, weight: gs.Constant, bias: Any = None, group: int = 1) -> Any:
    pad = weight.values.shape[2] // 2
    inputs = [x, weight] if bias is None else [x, weight, bias]
    return net.op("Conv", *inputs, group=group, pads=[pad] * 4)


def conv(net: Net, pick: np.random.Generator) -> None:
    x, channels = net.last()
    width, kernel = int(pick.integers(2, 11)), int(pick.choice([1, 3]))
    bias = (None, net.weight(width), net.filled(0, width))[int(pick.integers(3))]
    net.add(_conv(net, x, net.weight(width, channels, kernel, kernel), bias), width)


def transposed(net: Net, pick: np.random.Generator) -> None:
    x, channels = net.last()
    group = int(pick.choice([g for g in (1, 2, 3) if channels % g == 0]))
    width = int(pick.integers(2, 6))
    weight = net.weight(channels, width, 3, 3)
    net.add(net.op("ConvTranspose", x, weight, group=group, pads=[1] * 4), width * group)


def group_conv(net: Net, pick: np.random.Generator) -> None:
    x, channels = net.last()
    group = int(pick.choice([g for g in range(1, channels + 1) if channels % g == 0]))
    width = group * int(pick.integers(1, 4))
    weight = net.weight(width, channels // group, 3, 3)
    net.add(_conv(net, x, weight, net.weight(width), group), width)


def depthwise(net: Net, pick: np.random.Generator) -> None:
    x, channels = net.last()
    times = int(pick.integers(1, 3))
    net.add(_conv(net, x, net.weight(channels * times, 1, 3, 3), None, channels), channels * times)


def shared_conv(net: Net, pick: np.random.Generator) -> None:
    """The weights of an earlier convolution on a new input, as siamese branches have."""
    x, channels = net.last()
    earlier = [
        node.inputs[1]
        for node in net.nodes
        if node.op == "Conv"
        and node.attrs["group"] == 1
        and node.inputs[1].values.shape[1] == channels
    ]
    if earlier:
        weight = earlier[int(pick.integers(len(earlier)))]
        net.add(_conv(net, x, weight), weight.values.shape[0])


def batch_norm(net: Net, pick: np.random.Generator) -> None:
    x, channels = net.last()
    if pick.integers(2):  # as initialised
        fresh = [net.filled(value, channels) for value in (1, 0, 0, 1)]
        return net.add(net.op("BatchNormalization", x, *fresh), channels)
    vectors = [net.weight(channels, around=around) for around in (1, 0, 0, 3)]
    vectors[3].values = np.abs(vectors[3].values) + np.float32(0.5)
    return net.add(net.op("BatchNormalization", x, *vectors), channels)


def activation(net: Net, pick: np.random.Generator) -> None:
    x, channels = net.last()
    kind = str(pick.choice(["Relu", "Sigmoid", "Tanh", "HardSwish", "Cos", "Neg", "Softplus"]))
    net.add(net.op(kind, x), channels)


def residual(net: Net, pick: np.random.Generator) -> None:
    """x + f(y) for any earlier y, through a 1x1 convolution where the channels differ."""
    x, channels = net.last()
    y = net.other(pick, channels) if pick.integers(2) else net.other(pick)
    width = next(c for value, c in net.features if value is y)
    if width != channels:
        y = _conv(net, y, net.weight(channels, width, 1, 1))
    pair = [x, y] if pick.integers(2) else [y, x]
    net.add(net.op(str(pick.choice(["Add", "Mul", "Sub", "Max"])), *pair), channels)


def concat(net: Net, pick: np.random.Generator) -> None:
    """Two or three features side by side, perhaps one of them twice."""
    chosen = [
        net.features[int(pick.integers(len(net.features)))] for _ in range(pick.integers(1, 3))
    ]
    parts = [net.last(), *chosen]
    width = sum(channels for _, channels in parts)
    if width <= 40:
        net.add(net.op("Concat", *(value for value, _ in parts), axis=1), width)


def split(net: Net, pick: np.random.Generator) -> None:
    x, channels = net.last()
    if channels > 1:
        first = int(pick.integers(1, channels))
        sizes = (first, channels - first)
        for value, size in zip(
            net.op("Split", x, net.numbers(*sizes), outputs=2, axis=1), sizes, strict=True
        ):
            net.add(value, size)


def slice_channels(net: Net, pick: np.random.Generator) -> None:
    x, channels = net.last()
    start, step = int(pick.integers(0, channels)), int(pick.choice([1, 1, 2, -1]))
    stop = -channels - 1 if step < 0 else int(pick.integers(start + 1, channels + 1))
    count = len(range(channels)[start::step] if step < 0 else range(channels)[start:stop:step])
    bounds = [net.numbers(n) for n in (start, stop, 1, step)]
    net.add(net.op("Slice", x, *bounds), count)


def gather(net: Net, pick: np.random.Generator) -> None:
    """Channels in another order, some twice, some not at all."""
    x, channels = net.last()
    index = pick.integers(-channels, channels, int(pick.integers(1, channels + 3))).tolist()
    net.add(net.op("Gather", x, net.numbers(*index), axis=1), len(index))


def shuffle(net: Net, pick: np.random.Generator) -> None:
    x, channels = net.last()
    group = int(pick.choice([g for g in range(1, channels + 1) if channels % g == 0]))
    shape = net.numbers(0, group, channels // group, SIDE, SIDE)
    parts = net.op("Transpose", net.op("Reshape", x, shape), perm=[0, 2, 1, 3, 4])
    net.add(net.op("Reshape", parts, net.numbers(0, -1, SIDE, SIDE)), channels)


def squeeze_excite(net: Net, pick: np.random.Generator) -> None:
    x, channels = net.last()
    width = int(pick.integers(1, 6))
    squeezed = net.op("GlobalAveragePool", x)
    hidden = net.op("Relu", _conv(net, squeezed, net.weight(width, channels, 1, 1)))
    gate = net.op(
        "Sigmoid", _conv(net, hidden, net.weight(channels, width, 1, 1), net.weight(channels))
    )
    net.add(net.op("Mul", x, gate), channels)


def pixel_shuffle(net: Net, pick: np.random.Generator) -> None:
    x, channels = net.last()
    if channels % 4 == 0:
        mode = str(pick.choice(["DCR", "CRD"]))
        large = net.op("DepthToSpace", x, blocksize=2, mode=mode)
        net.add(net.op("MaxPool", large, kernel_shape=[2, 2], strides=[2, 2]), channels // 4)


def scale(net: Net, pick: np.random.Generator) -> None:
    """A constant per channel, or one for all."""
    x, channels = net.last()
    weight = net.weight(channels if pick.integers(2) else 1, 1, 1, around=1)
    net.add(net.op(str(pick.choice(["Mul", "Add", "Div"])), x, weight), channels)


def channels_last(net: Net, pick: np.random.Generator) -> None:
    """To (n, h, w, c), a normalised linear layer, and back."""
    x, channels = net.last()
    width = int(pick.integers(2, 9))
    last = net.op("Transpose", x, perm=[0, 2, 3, 1])
    if pick.integers(2):
        last = net.op(
            "LayerNormalization", last, net.weight(channels, around=1), net.weight(channels)
        )
    linear = net.op("MatMul", last, net.weight(channels, width))
    net.add(net.op("Transpose", linear, perm=[0, 3, 1, 2]), width)


def pool(net: Net, pick: np.random.Generator) -> None:
    x, channels = net.last()
    kind = str(pick.choice(["MaxPool", "AveragePool"]))
    net.add(net.op(kind, x, kernel_shape=[3, 3], pads=[1] * 4), channels)


IMAGE_STEPS: dict[str, StepFunction] = {
    step.__name__: step
    for step in (
        conv, transposed, group_conv, depthwise, shared_conv, batch_norm, activation, residual,
        concat, split, slice_channels, gather, shuffle, squeeze_excite, pixel_shuffle, scale,
        channels_last, pool,
    )
}  # fmt: skip
