"""ONNX operators in torch: one function each, from operands to results.

A function takes the operator's call (attributes, version) and its operands by position; an absent
optional one is None. What it can't do it refuses by name. Results equal ONNX Runtime's to float
tolerance, and can be differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from spa_graph.errors import ModelError


@dataclass(frozen=True, slots=True)
class Call:
    """One operator: its name for messages, attributes, version and number of outputs."""

    name: str
    attributes: Mapping[str, Any]
    version: int
    outputs: int
    training: bool = False

    def get(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def axis(self, tensor: Tensor, default: int) -> int:
        return int(self.get("axis", default)) % max(tensor.ndim, 1)

    def only(self, **wanted: Any) -> None:
        """Refuse attributes that have other values.

        Raises:
            ModelError: one has.
        """
        for key, value in wanted.items():
            if self.get(key, value) != value:
                raise ModelError(f"{self.name}: {key}={self.get(key)} can't be run in torch yet")


Operator = Callable[..., Any]
OPERATORS: dict[str, Operator] = {}


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Register how operator types are run."""

    def register(function: Operator) -> Operator:
        for name in names:
            if name in OPERATORS:
                raise ValueError(f"two functions for {name}")
            OPERATORS[name] = function
        return function

    return register


def _table(functions: Mapping[str, Callable[..., Any]]) -> None:
    for name, function in functions.items():
        operator(name)(lambda _call, *operands, _run=function: _run(*operands))


# --- element by element -----------------------------------------------------------------------


def _divide(x: Tensor, y: Tensor) -> Tensor:
    whole = not x.is_floating_point()
    return torch.div(x, y, rounding_mode="trunc") if whole else torch.div(x, y)


