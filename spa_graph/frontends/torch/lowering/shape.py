"""Operators that rename, merge, cut, repeat, join, pick or generate; and reductions."""

from __future__ import annotations

from typing import Any

import numpy as np

from spa_graph.frontends.torch.lowering.base import (
    ATTRIBUTES,
    LOWERINGS,
    AtenCall,
    Fill,
    Lowered,
    Lowering,
    is_symbolic,
    is_tensor,
    lowers,
)

# --- axes ------------------------------------------------------------------------------------


@lowers("view", "reshape", "_unsafe_view", "unflatten")
def view(call: AtenCall) -> Lowered | None:
    argument = next((n for n in ("size", "shape", "sizes") if n in call.arguments), None)
    if argument is None:
        return None  # as another type
    if argument == "sizes":
        return Lowered("Reshape", [call["self"]], {"from": call.axis("self")}, sizes=argument)
    return Lowered("Reshape", [call["self"]], sizes=argument)


@lowers("flatten", "unsqueeze", "view_as", "reshape_as")
def flatten(call: AtenCall) -> Lowered:
    return Lowered("Reshape", [call["self"]])


@lowers("squeeze")
def squeeze(call: AtenCall) -> Lowered:
    """Unlike ONNX's, it takes axes of more elements too, and leaves them alone."""
    return Lowered("Squeeze", [call["self"]])


@lowers("permute", "transpose", "t", "numpy_T", "movedim", "swapaxes")
def transpose(call: AtenCall) -> Lowered:
    rank = call.rank("self")
    order = list(range(rank))
    if "dims" in call.arguments:
        order = [int(axis) % rank for axis in call["dims"]]
    elif "dim0" in call.arguments:
        first, second = (int(call[name]) % rank for name in ("dim0", "dim1"))
        order[first], order[second] = second, first
    elif "source" in call.arguments:
        order = _moved(rank, call["source"], call["destination"])
    else:
        order.reverse()
    return Lowered("Transpose", [call["self"]], {"perm": order})


def _moved(rank: int, source: Any, destination: Any) -> list[int]:
    pairs = zip(np.atleast_1d(source), np.atleast_1d(destination), strict=True)
    placed = {int(target) % rank: int(origin) % rank for origin, target in pairs}
    rest = iter([axis for axis in range(rank) if axis not in placed.values()])
    return [placed[axis] if axis in placed else next(rest) for axis in range(rank)]


@lowers("expand")
def expand(call: AtenCall) -> Lowered:
    return Lowered("Expand", [call["self"]], sizes="size")


LOWERINGS["expand_as"] = LOWERINGS["broadcast_to"] = lambda call: Lowered("Expand", [call["self"]])


@lowers("repeat")
def repeat(call: AtenCall) -> Lowered | None:
    if call.rank("self") != len(call["repeats"]):
        return None
    return Lowered("Tile", [call["self"], tuple(call["repeats"])])


@lowers("repeat_interleave")
def repeat_interleave(call: AtenCall) -> Lowered | None:
    """Every element several times, one behind the other."""
    if type(call.get("repeats")) is not int or call["dim"] is None:
        return None
    axis = {"dim": call.axis("self"), "repeats": call["repeats"]}
    return Lowered("repeat_interleave", [call["self"]], axis, domain="aten")


# --- joining and cutting ---------------------------------------------------------------------


@lowers("cat", "concat")
def cat(call: AtenCall) -> Lowered:
    tensors = list(call["tensors"])
    return Lowered("Concat", tensors, {"axis": call["dim"]})


@lowers("stack")
def stack(call: AtenCall) -> Lowered:
    return Lowered("stack", list(call["tensors"]), {"dim": call["dim"]}, domain="aten")


@lowers("split", "split_with_sizes", "chunk", "tensor_split")
def split(call: AtenCall) -> Lowered | None:
    argument = {"split_size", "split_sizes", "chunks"} & call.arguments.keys()
    if not argument:
        return None
    axis, parts = call.axis("self"), call.result
    sizes = {str(part.shape[axis]) for part in parts}  # symbols can be compared as text only
    equal = argument != {"split_sizes"} and len(sizes) == 1
    return Lowered(
        "even_split" if equal and call.even else "Split",
        [call["self"]],
        {"axis": axis},
        domain="aten" if equal and call.even else "",
        version=ATTRIBUTES,
        outputs=len(parts),
        sizes=argument.pop(),
    )


@lowers("unbind")
def unbind(call: AtenCall) -> Lowered:
    axis = {"dim": call.axis("self")}
    return Lowered("unbind", [call["self"]], axis, domain="aten", outputs=len(call.result))


@lowers("slice")
def slice_(call: AtenCall) -> Lowered:
    start, end = (call[name] for name in ("start", "end"))
    bounds = [(0 if start is None else start,), (2**63 - 1 if end is None else end,)]
    return Lowered(
        "Slice",
        [call["self"], *bounds, (call.axis("self"),), (call["step"],)],
        arguments={1: "start", 2: "end"},
    )


@lowers("narrow")
def narrow(call: AtenCall) -> Lowered | None:
    start, length = call["start"], call["length"]
    if is_symbolic(start) or is_symbolic(length) or is_tensor(start):
        return None
    return Lowered("Slice", [call["self"], (start,), (start + length,), (call.axis("self"),), (1,)])


@lowers("select", "index_select")
def select(call: AtenCall) -> Lowered:
    axis = {"axis": call.axis("self")}
    return Lowered("Gather", [call["self"], call["index"]], axis, arguments={1: "index"})


