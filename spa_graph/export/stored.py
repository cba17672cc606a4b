"""Which stored weight of an ONNX model an array of another framework is, and what became of it.

Exporters rename and transpose weights, drop axes of one element, and fold the scale of a
normalisation into the kernel before it; the values stay. So an array is looked for by its values:
the same ones in another order of axes, or the same up to a factor for each result.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
Kept = NDArray[np.int64] | None
"""The positions of an axis that stay; None: all."""
_CLOSE = 1e-4  # of a product in single precision


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """An array that an ONNX model stores.

    name: of the initializer.
    kept: per axis of the array.
    after: the pruned model's values in the array's layout, divided by `scale`.
    scale: the factor that the exporter folded in, for each result before pruning; or None.
    """

    name: str
    kept: tuple[Kept, ...]
    after: Array
    scale: Array | None = None


class StoredWeights:
    """The stored weights of a model before and after pruning, to be found by their values."""

    def __init__(
        self, original: object, pruned: object, plan: Plan | str | os.PathLike[str]
    ) -> None:
        self.before, self.after = (forms.take(model)[0] for model in (original, pruned))
        self.plan = plan if isinstance(plan, Plan) else Plan.load(Path(plan))
        self._before = dict(_arrays(self.before))
        self._after = dict(_arrays(self.after))
        self._by_values: dict[bytes, list[str]] = {}
        for name, array in self._before.items():
            if array.size > 1 and array.dtype.kind == "f":
                self._by_values.setdefault(_values(array), []).append(name)
        missing = [name for name in plan_names(self.plan) if name not in self._before]
        if missing:
            raise OptionError(f"the plan is for another network: it has no weight `{missing[0]}`")

    def find(self, array: Array) -> Match | None:
        """The weight with these values; None if there is none, or several that differ in what is
        kept of them (biases of zeros, say)."""
        found = [
            match
            for name in self._by_values.get(_values(array), ())
            if (match := self._transposed(name, array)) is not None
        ]
        alike = all(_same(found[0].kept, match.kept) for match in found[1:])
        return found[0] if found and alike else None

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
            match = self._placed(name, order)
            if match is not None:
                stays = match.kept[result]
                left = scale if stays is None else scale[stays]
                shape = [1] * array.ndim
                shape[result] = -1
                return Match(name, match.kept, match.after / left.reshape(shape), scale)
        return None

    def _transposed(self, name: str, array: Array) -> Match | None:
        """The match if some order of the axes of more than one element makes the two equal."""
        stored = self._before[name]
        wide = [axis for axis, size in enumerate(stored.shape) if size > 1]
        own = [axis for axis, size in enumerate(array.shape) if size > 1]
        if sorted(stored.shape[a] for a in wide) != sorted(array.shape[a] for a in own):
            return None
        flat, squeezed = stored.squeeze(), array.squeeze()
        for order in permutations(range(len(wide))):
            if flat.transpose(order).shape == squeezed.shape and np.array_equal(
                flat.transpose(order), squeezed
            ):
                place = dict(zip(own, (wide[position] for position in order), strict=True))
                return self._match(name, array.shape, place)
        return None

    def _placed(self, name: str, order: tuple[int, ...]) -> Match | None:
        place = {axis: position for position, axis in enumerate(order)}
        shape = tuple(self._before[name].shape[place[axis]] for axis in range(len(order)))
        return self._match(name, shape, place)

    def _match(self, name: str, shape: tuple[int, ...], place: Mapping[int, int]) -> Match | None:
        """Where each axis of an array stands in a stored weight -> what became of it."""
        if name in self.plan.kept_per_use:
            return None
        kept = self.plan.kept.get(name, {})
        own = tuple(kept.get(place[axis]) if axis in place else None for axis in range(len(shape)))
        after = self._after.get(name)
        if after is None:
            after = sliced(self._before[name], kept)
        rest = [axis for axis in range(after.ndim) if axis not in place.values()]
        left = [n if k is None else len(k) for n, k in zip(shape, own, strict=True)]
        order = [place[axis] for axis in sorted(place)]
        return Match(name, own, after.transpose([*order, *rest]).reshape(left))

    # --- biases -------------------------------------------------------------------------------

    def shift(self, match: Match, result: int) -> Array:
        """What the refit added to the results of the layer that reads a weight; (results,)."""
        stays = match.kept[result]
        old, new = (_bias(model, match.name) for model in (self.before, self.after))
        if new is None:
            return np.zeros(match.after.shape[result], match.after.dtype)
        if old is None:
            return new
        return np.asarray(new - (old if stays is None else old[stays]))


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


def _same(first: tuple[Kept, ...], second: tuple[Kept, ...]) -> bool:
    return all(
        a is b or (a is not None and b is not None and np.array_equal(a, b))
        for a, b in zip(first, second, strict=True)
    )


def _bias(model: ir.Model, weight: str) -> Array | None:
    """The stored bias of the layer that reads a weight; (results,)."""
    value = model.graph.initializers.get(weight)
    for node, slot in value.uses() if value is not None else ():
        if slot != 1:
            continue
        bias = node.inputs[2] if len(node.inputs) > 2 else _added(node)
        if bias is not None and bias.const_value is not None:
            return bias.const_value.numpy().reshape(-1)
    return None


def _added(node: ir.Node) -> ir.Value | None:
    """What is added to a result that nobody else reads."""
    uses = list(node.outputs[0].uses())
    if len(uses) != 1 or uses[0].node.op_type != "Add":
        return None
    return uses[0].node.inputs[1 - uses[0].idx]