def _power(x: Tensor, y: Tensor) -> Tensor:
    return torch.pow(x, y).to(x.dtype)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def run(first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = function(first, other)
        return first

    return run


_table(
    {
        "Abs": torch.abs, "Neg": torch.neg, "Exp": torch.exp, "Log": torch.log, "Erf": torch.erf,
        "Sqrt": torch.sqrt, "Reciprocal": torch.reciprocal, "Sin": torch.sin, "Cos": torch.cos,
        "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round, "Sign": torch.sign,
        "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Relu": torch.relu,
        "Softplus": functional.softplus, "Softsign": functional.softsign,
        "HardSwish": functional.hardswish, "Mish": functional.mish, "Not": torch.logical_not,
        "IsNaN": torch.isnan, "Identity": torch.clone, "Selu": functional.selu, "Tan": torch.tan,
        "Sinh": torch.sinh, "Cosh": torch.cosh, "Asin": torch.asin, "Acos": torch.acos,
        "Atan": torch.atan, "Asinh": torch.asinh, "Acosh": torch.acosh, "Atanh": torch.atanh,
        "Mean": lambda *operands: _fold(torch.add)(*operands) / len(operands),
        "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": _divide, "Pow": _power,
        "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
        "Equal": torch.eq, "Less": torch.lt, "Greater": torch.gt, "LessOrEqual": torch.le,
        "GreaterOrEqual": torch.ge, "Where": torch.where, "MatMul": torch.matmul,
        "Max": _fold(torch.maximum), "Min": _fold(torch.minimum), "Sum": _fold(torch.add),
        "Size": lambda x: torch.tensor(x.numel(), device=x.device),
        "GlobalMaxPool": lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True),
        "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
        "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    }
)  # fmt: skip


@operator("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, call.get("alpha", 0.01))


@operator("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    return functional.elu(x, call.get("alpha", 1.0))


@operator("Gelu")
def gelu(call: Call, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=call.get("approximate", "none"))


@operator("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return (call.get("alpha", 0.2) * x + call.get("beta", 0.5)).clamp(0, 1)


@operator("Clip")
def clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    if call.version < 11:
        return x.clamp(call.get("min"), call.get("max"))
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


@operator("Softmax", "LogSoftmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    """Before version 13 over all axes from `axis` on."""
    run = torch.log_softmax if call.name.startswith("Log") else torch.softmax
    axis = call.axis(x, -1 if call.version >= 13 else 1)
    if call.version >= 13:
        return run(x, axis)
    return run(x.flatten(axis), -1).reshape(x.shape)


@operator("Cast")
def cast(call: Call, x: Tensor) -> Tensor:
    return x.to(_dtype(call.get("to")))


@operator("CastLike")
def cast_like(_call: Call, x: Tensor, other: Tensor) -> Tensor:
    return x.to(other.dtype)


@operator("Dropout")
def dropout(call: Call, x: Tensor, ratio: Tensor | None = None, _mode: Any = None) -> Tensor:
    share = call.get("ratio", 0.5) if ratio is None else float(ratio)
    return functional.dropout(x, share, training=call.training)


def _dtype(code: Any) -> torch.dtype:
    return torch.from_numpy(np.empty(0, ir.DataType(code).numpy())).dtype


# --- linear algebra and convolution -----------------------------------------------------------


@operator("Gemm")
def gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if call.get("transA", 0) else a
    b = b.T if call.get("transB", 0) else b
    product = call.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + call.get("beta", 1.0) * c


@operator("Einsum")
def einsum(call: Call, *operands: Tensor) -> Tensor:
    return torch.einsum(call.get("equation"), *operands)


def _window(call: Call, rank: int) -> tuple[list[int], list[int]]:
    """Strides and dilations."""
    ones = [1] * rank
    return list(call.get("strides", ones)), list(call.get("dilations", ones))


def padding(call: Call, x: Tensor, kernel: Sequence[int]) -> list[int]:
    """What is added before and behind each spatial axis, as torch's pad takes it: last first."""
    rank = len(kernel)
    strides, dilations = _window(call, rank)
    mode = call.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return [0] * (2 * rank)
    if mode == "NOTSET":
        pads = list(call.get("pads", [0] * (2 * rank)))
        both = list(zip(pads[:rank], pads[rank:], strict=True))
    else:
        both = []
        for size, window, stride, dilation in zip(
            x.shape[2:], kernel, strides, dilations, strict=True
        ):
            steps = -(-size // stride)
            total = max((steps - 1) * stride + (window - 1) * dilation + 1 - size, 0)
            less, more = total // 2, total - total // 2
            both.append((less, more) if mode == "SAME_UPPER" else (more, less))
    return [size for pair in reversed(both) for size in pair]


@operator("Conv")
def conv(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    rank = w.ndim - 2
    strides, dilations = _window(call, rank)
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    pads = padding(call, x, w.shape[2:])
    if pads[::2] == pads[1::2]:
        return run(x, w, b, strides, pads[::-2], dilations, call.get("group", 1))
    return run(functional.pad(x, pads), w, b, strides, 0, dilations, call.get("group", 1))


@operator("ConvTranspose")
def conv_transpose(call: Call, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    call.only(auto_pad="NOTSET", output_shape=None)
    rank = w.ndim - 2
    strides, dilations = _window(call, rank)
    pads = padding(call, x, w.shape[2:])
    if pads[::2] != pads[1::2]:
        raise ModelError(f"{call.name}: uneven pads can't be run in torch yet")
    run = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[
        rank - 1
    ]
    extra = list(call.get("output_padding", [0] * rank))
    return run(x, w, b, strides, pads[::-2], extra, call.get("group", 1), dilations)


@operator("MaxPool")
def max_pool(call: Call, x: Tensor) -> Tensor:
    call.only(storage_order=0)
    kernel = list(call.get("kernel_shape"))
    strides, dilations = _window(call, len(kernel))
    run = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[len(kernel) - 1]
    x = functional.pad(x, padding(call, x, kernel), value=-math.inf)
    return run(x, kernel, strides, 0, dilations, bool(call.get("ceil_mode", 0)))


@operator("AveragePool")
def average_pool(call: Call, x: Tensor) -> Tensor:
    kernel = list(call.get("kernel_shape"))
    call.only(dilations=[1] * len(kernel))
    strides, _ = _window(call, len(kernel))
    run: Callable[..., Tensor] = (
        functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d,
    )[len(kernel) - 1]  # fmt: skip
    pads, ceil = padding(call, x, kernel), bool(call.get("ceil_mode", 0))
    sums = run(functional.pad(x, pads), kernel, strides, 0, ceil)
    inside = functional.pad(
        torch.ones_like(x[:1, :1]), pads, value=float(call.get("count_include_pad", 0))
    )
    return sums / run(inside, kernel, strides, 0, ceil)


# --- normalisation ----------------------------------------------------------------------------


@operator("BatchNormalization")
def batch_norm(call: Call, x: Tensor, *given: Tensor) -> Tensor:
    scale, bias, mean, variance = given
    momentum, epsilon = 1 - call.get("momentum", 0.9), call.get("epsilon", 1e-5)
    if call.get("training_mode", 0):  # in a file: always with the statistics of the batch
        return functional.batch_norm(x, None, None, scale, bias, True, momentum, epsilon)
    return functional.batch_norm(x, mean, variance, scale, bias, call.training, momentum, epsilon)


@operator("LayerNormalization")
def layer_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    shape = x.shape[call.axis(x, -1) :]
    bias = None if bias is None else bias.expand(shape)
    return functional.layer_norm(x, shape, scale.expand(shape), bias, call.get("epsilon", 1e-5))


@operator("RMSNormalization")
def rms_norm(call: Call, x: Tensor, scale: Tensor) -> Tensor:
    shape = x.shape[call.axis(x, -1) :]
    return functional.rms_norm(x, shape, scale.expand(shape), call.get("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=scale, bias=bias, eps=call.get("epsilon", 1e-5))


@operator("GroupNormalization")
def group_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = call.get("num_groups")
    if call.version < 21:  # one scale per group
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, call.get("epsilon", 1e-5))


# --- reductions -------------------------------------------------------------------------------

_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
    "ReduceLogSumExp": torch.logsumexp,
}


def _reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def run(call: Call, x: Tensor, given: Tensor | None = None) -> Tensor:
        axes = call.get("axes") if given is None else given.tolist()
        if not axes and call.get("noop_with_empty_axes", 0):
            return x.clone()
        keep = bool(call.get("keepdims", 1))
        return function(x, list(axes) if axes else list(range(x.ndim)), keep)

    return run


for _name, _function in _REDUCTIONS.items():
    operator(_name)(_reduction(_function))


@operator("ArgMax", "ArgMin")
def arg_max(call: Call, x: Tensor) -> Tensor:
    call.only(select_last_index=0)
    run = torch.argmax if call.name.startswith("ArgMax") else torch.argmin
    return run(x, call.axis(x, 0), bool(call.get("keepdims", 1)))


@operator("TopK")
def top_k(call: Call, x: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    largest, ordered = bool(call.get("largest", 1)), bool(call.get("sorted", 1))
    values, places = torch.topk(x, int(count), call.axis(x, -1), largest, ordered)
    return values, places


@operator("Trilu")
def trilu(call: Call, x: Tensor, shift: Tensor | None = None) -> Tensor:
    run = torch.triu if call.get("upper", 1) else torch.tril
    return run(x, 0 if shift is None else int(shift))


@operator("CumSum")
def cumulative(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    call.only(exclusive=0, reverse=0)
    return x.cumsum(int(axis))


# --- shapes -----------------------------------------------------------------------------------


@operator("Shape")
def shape(call: Call, x: Tensor) -> Tensor:
    sizes = x.shape[call.get("start", 0) : call.get("end")]
    return torch.tensor(sizes, dtype=torch.int64, device=x.device)


@operator("Reshape")
def reshape(call: Call, x: Tensor, given: Tensor) -> Tensor:
    sizes = given.tolist()
    if not call.get("allowzero", 0):
        sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    axis = int(call.get("axis", 1))
    return x.reshape(math.prod(x.shape[: axis % x.ndim if axis < 0 else axis]), -1)


@operator("Transpose")
def transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.get("perm", tuple(range(x.ndim))[::-1]))


def _axes(call: Call, given: Tensor | None) -> list[int] | None:
    found = call.get("axes") if given is None else given.tolist()
    return None if found is None else list(found)


@operator("Squeeze")
def squeeze(call: Call, x: Tensor, given: Tensor | None = None) -> Tensor:
    axes = _axes(call, given)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@operator("Unsqueeze")
def unsqueeze(call: Call, x: Tensor, given: Tensor | None = None) -> Tensor:
    axes = _axes(call, given) or []
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def concat(call: Call, *operands: Tensor) -> Tensor:
    return torch.cat(operands, call.get("axis"))


@operator("Split")
def split(call: Call, x: Tensor, given: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = call.axis(x, 0)
    sizes = call.get("split") if given is None else given.tolist()
    if sizes is None:
        sizes = -(-x.shape[axis] // call.get("num_outputs", call.outputs))
    return torch.split(x, sizes if isinstance(sizes, int) else list(sizes), axis)  # type: ignore[no-untyped-call]


@operator("Slice")
def slices(call: Call, x: Tensor, *given: Tensor | None) -> Tensor:
    names = ("starts", "ends", "axes", "steps")
    listed: list[Any] = [None if each is None else each.tolist() for each in given]
    found = dict(zip(names, listed, strict=False)) if listed else dict(call.attributes)
    starts, ends = found["starts"], found["ends"]
    axes = found.get("axes") or list(range(len(starts)))
    steps = found.get("steps") or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = range(x.shape[axis])[start:end:step]
        if step == 1:
            x = x.narrow(axis, places.start, len(places))
        else:
            x = x.index_select(axis, torch.tensor(places, device=x.device, dtype=torch.int64))
    return x


@operator("Gather")
def gather(call: Call, x: Tensor, index: Tensor) -> Tensor:
    axis = call.axis(x, 0)
    places = torch.where(index < 0, index + x.shape[axis], index)
    found = x.index_select(axis, places.reshape(-1))
    return found.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


@operator("GatherElements")
def gather_elements(call: Call, x: Tensor, index: Tensor) -> Tensor:
    axis = call.axis(x, 0)
    return x.gather(axis, torch.where(index < 0, index + x.shape[axis], index))


@operator("GatherND")
def gather_nd(call: Call, x: Tensor, index: Tensor) -> Tensor:
    call.only(batch_dims=0)
    return x[tuple(index.unbind(-1))]


@operator("Expand")
def expand(_call: Call, x: Tensor, given: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(given.tolist())))


@operator("Tile")
def tile(_call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(repeats.tolist())


@operator("Range")
def number_range(_call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    found = torch.arange(start.item(), limit.item(), delta.item(), device=start.device)
    return found.to(start.dtype)


@operator("ConstantOfShape")
def constant_of_shape(call: Call, given: Tensor) -> Tensor:
    value = call.get("value")
    fill = np.zeros(1, np.float32) if value is None else value.numpy()
    whole = np.broadcast_to(fill.reshape(()), given.tolist())
    return torch.from_numpy(whole.copy()).to(given.device)


@operator("Pad")
def pad(call: Call, x: Tensor, *given: Tensor | None) -> Tensor:
    """Pads, the constant and axes are operands from versions 11 and 18 on."""
    amounts, constant, chosen = (*given, None, None, None)[:3]
    pads = call.get("pads") if amounts is None else amounts.tolist()
    axes = list(range(x.ndim)) if chosen is None else [a % x.ndim for a in chosen.tolist()]
    both = {axis: (pads[place], pads[place + len(axes)]) for place, axis in enumerate(axes)}
    order = [both.get(axis, (0, 0)) for axis in reversed(range(x.ndim))]
    mode = call.get("mode", "constant")
    if mode == "constant":
        value = call.get("value", 0.0) if constant is None else constant.item()
        return functional.pad(x, [size for pair in order for size in pair], value=value)
    while order and order[-1] == (0, 0):  # torch takes spatial axes only
        order.pop()
    mode = {"edge": "replicate", "wrap": "circular"}.get(mode, mode)
    return functional.pad(x, [size for pair in order for size in pair], mode=mode)


_RESIZES = {
    ("nearest", "asymmetric"): None,
    ("linear", "half_pixel"): False,
    ("linear", "pytorch_half_pixel"): False,
    ("linear", "align_corners"): True,
}
"""The modes and coordinates that torch has, and whether corners are aligned."""


@operator("Resize")
def resize(call: Call, x: Tensor, *given: Tensor | None) -> Tensor:
    _, scales, sizes = (*((None,) if call.version < 11 else ()), *given, None, None)[:3]
    mode = call.get("mode", "nearest")
    place = call.get("coordinate_transformation_mode", "half_pixel")
    nearest = mode != "nearest" or call.get("nearest_mode") == "floor"
    if (mode, place) not in _RESIZES or not nearest or call.get("axes"):
        raise ModelError(f"{call.name}: mode {mode} with {place} can't be run in torch yet")
    if sizes is not None:
        wanted = sizes.tolist()
    elif scales is not None:
        wanted = [int(s * f) for s, f in zip(x.shape, scales.tolist(), strict=True)]
    kind = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim] if mode == "linear" else mode
    corners = _RESIZES[mode, place]
    return functional.interpolate(x, wanted[2:], mode=kind, align_corners=corners)


@operator("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    call.only(mode="CRD")
    return functional.pixel_shuffle(x, call.get("blocksize"))


# --- recurrent --------------------------------------------------------------------------------


def _gates(stacked: Tensor, order: Sequence[int]) -> Tensor:
    """Gates along the first axis in torch's order."""
    parts = stacked.chunk(len(order))
    return torch.cat([parts[place] for place in order])


def _recurrent(call: Call, order: Sequence[int], given: Sequence[Any]) -> tuple[list[Tensor], bool]:
    """The weights of all directions as torch takes them, and whether there are two directions."""
    w, r, b, lengths = (*given, None, None)[:4]
    if lengths is not None:
        raise ModelError(f"{call.name}: sequence_lens can't be run in torch yet")
    call.only(layout=0, clip=None, activations=None, input_forget=0)
    if call.get("direction", "forward") == "reverse":
        raise ModelError(f"{call.name}: direction reverse can't be run in torch yet")
    found = []
    for direction in range(len(w)):
        both = (w.new_zeros(len(w), 2 * w.shape[1]) if b is None else b)[direction].chunk(2)
        found += [_gates(each, order) for each in (w[direction], r[direction], *both)]
    return found, len(w) == 2


def _sequence(y: Tensor, directions: int) -> Tensor:
    """(sequence, batch, directions * hidden) -> (sequence, directions, batch, hidden)."""
    return y.reshape(*y.shape[:-1], directions, -1).transpose(1, 2)


def _state(given: Tensor | None, x: Tensor, r: Tensor) -> Tensor:
    return x.new_zeros(len(r), x.shape[1], r.shape[2]) if given is None else given


@operator("LSTM")
def lstm(call: Call, x: Tensor, w: Tensor, r: Tensor, *given: Any) -> tuple[Tensor, ...]:
    b, lengths, hidden, cell, peepholes = (*given, *(None,) * 5)[:5]
    if peepholes is not None:
        raise ModelError(f"{call.name}: peepholes can't be run in torch yet")
    weights, two = _recurrent(call, (0, 2, 3, 1), (w, r, b, lengths))
    states = (_state(hidden, x, r), _state(cell, x, r))
    y, h, c = torch._VF.lstm(x, states, weights, True, 1, 0.0, False, two, False)  # type: ignore[attr-defined]
    return _sequence(y, len(w)), h, c


@operator("GRU")
def gru(call: Call, x: Tensor, w: Tensor, r: Tensor, *given: Any) -> tuple[Tensor, ...]:
    b, lengths, hidden = (*given, *(None,) * 3)[:3]
    if not call.get("linear_before_reset", 0):
        raise ModelError(f"{call.name}: linear_before_reset=0 can't be run in torch yet")
    weights, two = _recurrent(call, (1, 0, 2), (w, r, b, lengths))
    start = _state(hidden, x, r)
    y, h = torch._VF.gru(x, start, weights, True, 1, 0.0, False, two, False)  # type: ignore[attr-defined]
    return _sequence(y, len(w)), h