@lowers("index")
def index(call: AtenCall) -> Lowered | None:
    """x[:, positions]: one tensor of positions."""
    given = [(axis, each) for axis, each in enumerate(call["indices"]) if each is not None]
    if len(given) != 1 or not given[0][1].meta["val"].dtype.is_signed:  # a mask, or several
        return None
    ((axis, positions),) = given
    return Lowered("Gather", [call["self"], positions], {"axis": axis}, arguments={1: "indices"})


@lowers("gather")
def gather(call: AtenCall) -> Lowered:
    return Lowered("GatherElements", [call["self"], call["index"]], {"axis": call["dim"]})


@lowers("scatter", "scatter_add")
def scatter(call: AtenCall) -> Lowered | None:
    if not is_tensor(call.get("src")):
        return None
    operands = [call["self"], call["index"], call["src"]]
    return Lowered("ScatterElements", operands, {"axis": call["dim"]})


@lowers("slice_scatter")
def slice_scatter(call: AtenCall) -> Lowered:
    return Lowered(
        "slice_scatter", [call["self"], call["src"]], {"dim": call["dim"]}, domain="aten"
    )


@lowers("pad", "constant_pad_nd")
def pad(call: AtenCall) -> Lowered | None:
    """PyTorch lists (before, after) from the last axis on, ONNX all before, then all after."""
    given, rank = list(call["pad"]), call.rank("self")
    if any(is_symbolic(amount) for amount in given):
        return None
    given += [0] * (2 * rank - len(given))
    before, after = given[0::2][::-1], given[1::2][::-1]
    mode, value = call.get("mode", "constant"), call.get("value")
    attributes = {"pads": [*before, *after], "mode": mode, "value": value or 0.0}
    return Lowered("Pad", [call["self"]], attributes, version=2)


@lowers("roll", "flip")
def roll(call: AtenCall) -> Lowered | None:
    """The axes along which elements change places."""
    dims = call["dims"]
    if not isinstance(dims, list | tuple) or not len(dims):
        return None  # of the flat tensor
    axes = {"dims": [int(axis) % call.rank("self") for axis in dims]}
    return Lowered("roll", [call["self"]], axes, domain="aten")


@lowers("tril", "triu")
def triangle(call: AtenCall) -> Lowered:
    return Lowered("Trilu", [call["self"]])


# --- generated values ------------------------------------------------------------------------


def _fill(value: float) -> Lowering:
    def lower(call: AtenCall) -> Lowered:
        filled = Fill(call.get("fill_value", value))
        return Lowered("ConstantOfShape", [], {"value": filled}, sizes="size")

    return lower


for _name in ("zeros", "new_zeros"):
    LOWERINGS[_name] = _fill(0)
for _name in ("ones", "new_ones", "full", "new_full", "empty", "new_empty", "scalar_tensor"):
    LOWERINGS[_name] = _fill(1)
LOWERINGS["arange"] = lambda _call: Lowered("Range", [])

# --- reductions ------------------------------------------------------------------------------

_REDUCTIONS = {
    "mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin",
    "prod": "ReduceProd", "var": "ReduceMean", "std": "ReduceMean", "logsumexp": "ReduceLogSumExp",
    "any": "ReduceMax", "all": "ReduceMin", "linalg_vector_norm": "ReduceL2",
}  # fmt: skip


def _reduction(op_type: str) -> Lowering:
    def lower(call: AtenCall) -> Lowered:
        dims = call.get("dim")
        axes = None if dims is None else [int(axis) for axis in np.atleast_1d(dims)]
        return Lowered(op_type, [call["self"]], {"axes": axes}, version=ATTRIBUTES)

    return lower


for _name, _op_type in _REDUCTIONS.items():
    LOWERINGS[_name] = _reduction(_op_type)


@lowers("max", "min")
def extremum(call: AtenCall) -> Lowered | None:
    """Of all elements, of two tensors, or along an axis, then with positions."""
    op_type = "Max" if "max" in call.node.target._schema.name else "Min"  # type: ignore[union-attr]
    if is_tensor(call.get("other")):
        return Lowered(op_type, [call["self"], call["other"]])
    if "dim" not in call.arguments:
        return Lowered(f"Reduce{op_type}", [call["self"]], {"axes": None}, version=ATTRIBUTES)
    return Lowered("extremum", [call["self"]], {"dim": call.axis("self")}, domain="aten", outputs=2)


@lowers("argmax", "argmin")
def argmax(call: AtenCall) -> Lowered | None:
    if call["dim"] is None:
        return None
    return Lowered("ArgMax", [call["self"]], {"axis": call["dim"]})


@lowers("topk", "sort")
def topk(call: AtenCall) -> Lowered:
    count = call.get("k")
    k = {} if count is None or is_symbolic(count) else {"k": count}
    return Lowered("TopK", [call["self"]], {"axis": call["dim"], **k}, outputs=2)


@lowers("argsort")
def argsort(call: AtenCall) -> Lowered:
    return Lowered("TopK", [call["self"]], {"axis": call["dim"]})


@lowers("cumsum")
def cumsum(call: AtenCall) -> Lowered:
    return Lowered("CumSum", [call["self"], call["dim"]])


@lowers("one_hot")
def one_hot(call: AtenCall) -> Lowered:
    return Lowered("OneHot", [call["self"]], {"axis": -1}, arguments={1: "num_classes"})
