"""Which stored weight of an ONNX model an array of another framework is, and what became of it.

Exporters rename and transpose weights, drop axes of one element, merge heads with their sizes, put
the gates of recurrent layers in ONNX's order and their directions into one weight, and fold the
scale of a normalisation into the kernel before it; the values stay. So an array is looked for by
its values: all in another order of axes, row by row, or up to a factor for each result. What is
found is where each of its elements is stored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spa_graph.errors import OptionError
from spa_graph.frontends.onnx import forms
from spa_graph.plan import AxisIndices, Plan

Array = NDArray[Any]
GivenPlan = Plan | Mapping[str, Any] | str | os.PathLike[str]
"""A plan, what its file holds, or the file."""
Places = NDArray[np.int64]
"""Where the elements of an array are in a weight, counted row by row; -1: nowhere."""
Kept = NDArray[np.int64] | None
"""The positions of an axis that stay; None: all."""
_CLOSE = 1e-4  # of a product in single precision
_LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_CELLS = frozenset({"LSTM", "GRU", "RNN"})


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """An array that an ONNX model stores, alone or with others in one weight.

    name: of the initializer.
    kept: per axis of the array.
    after: the pruned model's values in the array's layout, divided by `scale`.
    shift: what a refit added to the results that each element of `after` contributes to; None:
        nothing.
    scale: the factor that the exporter folded in, for each result before pruning; or None.
    """

    name: str
    kept: tuple[Kept, ...]
    after: Array
    shift: Array | None = None
    scale: Array | None = None


class StoredWeights:
    """The stored weights of a model before and after pruning, to be found by their values."""

    def __init__(self, original: object, pruned: object, plan: GivenPlan) -> None:
        self.before, self.after = (forms.take(model)[0] for model in (original, pruned))
        self.plan = _taken(plan)
        self._before = dict(_arrays(self.before))
        self._after = dict(_arrays(self.after))
        self._by_values: dict[bytes, list[str]] = {}
        for name, array in self._before.items():
            if array.size > 1 and array.dtype.kind == "f":
                self._by_values.setdefault(_values(array), []).append(name)
        # a weight may be what an operator gives that needs no input (zeros of some shape)
        given = (value.name for node in self.before.graph for value in node.outputs)
        known = {*self._before, *given}
        missing = [name for name in plan_names(self.plan) if name not in known]
        if missing:
            raise OptionError(f"the plan is for another network: it has no weight `{missing[0]}`")
        for name, cuts in self.plan.kept.items():
            if name in self._before and name in self._after:
                self._check(name, cuts)

    def _check(self, name: str, cuts: AxisIndices) -> None:
        """Whether the pruned model holds what the plan leaves of a weight."""
        before, after = self._before[name].shape, self._after[name].size
        enough = all(index is None or np.max(index) < before[axis] for axis, index in cuts.items())
        if not enough or sliced(_grid(self._before[name]), cuts).size != after:
            raise OptionError(
                f"`{name}` of the pruned model isn't what the plan leaves of the original's; give "
                "the original first, then the pruned model, and the plan of the two"
            )

    def find(self, array: Array) -> Match | None:
        """The weight with these values; None if there is none, or several that differ in what is
        kept of them (biases of zeros, say)."""
        names = self._by_values.get(_values(array), ())
        found = [self._match(name, _reordered(self._before[name], array)) for name in names]
        if not any(found) and array.ndim > 1:
            every = self._before.items()
            found = [self._match(name, _by_rows(stored, array)) for name, stored in every]
        matches = [match for match in found if match is not None]
        alike = all(_same(matches[0].kept, match.kept) for match in matches[1:])
        return matches[0] if matches and alike else None

    def find_scaled(self, array: Array, order: tuple[int, ...], result: int) -> Match | None:
        """The weight that is this array times a factor for each result.

        Args:
            order: the array's axes as the ONNX model has them.
            result: the array's axis that counts results.
        """
        turned = array.transpose(order)
        at = order.index(result)
        rows = np.moveaxis(turned, at, 0).reshape(turned.shape[at], -1)
        peak = np.abs(rows).argmax(1)
        every = np.arange(len(rows))
        for name, stored in self._before.items():
            if stored.shape != turned.shape or stored.dtype.kind != "f":
                continue
            other = np.moveaxis(stored, at, 0).reshape(rows.shape)
            with np.errstate(all="ignore"):
                scale = other[every, peak] / rows[every, peak]
            close = _CLOSE * np.abs(other).max(1, keepdims=True)
            if not (np.abs(rows * scale[:, None] - other) <= close).all():
                continue
            match = self._match(name, _grid(stored).transpose(np.argsort(order)))
            if match is not None:
                stays = match.kept[result]
                left = scale if stays is None else scale[stays]
                shape = [1] * array.ndim
                shape[result] = -1
                return replace(match, after=match.after / left.reshape(shape), scale=scale)
        return None

    def _match(self, name: str, places: Places | None) -> Match | None:
        """What became of the elements at these places of a weight; None if it is no array."""
        if places is None or name in self.plan.kept_per_use:
            return None
        before = self._before[name]
        cuts = self.plan.kept.get(name, {})
        after = self._after.get(name)
        if after is None:
            after = sliced(before, cuts)
        stays = sliced(_grid(before), cuts)
        if stays.size != after.size:
            raise OptionError(f"`{name}` of the pruned model isn't what the plan leaves of it")
        moved = np.full(before.size, -1)
        moved[stays.reshape(-1)] = np.arange(after.size)
        now = moved[places]
        kept = tuple(_kept(now >= 0, axis) for axis in range(now.ndim))
        left = sliced(now, dict(enumerate(kept)))
        if not left.size or (left < 0).any() or left.size != (now >= 0).sum():
            return None
        shift = self._shift(name, places, now, kept)
        return Match(name, kept, after.reshape(-1)[left], shift)

    def _shift(
        self, name: str, places: Places, now: Places, kept: tuple[Kept, ...]
    ) -> Array | None:
        """What a refit added to the results that the elements of a weight contribute to."""
        new = _bias(self.after, name)
        if new is None:
            return None
        cuts = dict(enumerate(kept))
        added = new.reshape(-1)[sliced(now, cuts)]
        old = _bias(self.before, name)
        if old is not None:
            added = added - old.reshape(-1)[sliced(places, cuts)]
        return added if added.any() else None


def _taken(plan: GivenPlan) -> Plan:
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, Mapping):
        return Plan.from_json(plan)
    if isinstance(plan, str | os.PathLike):
        return Plan.load(Path(plan))
    raise OptionError(
        f"a {type(plan).__name__} is no plan; give `result.plan`, or the file that --plan wrote"
    )


def plan_names(plan: Plan) -> list[str]:
    """The weights that a plan lists."""
    return [*plan.kept, *plan.kept_per_use]


def sliced(array: Array, kept: Mapping[int, Kept] | AxisIndices) -> Array:
    """What stays of an array."""
    for axis, index in kept.items():
        if index is not None:
            array = array.take(index, axis)
    return array


def _arrays(model: ir.Model) -> Iterator[tuple[str, Array]]:
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            yield str(value.name), value.const_value.numpy()
    for node in model.graph:
        tensor = node.attributes.get("value") if node.op_type == "Constant" else None
        if tensor is not None and tensor.type == ir.AttributeType.TENSOR:
            yield str(node.outputs[0].name), tensor.as_tensor().numpy()


def _values(array: Array) -> bytes:
    """The same for all arrays of the same values, in whatever order."""
    return np.sort(array.reshape(-1)).tobytes()


def _grid(weight: Array) -> Places:
    return np.arange(weight.size).reshape(weight.shape)


def _reordered(stored: Array, array: Array) -> Places | None:
    """Where the elements are if some order of the stored axes gives the array, up to its shape."""
    grid = _grid(stored).squeeze()
    for order in permutations(range(grid.ndim)):
        places = grid.transpose(order).reshape(array.shape)
        if np.array_equal(stored.reshape(-1)[places], array):
            return places
    return None


def _by_rows(stored: Array, array: Array) -> Places | None:
    """Where the elements are if each row of the array along some axis is one of the stored rows.

    So gates may be in any order, and other arrays may be stored beside this one.
    """
    if array.size > stored.size or array.dtype != stored.dtype:
        return None
    for own in sorted(range(array.ndim), key=lambda axis: -array.shape[axis]):
        wanted = _rows(array, own)
        for axis, size in enumerate(stored.shape):
            if size != wanted.shape[1] or not (stored.take(0, axis) == wanted[0, 0]).any():
                continue
            places = _positions(_rows(stored, axis), wanted)
            if places is not None:
                elements = _rows(_grid(stored), axis)[places]
                shape = np.moveaxis(array, own, -1).shape
                return np.moveaxis(elements.reshape(shape), -1, own)
    return None


def _rows(array: Array, axis: int) -> Array:
    """All vectors along an axis; (vectors, size)."""
    return np.ascontiguousarray(np.moveaxis(array, axis, -1)).reshape(-1, array.shape[axis])


def _positions(rows: Array, wanted: Array) -> Places | None:
    """Which row each wanted one is; None if one is missing, or there several times."""
    known: dict[bytes, list[int]] = {}
    for position, row in enumerate(rows):
        known.setdefault(row.tobytes(), []).append(position)
    found = [known.get(row.tobytes(), []) for row in wanted]
    if any(len(each) != 1 for each in found):
        return None
    return np.array([each[0] for each in found])


def _kept(stays: NDArray[np.bool_], axis: int) -> Kept:
    """The positions of an axis at which anything stays."""
    some = stays.any(tuple(other for other in range(stays.ndim) if other != axis))
    return None if some.all() else np.flatnonzero(some)


def _same(first: tuple[Kept, ...], second: tuple[Kept, ...]) -> bool:
    return all(
        a is b or (a is not None and b is not None and np.array_equal(a, b))
        for a, b in zip(first, second, strict=True)
    )


# --- biases ---------------------------------------------------------------------------------------


def _bias(model: ir.Model, weight: str) -> Array | None:
    """The stored bias of the layer that reads a weight, at each element of the weight."""
    value = model.graph.initializers.get(weight)
    if value is None or value.const_value is None:
        return None
    shape = value.const_value.numpy().shape
    for node, slot in value.uses():
        bias = _bias_of_cell(node, slot) if node.op_type in _CELLS else _bias_of(node, slot, shape)
        if bias is not None:
            return np.broadcast_to(bias, shape)
    return None


def _bias_of_cell(node: ir.Node, slot: int) -> Array | None:
    """Of the input's weight (directions, gates x hidden, in), or of the state's in slot 2."""
    bias = node.inputs[3] if len(node.inputs) > 3 else None
    if slot not in (1, 2) or bias is None or bias.const_value is None:
        return None
    halves = np.split(bias.const_value.numpy(), 2, axis=1)
    return halves[slot - 1][:, :, None]


def _bias_of(node: ir.Node, slot: int, shape: tuple[int, ...]) -> Array | None:
    """Of a convolution or a product with a matrix."""
    if slot != 1 or node.op_type not in _LINEAR:
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else _added(node)
    if bias is None or bias.const_value is None:
        return None
    axis = _result_axis(node, len(shape))
    values = bias.const_value.numpy().reshape(-1)
    if values.size != shape[axis]:
        return None
    return np.expand_dims(values, [other for other in range(len(shape)) if other != axis])


def _result_axis(node: ir.Node, rank: int) -> int:
    """The axis of a weight that counts results."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 1 - node.attributes.get_int("transB", 0)
    return 1 if node.op_type == "ConvTranspose" else rank - 1


def _added(node: ir.Node) -> ir.Value | None:
    """What is added to a result that nobody else reads."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return None
    return uses[0].node.inputs[1 - uses[0].idx]
