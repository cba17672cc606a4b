"""Small networks of known topologies as ONNX, written with onnx-graphsurgeon; no torch needed.

Each function returns a network with seeded random weights, a few ten thousand parameters and a
dynamic batch. They are made for tests and examples: `TOPOLOGIES` has all of them by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import onnx

from spa_graph.models_zoo.builder import Builder, Value

CLASSES = 10
WORDS = 50


def _images(net: Builder, size: int = 32) -> Value:
    return net.input("image", ("batch", 3, size, size))


def _classified(net: Builder, features: Value, width: int) -> onnx.ModelProto:
    """A linear head on (n, width) features."""
    return net.finish(net.linear("head", features, width, CLASSES), ("batch", CLASSES))


# --- convolutional networks ------------------------------------------------------------------


def resnet() -> onnx.ModelProto:
    """Residual blocks; the second stage starts with a projection."""
    net = Builder("resnet")
    x = net.relu(net.conv_norm("stem", _images(net), 3, 16, 3))
    width = 16
    for stage, outputs in enumerate((16, 32)):
        for block in range(2):
            name, stride = f"stage{stage}.{block}", 2 if outputs > width else 1
            y = net.relu(net.conv_norm(f"{name}.conv1", x, width, outputs, 3, stride=stride))
            y = net.conv_norm(f"{name}.conv2", y, outputs, outputs, 3)
            if outputs != width:
                x = net.conv_norm(f"{name}.project", x, width, outputs, 1, stride=stride)
            x, width = net.relu(net.op("Add", y, x)), outputs
    return _classified(net, net.pool(x), width)


def resnext() -> onnx.ModelProto:
    """Bottlenecks with a grouped convolution in the middle."""
    net = Builder("resnext")
    x = net.relu(net.conv_norm("stem", _images(net), 3, 32, 3, stride=2))
    for block in range(2):
        y = net.relu(net.conv_norm(f"block{block}.reduce", x, 32, 16))
        y = net.relu(net.conv_norm(f"block{block}.group", y, 16, 16, 3, groups=4))
        y = net.conv_norm(f"block{block}.expand", y, 16, 32)
        x = net.relu(net.op("Add", x, y))
    return _classified(net, net.pool(x), 32)


def densenet() -> onnx.ModelProto:
    """Every layer reads all that came before; a transition halves the channels between blocks."""
    net = Builder("densenet")
    x, width, growth = net.conv("stem", _images(net), 3, 16, 3, stride=2), 16, 8
    for block in range(2):
        for layer in range(3):
            name = f"block{block}.{layer}"
            y = net.relu(net.norm(f"{name}.norm1", x, width))
            y = net.relu(net.conv_norm(f"{name}.conv1", y, width, 16))
            x = net.concat(1, x, net.conv(f"{name}.conv2", y, 16, growth, 3))
            width += growth
        x = net.relu(net.norm(f"block{block}.norm", x, width))
        if block == 0:
            x = net.conv(f"block{block}.transition", x, width, width // 2)
            x = net.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
            width //= 2
    return _classified(net, net.pool(x), width)


def mobilenet() -> onnx.ModelProto:
    """Inverted residuals: expand, depthwise, squeeze and excite, project."""
    net = Builder("mobilenet")
    x = net.op("HardSwish", net.conv_norm("stem", _images(net), 3, 16, 3, stride=2))
    for block in range(2):
        name = f"block{block}"
        y = net.op("HardSwish", net.conv_norm(f"{name}.expand", x, 16, 32))
        y = net.op("HardSwish", net.conv_norm(f"{name}.depthwise", y, 32, 32, 3, groups=32))
        gate = net.op("GlobalAveragePool", y)
        gate = net.relu(net.conv(f"{name}.squeeze", gate, 32, 8, bias=True))
        gate = net.op(
            "HardSigmoid", net.conv(f"{name}.excite", gate, 8, 32, bias=True), alpha=1 / 6
        )
        x = net.op("Add", x, net.conv_norm(f"{name}.project", net.op("Mul", y, gate), 32, 16))
    return _classified(net, net.pool(x), 16)


def shufflenet() -> onnx.ModelProto:
    """Half of the channels pass by; then both halves are shuffled."""
    net = Builder("shufflenet")
    x = net.relu(net.conv_norm("stem", _images(net), 3, 32, 3, stride=2))
    for unit in range(3):
        left, right = net.split(x, 1, 16, 16)
        right = net.relu(net.conv_norm(f"unit{unit}.in", right, 16, 16))
        right = net.conv_norm(f"unit{unit}.depthwise", right, 16, 16, 3, groups=16)
        right = net.relu(net.conv_norm(f"unit{unit}.out", right, 16, 16))
        x = net.reshape(net.concat(1, left, right), 0, 2, 16, 16, 16)
        x = net.reshape(net.transpose(x, 0, 2, 1, 3, 4), 0, 32, 16, 16)
    return _classified(net, net.pool(x), 32)


def unet() -> onnx.ModelProto:
    """Down, up with transposed convolutions, and connections across."""
    net = Builder("unet")
    x, skips, widths = _images(net), [], (3, 8, 16, 32)
    for level, (inputs, outputs) in enumerate(pairwise(widths)):
        if level:
            x = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        x = net.relu(net.conv_norm(f"down{level}.0", x, inputs, outputs, 3))
        x = net.relu(net.conv_norm(f"down{level}.1", x, outputs, outputs, 3))
        skips.append((x, outputs))
    width = skips.pop()[1]
    for level, (skip, outputs) in reversed(list(enumerate(skips))):
        weight = net.weight(f"up{level}.weight", width, outputs, 2, 2, fan_in=width)
        x = net.op("ConvTranspose", x, weight, kernel_shape=[2, 2], strides=[2, 2])
        x = net.concat(1, x, skip)
        x = net.relu(net.conv_norm(f"merge{level}", x, 2 * outputs, outputs, 3))
        width = outputs
    return net.finish(net.conv("head", x, width, 5, bias=True), ("batch", 5, 32, 32))


def convnext() -> onnx.ModelProto:
    """Depthwise convolution, then LayerNorm and an MLP with channels last, then a layer scale."""
    net = Builder("convnext")
    x = net.conv("stem", _images(net), 3, 24, 4, stride=4)
    x = net.slice(net.slice(x, 2, 0, 8), 3, 0, 8)  # the padded kernel gives one row more
    for block in range(2):
        name = f"block{block}"
        y = net.conv(f"{name}.depthwise", x, 24, 24, 7, groups=24, bias=True)
        y = net.layer_norm(f"{name}.norm", net.transpose(y, 0, 2, 3, 1), 24)
        y = net.linear(f"{name}.expand", y, 24, 64)
        y = net.linear(f"{name}.project", net.gelu(y), 64, 24)
        y = net.op("Mul", y, net.vector(f"{name}.scale", 24, 0.1, 0.5))
        x = net.op("Add", x, net.transpose(y, 0, 3, 1, 2))
    return _classified(net, net.layer_norm("norm", net.pool(x), 24), 24)


def yolo() -> onnx.ModelProto:
    """Split stages, pooled pyramid, upsampling, two levels of heads in one list of boxes."""
    net = Builder("yolo")
    x = net.silu(net.conv_norm("stem", _images(net), 3, 16, 3, stride=2))
    x = net.silu(net.conv_norm("down1", x, 16, 32, 3, stride=2))
    middle = _split_stage(net, "stage1", x, 32)
    deep = net.silu(net.conv_norm("down2", middle, 32, 32, 3, stride=2))
    levels = [net.silu(net.conv_norm("pyramid.in", deep, 32, 16))]
    for _ in range(3):
        pooled = net.op("MaxPool", levels[-1], kernel_shape=[5, 5], strides=[1, 1], pads=[2] * 4)
        levels.append(pooled)
    deep = net.silu(net.conv_norm("pyramid.out", net.concat(1, *levels), 64, 32))
    scales = net.constant([1, 1, 2, 2], np.float32)
    up = net.op("Resize", deep, None, scales, mode="nearest")
    merged = _split_stage(net, "stage2", net.concat(1, up, middle), 64)
    heads = [_boxes(net, "head1", merged, 64, 8 * 8), _boxes(net, "head2", deep, 32, 4 * 4)]
    boxes = net.op("Sigmoid", net.concat(1, *heads))
    return net.finish(boxes, ("batch", 3 * (64 + 16), 9))


def _split_stage(net: Builder, name: str, x: Value, width: int) -> Value:
    half = width // 2
    left, right = net.split(net.silu(net.conv_norm(f"{name}.in", x, width, width)), 1, half, half)
    inner = net.silu(net.conv_norm(f"{name}.inner", right, half, half, 3))
    x = net.concat(1, left, right, net.op("Add", right, inner))
    return net.silu(net.conv_norm(f"{name}.out", x, 3 * half, width))


def _boxes(net: Builder, name: str, x: Value, width: int, places: int) -> Value:
    """(n, 3 anchors x 9, h, w) -> (n, 3 * h * w, 9)."""
    x = net.conv(
        f"{name}.predict", net.silu(net.conv_norm(name, x, width, 32, 3)), 32, 27, bias=True
    )
    x = net.transpose(net.reshape(x, 0, 3, 9, places), 0, 1, 3, 2)
    return net.reshape(x, 0, 3 * places, 9)


# --- attention -------------------------------------------------------------------------------


def _heads(net: Builder, x: Value, length: int, heads: int, size: int) -> Value:
    """(n, t, heads * size) -> (n, heads, t, size)."""
    return net.transpose(net.reshape(x, -1, length, heads, size), 0, 2, 1, 3)


def _attend(net: Builder, parts: Sequence[Value], size: int, bias: Value | None = None) -> Value:
    """Query, key and value, each (n, heads, t, size) -> (n, heads, t, size)."""
    query, key, value = parts
    scores = net.op("MatMul", query, net.transpose(key, 0, 1, 3, 2))
    scores = net.op("Mul", scores, net.constant(size**-0.5, np.float32))
    if bias is not None:
        scores = net.op("Add", scores, bias)
    return net.op("MatMul", net.op("Softmax", scores, axis=-1), value)


def _joined(net: Builder, x: Value, length: int, width: int) -> Value:
    """(n, heads, t, size) -> (n, t, heads * size)."""
    return net.reshape(net.transpose(x, 0, 2, 1, 3), -1, length, width)


def _mlp(net: Builder, name: str, x: Value, width: int, hidden: int) -> Value:
    return net.linear(
        f"{name}.out", net.gelu(net.linear(f"{name}.in", x, width, hidden)), hidden, width
    )


def vit(fused: bool) -> onnx.ModelProto:
    """A vision transformer with a class token; queries, keys and values in one matrix or three."""
    net = Builder("vit_fused" if fused else "vit_separate")
    width, heads, length = 32, 4, 17
    image = _images(net)
    kernel = net.weight("patch.weight", width, 3, 8, 8, fan_in=192)
    x = net.op("Conv", image, kernel, kernel_shape=[8, 8], strides=[8, 8])
    x = net.transpose(net.reshape(x, 0, width, length - 1), 0, 2, 1)
    batch = net.op("Shape", image, start=0, end=1)
    shape = net.concat(0, batch, net.constant([1, width]))
    x = net.concat(1, net.op("Expand", net.weight("token", 1, 1, width, fan_in=2), shape), x)
    x = net.op("Add", x, net.weight("position", 1, length, width, fan_in=2))
    for block in range(2):
        y = net.layer_norm(f"block{block}.norm1", x, width)
        parts = (_qkv_fused if fused else _qkv)(net, f"block{block}", y, length, heads, width)
        y = _joined(net, _attend(net, parts, width // heads), length, width)
        x = net.op("Add", x, net.linear(f"block{block}.merge", y, width, width))
        y = net.layer_norm(f"block{block}.norm2", x, width)
        x = net.op("Add", x, _mlp(net, f"block{block}.mlp", y, width, 64))
    token = net.op("Gather", net.layer_norm("norm", x, width), net.constant(0), axis=1)
    return _classified(net, token, width)


def _qkv(net: Builder, name: str, x: Value, length: int, heads: int, width: int) -> list[Value]:
    parts = [net.linear(f"{name}.{part}", x, width, width) for part in ("query", "key", "value")]
    return [_heads(net, part, length, heads, width // heads) for part in parts]


def _qkv_fused(
    net: Builder, name: str, x: Value, length: int, heads: int, width: int
) -> list[Value]:
    """(n, t, 3 * heads * size) -> 3 x (n, heads, t, size)."""
    x = net.linear(f"{name}.qkv", x, width, 3 * width)
    x = net.transpose(net.reshape(x, -1, length, 3, heads, width // heads), 2, 0, 3, 1, 4)
    return [net.op("Gather", x, net.constant(part), axis=0) for part in range(3)]


def swin() -> onnx.ModelProto:
    """Attention within windows of a feature map, shifted in every second block."""
    net = Builder("swin")
    width, heads, side, window = 24, 3, 8, 4
    x = net.conv("patch", _images(net), 3, width, 3, stride=4)
    x = net.layer_norm("norm0", net.transpose(x, 0, 2, 3, 1), width)
    for block in range(2):
        name = f"block{block}"
        y = net.layer_norm(f"{name}.norm1", x, width)
        y = _rolled(net, y, side, block * window // 2)
        y = _windows(net, y, side, window, width)
        parts = _qkv_fused(net, name, y, window**2, heads, width)
        bias = _position_bias(net, name, heads, window)
        y = _joined(net, _attend(net, parts, width // heads, bias), window**2, width)
        y = net.linear(f"{name}.merge", y, width, width)
        y = _rolled(net, _merged(net, y, side, window, width), side, side - block * window // 2)
        x = net.op("Add", x, y)
        y = net.layer_norm(f"{name}.norm2", x, width)
        x = net.op("Add", x, _mlp(net, f"{name}.mlp", y, width, 48))
    features = net.op(
        "ReduceMean", net.layer_norm("norm", x, width), net.constant([1, 2]), keepdims=0
    )
    return _classified(net, features, width)


def _rolled(net: Builder, x: Value, side: int, by: int) -> Value:
    if by in (0, side):
        return x
    for axis in (1, 2):
        x = net.concat(axis, net.slice(x, axis, by, side), net.slice(x, axis, 0, by))
    return x


def _windows(net: Builder, x: Value, side: int, window: int, width: int) -> Value:
    """(n, side, side, c) -> (n * windows, window * window, c)."""
    count = side // window
    x = net.reshape(x, -1, count, window, count, window, width)
    return net.reshape(net.transpose(x, 0, 1, 3, 2, 4, 5), -1, window**2, width)


def _merged(net: Builder, x: Value, side: int, window: int, width: int) -> Value:
    count = side // window
    x = net.reshape(x, -1, count, count, window, window, width)
    return net.reshape(net.transpose(x, 0, 1, 3, 2, 4, 5), -1, side, side, width)


def _position_bias(net: Builder, name: str, heads: int, window: int) -> Value:
    """(1, heads, t, t), looked up in a table by the distance of two places."""
    places = np.stack(np.meshgrid(*[np.arange(window)] * 2, indexing="ij")).reshape(2, -1)
    distance = places[:, :, None] - places[:, None, :] + window - 1
    index = distance[0] * (2 * window - 1) + distance[1]
    table = net.weight(f"{name}.bias_table", (2 * window - 1) ** 2, heads, fan_in=8)
    bias = net.op("Gather", table, net.constant(index), axis=0)
    return net.op("Unsqueeze", net.transpose(bias, 2, 0, 1), net.constant([0]))


# --- text ------------------------------------------------------------------------------------


def _embedded(net: Builder, tokens: Value, width: int) -> tuple[Value, Value]:
    """Embeddings, and their table."""
    table = net.weight("embedding", WORDS, width, fan_in=2)
    return net.op("Gather", table, tokens, axis=0), table


def decoder() -> onnx.ModelProto:
    """A language model: RMSNorm, query heads that share keys and values, gated MLP, tied head."""
    net = Builder("decoder")
    width, heads, shared, size, length = 32, 4, 2, 8, 12
    x, table = _embedded(net, net.input("tokens", ("batch", length), np.int64), width)
    mask = net.constant(np.triu(np.full((length, length), -1e4), 1), np.float32)
    for block in range(2):
        name = f"block{block}"
        y = net.rms_norm(f"{name}.norm1", x, width)
        query = net.linear(f"{name}.query", y, width, heads * size, bias=False)
        key = net.linear(f"{name}.key", y, width, shared * size, bias=False)
        value = net.linear(f"{name}.value", y, width, shared * size, bias=False)
        key, value = (
            _repeated(net, _heads(net, part, length, shared, size), heads // shared, length, size)
            for part in (key, value)
        )
        y = _attend(net, (_heads(net, query, length, heads, size), key, value), size, mask)
        y = _joined(net, y, length, heads * size)
        x = net.op("Add", x, net.linear(f"{name}.merge", y, heads * size, width, bias=False))
        y = net.rms_norm(f"{name}.norm2", x, width)
        gate = net.silu(net.linear(f"{name}.gate", y, width, 64, bias=False))
        y = net.op("Mul", gate, net.linear(f"{name}.up", y, width, 64, bias=False))
        x = net.op("Add", x, net.linear(f"{name}.down", y, 64, width, bias=False))
    x = net.op("MatMul", net.rms_norm("norm", x, width), net.transpose(table, 1, 0))
    return net.finish(x, ("batch", length, WORDS))


def _repeated(net: Builder, x: Value, times: int, length: int, size: int) -> Value:
    """(n, shared, t, size) -> (n, shared * times, t, size)."""
    x = net.op("Unsqueeze", x, net.constant([2]))
    x = net.op("Expand", x, net.constant([1, 1, times, 1, 1]))
    return net.reshape(x, 0, -1, length, size)


def mixture() -> onnx.ModelProto:
    """Blocks of experts: all run, and a router weighs what they say."""
    net = Builder("mixture")
    width, experts, hidden, length = 32, 6, 48, 10
    x, _ = _embedded(net, net.input("tokens", ("batch", length), np.int64), width)
    for block in range(2):
        name = f"block{block}"
        share = net.op("Softmax", net.linear(f"{name}.router", x, width, experts), axis=-1)
        up = net.weight(f"{name}.up", experts, width, hidden, fan_in=width)
        down = net.weight(f"{name}.down", experts, hidden, width, fan_in=hidden)
        y = net.op("Relu", net.op("Einsum", x, up, equation="ntd,edf->netf"))
        if block:
            y = net.op("Einsum", y, down, share, equation="netf,efd,nte->ntd")
        else:
            y = net.op("Einsum", y, down, equation="netf,efd->netd")
            y = net.op("Einsum", y, share, equation="netd,nte->ntd")
        x = net.op("Add", x, y)
    return net.finish(net.linear("head", x, width, 10), ("batch", length, 10))


def routed() -> onnx.ModelProto:
    """Blocks of experts of which a router picks two for each token.

    The first takes shares of all, ranks them, and looks up the weights of the best; the second
    ranks first, and runs all experts for what few of them say.
    """
    net = Builder("routed")
    width, experts, hidden, length, best = 32, 6, 48, 10, 2
    x, _ = _embedded(net, net.input("tokens", ("batch", length), np.int64), width)
    for block in range(2):
        name = f"block{block}"
        share = net.linear(f"{name}.router", x, width, experts, bias=False)
        up = net.weight(f"{name}.up", experts, width, hidden, fan_in=width)
        down = net.weight(f"{name}.down", experts, hidden, width, fan_in=hidden)
        if block:
            share, which = net.ops("TopK", 2, share, net.constant([best]))
            share = net.op("Unsqueeze", net.op("Softmax", share), net.constant([2]))
            ends = net.constant([0, 1], np.float32)
            which = net.op("OneHot", which, net.constant(experts), ends)  # (n, t, best, experts)
            share = net.op("Squeeze", net.op("MatMul", share, which), net.constant([2]))
            y = net.op("Relu", net.op("Einsum", x, up, equation="ntd,edf->netf"))
            y = net.op("Einsum", y, down, share, equation="netf,efd,nte->ntd")
        else:
            share, which = net.ops("TopK", 2, net.op("Softmax", share), net.constant([best]))
            share = net.op("Div", share, net.op("ReduceSum", share, net.constant([-1])))
            y = net.op("Unsqueeze", x, net.constant([2, 3]))  # (n, t, 1, 1, width)
            y = net.op("Relu", net.op("MatMul", y, net.op("Gather", up, which)))
            y = net.op(
                "Squeeze", net.op("MatMul", y, net.op("Gather", down, which)), net.constant([3])
            )
            y = net.op("Mul", y, net.op("Unsqueeze", share, net.constant([3])))
            y = net.op("ReduceSum", y, net.constant([2]), keepdims=0)
        x = net.op("Add", x, y)
    return net.finish(net.linear("head", x, width, 10), ("batch", length, 10))


def recurrent(kind: str) -> onnx.ModelProto:
    """Two recurrent layers over embeddings, the first in both directions; mean over time."""
    net = Builder(kind.lower())
    length, width, hidden = 12, 16, 24
    x, _ = _embedded(net, net.input("tokens", ("batch", length), np.int64), width)
    x = net.transpose(x, 1, 0, 2)  # (t, n, c)
    for layer, directions in enumerate((2, 1)):
        gates = {"LSTM": 4, "GRU": 3}[kind] * hidden
        parts = [
            net.weight(f"layer{layer}.input", directions, gates, width, fan_in=2 * width),
            net.weight(f"layer{layer}.state", directions, gates, hidden, fan_in=2 * hidden),
            net.weight(f"layer{layer}.bias", directions, 2 * gates, fan_in=200),
        ]
        direction = "bidirectional" if directions == 2 else "forward"
        y = net.op(kind, x, *parts, hidden_size=hidden, direction=direction)
        y = net.transpose(y, 0, 2, 1, 3)  # (t, d, n, h) -> (t, n, d, h)
        x, width = net.reshape(y, 0, 0, directions * hidden), directions * hidden
    return _classified(net, net.op("ReduceMean", x, net.constant([0]), keepdims=0), width)


TOPOLOGIES: dict[str, Callable[[], onnx.ModelProto]] = {
    "resnet": resnet,
    "resnext": resnext,
    "densenet": densenet,
    "mobilenet": mobilenet,
    "shufflenet": shufflenet,
    "unet": unet,
    "convnext": convnext,
    "yolo": yolo,
    "mixture": mixture,
    "routed": routed,
    "vit_fused": partial(vit, fused=True),
    "vit_separate": partial(vit, fused=False),
    "swin": swin,
    "decoder": decoder,
    "lstm": partial(recurrent, "LSTM"),
    "gru": partial(recurrent, "GRU"),
}
