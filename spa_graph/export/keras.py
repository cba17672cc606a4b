"""The smaller Keras model: the same layers with fewer filters, units or heads.

A layer's kernel is found among the ONNX model's weights; vectors beside it (bias, statistics) lose
what its results lose. A normalisation whose weights the exporter folded away loses what the layer
before it lost.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spa_graph.errors import OptionError
from spa_graph.export.agreement import check_agreement
from spa_graph.export.stored import Array, Kept, Match, StoredWeights, sliced
from spa_graph.plan import Plan

_FOLDED_BEFORE = "BatchNormalization"


def to_keras(
    model: Any, original: object, pruned: object, plan: Plan | str | os.PathLike[str]
) -> Any:
    """The smaller Keras model, with the pruned ONNX model's weights.

    Args:
        model: the whole `keras.Model`, as it was exported; it isn't changed.
        original: its ONNX export (a path or a model in memory).
        pruned: the pruned ONNX model.
        plan: what was kept; `result.plan`, or the file that `--plan` wrote.

    Raises:
        OptionError: a layer can't be made smaller, or the plan is for another network.
        VerificationError: the result doesn't compute what the pruned ONNX model does.
    """
    import keras

    reading = _Reading(StoredWeights(original, pruned, plan))
    layers = [layer for layer in model._flatten_layers(include_self=False) if layer.weights]
    for layer in layers:
        reading.read(layer)
    for layer in layers:
        reading.repair(layer)

    def smaller(layer: Any) -> Any:
        return layer.__class__.from_config(_config(layer, reading.layers.get(layer.name)))

    try:
        small = keras.models.clone_model(model, clone_function=smaller)
        for name, change in reading.layers.items():
            small.get_layer(name).set_weights(change.weights)
    except (ValueError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise OptionError(
            f"Keras can't build {model.name} with the sizes that are left: {why}"
        ) from error

    def compute(feeds: dict[str, Array]) -> Any:
        arrays = list(feeds.values())
        return small.predict_on_batch(arrays if len(arrays) > 1 else arrays[0])

    check_agreement(reading.stored.after, compute, "Keras")
    return small


@dataclass(slots=True, eq=False)
class _Layer:
    """What becomes of a layer: its weights in the order of `layer.weights`."""

    weights: list[Array]
    results: Kept
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class _Reading:
    stored: StoredWeights
    layers: dict[str, _Layer] = field(default_factory=dict)
    shifts: dict[str, Array] = field(default_factory=dict)
    """What a refit added to the results of layers whose scale was folded in, or without a bias."""

    def read(self, layer: Any) -> None:
        """Find a layer's kernel, and with it what its other weights lose."""
        arrays = [np.asarray(weight) for weight in layer.weights]
        kernel = next((i for i, array in enumerate(arrays) if array.ndim > 1), None)
        if kernel is None:
            vectors = (match for array in arrays if (match := self.stored.find(array)))
            first = next(vectors, None)
            results = first.kept[0] if first is not None else self._before(layer)
            weights = [self._left(array, results) for array in arrays]
        else:
            result = _result_axis(layer, arrays[kernel])
            match = self._kernel(layer, arrays[kernel], result)
            results = match.kept[result] if match is not None else None
            weights = [self._left(array, results) for array in arrays]
            if match is not None:
                weights[kernel] = match.after
                self._shift(layer, match, result, weights)
        self.layers[layer.name] = _Layer(weights, results, _sizes(layer, weights))

    def _kernel(self, layer: Any, kernel: Array, result: int) -> Match | None:
        """The kernel as it is stored, perhaps with the scale of a normalisation folded in."""
        match = self.stored.find(kernel)
        if match is None and kernel.ndim > 2:
            return self.stored.find_scaled(kernel, _onnx_order(layer, kernel), result)
        return match

    def _left(self, array: Array, results: Kept) -> Array:
        """What is left of a weight beside the kernel."""
        if array.ndim == 1:
            return sliced(array, {0: results})
        match = self.stored.find(array)
        return array if match is None else match.after

    def _shift(self, layer: Any, match: Match, result: int, weights: list[Array]) -> None:
        """Put what a refit added into the bias; else leave it to `repair`."""
        shift = self.stored.shift(match, result)
        if not shift.any():
            return
        if match.scale is None and getattr(layer, "use_bias", False) and len(weights) > 1:
            weights[1] = weights[1] + shift
        else:
            self.shifts[layer.name] = shift

    def repair(self, layer: Any) -> None:
        """A normalisation takes what the layer before it could not."""
        before = _layer_before(layer)
        if type(layer).__name__ != _FOLDED_BEFORE or before is None:
            return
        if before.name in self.shifts:
            weights = self.layers[layer.name].weights
            beta = [weight.name for weight in layer.weights].index("beta")
            weights[beta] = weights[beta] + self.shifts.pop(before.name)

    def _before(self, layer: Any) -> Kept:
        """What is left of what comes into a layer along the last axis."""
        node = layer._inbound_nodes[0] if layer._inbound_nodes else None
        kept: list[Kept] = []
        sizes: list[int] = []
        for parent in node.parent_nodes if node is not None else ():
            operation = parent.operation
            known = self.layers.get(operation.name)
            kept.append(known.results if known is not None else self._before(operation))
            sizes.append(int(operation.output.shape[-1] or 0))
        if type(layer).__name__ == "Concatenate" and any(each is not None for each in kept):
            starts = np.cumsum([0, *sizes[:-1]])
            whole = (np.arange(n) if k is None else k for k, n in zip(kept, sizes, strict=True))
            return np.concatenate([k + start for k, start in zip(whole, starts, strict=True)])
        return next((each for each in kept if each is not None), None)


def _layer_before(layer: Any) -> Any:
    nodes = layer._inbound_nodes
    parents = nodes[0].parent_nodes if nodes else []
    return parents[0].operation if len(parents) == 1 else None


def _result_axis(layer: Any, kernel: Array) -> int:
    """The axis of a kernel that counts results: the last, but of depthwise and transposed ones."""
    kind = type(layer).__name__
    if kind.startswith("Depthwise") or kind.endswith("Transpose"):
        return kernel.ndim - 2
    return kernel.ndim - 1


def _onnx_order(layer: Any, kernel: Array) -> tuple[int, ...]:
    """(space, in, out) -> (out, in, space); depthwise kernels have a 1 in the place of out."""
    space = range(kernel.ndim - 2)
    if type(layer).__name__.startswith("Depthwise"):
        return (kernel.ndim - 2, kernel.ndim - 1, *space)
    return (kernel.ndim - 1, kernel.ndim - 2, *space)


def _sizes(layer: Any, weights: Sequence[Array]) -> dict[str, Any]:
    """The entries of a layer's configuration that its weights decide."""
    given = layer.get_config()
    first = weights[0].shape
    sizes: dict[str, Any] = {}
    if "filters" in given:
        sizes["filters"] = first[_result_axis(layer, weights[0])]
    if "units" in given:
        sizes["units"] = first[-1]
    if "output_dim" in given:
        sizes["output_dim"] = first[-1]
    return {key: int(size) for key, size in sizes.items()}


def _config(layer: Any, change: _Layer | None) -> Mapping[str, Any]:
    config: dict[str, Any] = layer.get_config()
    if change is not None:
        config |= change.config
    if type(layer).__name__ == "Reshape" and -1 not in config["target_shape"]:
        config["target_shape"] = (*config["target_shape"][:-1], -1)  # the channels that are left
    return config
