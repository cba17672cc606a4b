"""The smaller Keras model: the same layers with fewer filters, units or heads.

Weights belong to layers that have no parts, or are parts of others: an LSTM's to its cell, those of
MultiHeadAttention to four EinsumDense. Such a layer's kernels are found among the ONNX model's
weights; vectors beside them (bias, statistics) lose what its results lose. A normalisation whose
weights the exporter folded away loses what the layer before it lost.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spa_graph.errors import OptionError, VerificationError
from spa_graph.export.agreement import check_agreement
from spa_graph.export.given import check_type, framework
from spa_graph.export.heads import PROJECTIONS, fit_heads
from spa_graph.export.stored import Array, GivenPlan, Kept, Match, StoredWeights, sliced

_FOLDED_BEFORE = "BatchNormalization"
_PROJECTIONS = dict(
    zip(PROJECTIONS, ("_query_dense", "_key_dense", "_value_dense", "_output_dense"), strict=True)
)


def to_keras(model: Any, original: object, pruned: object, plan: GivenPlan) -> Any:
    """The smaller Keras model, with the pruned ONNX model's weights.

    Args:
        model: the whole `keras.Model`, as it was exported; it isn't changed.
        original: its ONNX export (a path or a model in memory).
        pruned: the pruned ONNX model.
        plan: what was kept; `result.plan`, or the file that `--plan` wrote.

    Raises:
        OptionError: Keras isn't installed, the model is no Keras model, a layer can't be made
            smaller, or the plan is for another network.
        VerificationError: the result doesn't compute what the pruned ONNX model does.
    """
    keras = framework("keras", "to_keras", "spa-prune[tensorflow]")
    takes = "to_keras takes a keras.Model, as of keras.saving.load_model('NAME.keras')"
    check_type(model, keras.Model, takes)
    reading = _Reading(StoredWeights(original, pruned, plan))
    layers = [layer for layer in _all_layers(model) if _own_weights(layer)]
    for layer in layers:
        reading.read(layer)
    for layer in layers:
        reading.repair(layer)
    for layer in _all_layers(model):
        reading.fit(layer)

    def smaller(layer: Any) -> Any:
        return layer.__class__.from_config(reading.config(layer))

    try:
        small = keras.models.clone_model(model, clone_function=smaller)
    except (ValueError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise OptionError(
            f"Keras can't build {model.name} with the sizes that are left: {why}"
        ) from error
    for old, new in _pairs(model, small):
        for before, after in zip(_own_weights(old), _own_weights(new), strict=True):
            _assign(after, reading.left[id(before)])

    def compute(feeds: dict[str, Array]) -> Any:
        arrays = list(feeds.values())
        return small.predict_on_batch(arrays if len(arrays) > 1 else arrays[0])

    try:
        check_agreement(reading.stored.after, compute, "Keras")
    except VerificationError as error:
        for layer in layers:
            if id(layer) in reading.shifts:
                raise OptionError(
                    f"layer `{layer.path}` has no bias for what the refit added: prune with "
                    "reconstruct='none'"
                ) from error
        raise
    return small


def _assign(weight: Any, left: Array) -> None:
    if left.size == math.prod(weight.shape):
        weight.assign(left.reshape(weight.shape))  # (heads x size,) -> (heads, size)
        return
    raise OptionError(
        f"Keras can't build `{weight.path}` with the sizes that are left: {left.shape}, while the "
        f"rest of its layer makes it {tuple(weight.shape)}"
    )


@dataclass(slots=True, eq=False)
class _Reading:
    """What becomes of weights and results, by the `id` of a weight and of a layer."""

    stored: StoredWeights
    left: dict[int, Array] = field(default_factory=dict)
    kept: dict[int, tuple[Kept, ...]] = field(default_factory=dict)
    """Per axis of kernels."""
    results: dict[int, Kept] = field(default_factory=dict)
    shifts: dict[int, Array] = field(default_factory=dict)
    """What a refit added to the results of layers whose scale was folded in, or without a bias."""

    def read(self, layer: Any) -> None:
        """Find a layer's kernels, and with them what its other weights lose."""
        weights = {id(weight): weight for weight in _own_weights(layer)}
        arrays = {key: np.asarray(weight) for key, weight in weights.items()}
        kernels = [key for key, each in weights.items() if _is_kernel(each)]
        found = {key: self._kernel(layer, weights[key]) for key in kernels}
        results, count = self._lost(layer, arrays, found)
        self.results[id(layer)] = results
        for key, array in arrays.items():
            if key in found:
                self.left[key], self.kept[key] = found[key].after, found[key].kept
            else:
                self.left[key] = _left(array, results, count)
        bias = next((key for key, each in weights.items() if each.name == "bias"), None)
        for key, match in found.items():
            if match.shift is not None:
                self._shift(layer, match, bias, row=kernels.index(key))

    def _kernel(self, layer: Any, weight: Any) -> Match:
        """The kernel as it is stored, perhaps with the scale of a normalisation folded in."""
        kernel = np.asarray(weight)
        match = self.stored.find(kernel)
        if match is None and kernel.ndim > 2:
            result = _result_axes(layer, kernel.ndim)[0]
            match = self.stored.find_scaled(kernel, _onnx_order(layer, kernel), result)
        if match is None:
            raise OptionError(
                f"`{weight.path}` is not stored in the ONNX model as it is in Keras, in one "
                "weight; if the model was trained since, export and prune it again"
            )
        return match

    def _lost(
        self, layer: Any, arrays: Mapping[int, Array], kernels: Mapping[int, Match]
    ) -> tuple[Kept, int]:
        """What is left of a layer's results, and how many there were: its last kernel says, else
        its vectors."""
        if not kernels:
            vectors = (match for each in arrays.values() if (match := self.stored.find(each)))
            first = next(vectors, None)
            shape = next(iter(arrays.values())).shape
            kept = first.kept[-1] if first is not None else self._before(layer)
            return kept, shape[-1] if shape else 1
        last, match = [*kernels.items()][-1]
        axes = _result_axes(layer, arrays[last].ndim)
        sizes = [arrays[last].shape[axis] for axis in axes]
        return _merged([match.kept[axis] for axis in axes], sizes), math.prod(sizes)

    def _shift(self, layer: Any, match: Match, bias: int | None, row: int) -> None:
        """Put what a refit added into the bias; else leave it to `repair`."""
        assert match.shift is not None
        axes = _result_axes(layer, match.shift.ndim)
        others = tuple(0 if a not in axes else slice(None) for a in range(match.shift.ndim))
        shift = match.shift[others].reshape(-1)
        if bias is None or match.scale is not None:
            self.shifts[id(layer)] = shift
            return
        values = self.left[bias].copy()
        both = values.size == 2 * shift.size  # a GRU has one for the input, and one for the state
        target = values[row] if both else values
        target += shift.reshape(target.shape)
        self.left[bias] = values

    def repair(self, layer: Any) -> None:
        """A normalisation takes what the layer before it could not."""
        before = _layer_before(layer)
        if type(layer).__name__ != _FOLDED_BEFORE or before is None:
            return
        if id(before) in self.shifts:
            beta = next(id(weight) for weight in _own_weights(layer) if weight.name == "beta")
            self.left[beta] = self.left[beta] + self.shifts.pop(id(before))

    def fit(self, layer: Any) -> None:
        """Heads as attention layers demand them."""
        if not _is_attention(layer):
            return
        weights = {
            (part, weight.name): id(weight)
            for part, attribute in _PROJECTIONS.items()
            for weight in _own_weights(getattr(layer, attribute))
        }
        left = {key: self.left[place] for key, place in weights.items()}
        before = layer._query_dense.kernel.shape[-1]
        one_size = "value_dim" not in layer.get_config()
        for key, array in fit_heads(left, before, one_size=one_size).items():
            self.left[weights[key]] = array

    # --- results ------------------------------------------------------------------------------

    def _before(self, layer: Any) -> Kept:
        """What is left of what comes into a layer along the last axis."""
        node = layer._inbound_nodes[0] if layer._inbound_nodes else None
        kept: list[Kept] = []
        sizes: list[int] = []
        for parent in node.parent_nodes if node is not None else ():
            kept.append(self._results(parent.operation))
            sizes.append(int(parent.operation.output.shape[-1] or 0))
        if type(layer).__name__ == "Concatenate":
            return _joined(kept, sizes)
        return next((each for each in kept if each is not None), None)

    def _results(self, layer: Any) -> Kept:
        """What is left of what a layer gives along the last axis."""
        own = _last_part(layer)
        state = getattr(own, "recurrent_kernel", None)
        if state is not None:  # (hidden, gates x hidden)
            return self.kept[id(state)][-2] if id(state) in self.kept else None
        if getattr(layer, "merge_mode", None) == "concat":
            both = layer.forward_layer, layer.backward_layer
            sizes = [int(each.cell.recurrent_kernel.shape[-2]) for each in both]
            return _joined([self._results(each) for each in both], sizes)
        if id(own) in self.results:
            return self.results[id(own)]
        return self._before(own) if own is layer else self._results(own)

    # --- configurations -----------------------------------------------------------------------

    def config(self, layer: Any) -> dict[str, Any]:
        """A layer's configuration with the sizes that are left, also those of its parts.

        Functions stand in it themselves: Keras may know another one by the same name (`gelu`).
        """
        config = {**layer.get_config()}
        config |= {key: size for key, size in self._sizes(layer, config).items() if key in config}
        functions = {key: getattr(layer, key, None) for key in config}
        config |= {key: each for key, each in functions.items() if inspect.isfunction(each)}
        if type(layer).__name__ == "Reshape" and -1 not in config["target_shape"]:
            config["target_shape"] = (*config["target_shape"][:-1], -1)  # the channels left
        parts = {part.name: part for part in _parts(layer)}
        return {key: self._with_parts(each, parts) for key, each in config.items()}

    def _with_parts(self, value: Any, parts: Mapping[str, Any]) -> Any:
        """An entry of a configuration; it holds those of a layer's parts, perhaps in lists."""
        if isinstance(value, list | tuple):
            return type(value)(self._with_parts(each, parts) for each in value)
        if not isinstance(value, dict) or not isinstance(value.get("config"), dict):
            return value
        part = parts.get(value["config"].get("name"))
        if part is None:
            return value
        rest = {key: each for key, each in value.items() if key != "build_config"}  # old sizes
        return rest | {"config": self.config(part)}

    def _sizes(self, layer: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        """What weights say of the entries of a layer's configuration."""
        if _is_attention(layer):
            return self._heads(layer)
        own = [each for each in _own_weights(getattr(layer, "cell", layer)) if _is_kernel(each)]
        if not own:
            return self._groups(layer, given) if "groups" in given else {}
        shape = self.left[id(own[-1])].shape
        if own[-1].name == "recurrent_kernel":
            size = int(shape[-2])
        else:
            size = int(shape[_result_axes(layer, len(shape))[0]])
        sizes: dict[str, Any] = {"filters": size, "units": size, "output_dim": size}
        if hasattr(layer, "equation"):
            _, kernel, results = _letters(layer)
            letters = dict(zip(kernel, map(int, shape), strict=True))
            old = zip(results[1:], given["output_shape"], strict=False)
            sizes["output_shape"] = [letters.get(each, n) if n else n for each, n in old]
        return sizes

    def _groups(self, layer: Any, given: Mapping[str, Any]) -> dict[str, Any]:
        """Of a normalisation of groups, of which some are gone as a whole, or all are smaller."""
        kept, weights = self.results[id(layer)], _own_weights(layer)
        if kept is None or not weights:
            return {}
        size = int(weights[0].shape[-1]) // given["groups"]
        return {"groups": len(np.unique(kept // size))}

    def _heads(self, layer: Any) -> dict[str, Any]:
        """Of attention, with kernels (in, heads, size), and (heads, size, out) of the output."""
        parts = (getattr(layer, attribute) for attribute in _PROJECTIONS.values())
        shapes = ([*map(int, self.left[id(part.kernel)].shape)] for part in parts)
        query, _, value, output = shapes
        return {
            "num_heads": query[1], "key_dim": query[2], "value_dim": value[2],
            "output_shape": output[2:],
            "num_query_heads": query[1], "num_key_value_heads": value[1], "head_dim": query[2],
        }  # fmt: skip


_BESIDE = ("bias", "alpha")
"""Weights of several axes that lose what the results lose; exporters turn the sign of PReLU's."""


def _all_layers(model: Any) -> Iterator[Any]:
    yield from model._flatten_layers(include_self=False)


def _parts(layer: Any) -> list[Any]:
    """The layers in a layer; a plain operation (`a + b`) has none."""
    return list(getattr(layer, "_layers", ()))


def _own_weights(layer: Any) -> list[Any]:
    """The weights of a layer that aren't those of its parts."""
    others = {id(weight) for part in _parts(layer) for weight in part.weights}
    return [weight for weight in getattr(layer, "weights", ()) if id(weight) not in others]


def _pairs(model: Any, small: Any) -> Iterator[tuple[Any, Any]]:
    """The layers of a model, and their parts, with those of the smaller one."""
    for layer in model.layers:
        # an input's clone has a name of its own, and an operation has no weights
        if type(layer).__name__ != "InputLayer" and hasattr(layer, "_flatten_layers"):
            both = layer, small.get_layer(layer.name)
            yield from zip(*(each._flatten_layers() for each in both), strict=True)


def _is_attention(layer: Any) -> bool:
    return all(hasattr(layer, attribute) for attribute in _PROJECTIONS.values())


def _is_kernel(weight: Any) -> bool:
    return len(weight.shape) > 1 and weight.name not in _BESIDE


def _last_part(layer: Any) -> Any:
    """The part that makes what a layer gives: of attention, RNN, wrappers, and models in models."""
    for name in ("_output_dense", "cell", "layer", "forward_layer"):
        if getattr(layer, name, None) is not None:
            return getattr(layer, name)
    outputs = getattr(layer, "outputs", None)
    return outputs[0]._keras_history.operation if outputs else layer


def _layer_before(layer: Any) -> Any:
    nodes = layer._inbound_nodes
    parents = nodes[0].parent_nodes if nodes else []
    return parents[0].operation if len(parents) == 1 else None


def _result_axes(layer: Any, rank: int) -> list[int]:
    """The axes of a kernel that count results: the last, but of depthwise, transposed and Einsum
    ones."""
    kind = type(layer).__name__
    if hasattr(layer, "equation"):
        _, kernel, results = _letters(layer)
        return [axis for axis, letter in enumerate(kernel) if letter in results]
    if kind.startswith("Depthwise") or kind.endswith("Transpose"):
        return [rank - 2]
    return [rank - 1]


def _letters(layer: Any) -> list[str]:
    """The letters of EinsumDense: those of its input, its kernel, and its results."""
    inputs, _, results = layer.equation.replace("...", "").partition("->")
    return [*inputs.split(","), results]


def _onnx_order(layer: Any, kernel: Array) -> tuple[int, ...]:
    """(space, in, out) -> (out, in, space); depthwise kernels have a 1 in the place of out."""
    space = range(kernel.ndim - 2)
    if type(layer).__name__.startswith("Depthwise"):
        return (kernel.ndim - 2, kernel.ndim - 1, *space)
    return (kernel.ndim - 1, kernel.ndim - 2, *space)


def _merged(kept: list[Kept], sizes: list[int]) -> Kept:
    """The positions that stay of several axes, counted as one."""
    if all(each is None for each in kept):
        return None
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    return sliced(grid, dict(enumerate(kept))).reshape(-1)


def _joined(kept: list[Kept], sizes: list[int]) -> Kept:
    """The positions that stay of axes that are concatenated."""
    if all(each is None for each in kept):
        return None
    starts = np.cumsum([0, *sizes[:-1]])
    whole = (np.arange(n) if k is None else k for k, n in zip(kept, sizes, strict=True))
    return np.concatenate([k + start for k, start in zip(whole, starts, strict=True)])


def _left(array: Array, results: Kept, count: int) -> Array:
    """What is left of a weight beside the kernel; (results,), or (rows, results) of several."""
    if results is None or array.size % count:
        return array
    left = array.reshape(-1, count)[:, results]
    return left if len(left) > 1 else left[0]
