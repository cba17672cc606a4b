"""The smaller Flax model: an nnx module, or the variables of a linen module.

Layers are found in the tree of variables: what stands beside each other is one layer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from spa_graph.errors import OptionError
from spa_graph.export.agreement import check_agreement
from spa_graph.export.stored import Array, StoredWeights, sliced
from spa_graph.plan import Plan

Path = tuple[Any, ...]


def to_flax(
    model: Any, original: object, pruned: object, plan: Plan | str | os.PathLike[str]
) -> Any:
    """The smaller Flax model, with the pruned ONNX model's weights.

    Args:
        model: the whole model, as it was exported; it isn't changed. An `nnx.Module`, or the
            variables of a linen module (nested dictionaries).
        original: its ONNX export (a path or a model in memory).
        pruned: the pruned ONNX model.
        plan: what was kept; `result.plan`, or the file that `--plan` wrote.

    Returns:
        An `nnx.Module` that was compared with the pruned ONNX model; or variables, for a linen
        module that the caller builds with the sizes that they have.

    Raises:
        OptionError: a weight isn't stored in the ONNX model, or the plan is for another network.
        VerificationError: the result doesn't compute what the pruned ONNX model does.
    """
    stored = StoredWeights(original, pruned, plan)
    from flax import nnx, traverse_util

    if isinstance(model, Mapping):
        variables = traverse_util.flatten_dict(model)
        arrays = {path: np.asarray(each) for path, each in variables.items()}
        return traverse_util.unflatten_dict(_smaller(stored, arrays))
    small = nnx.clone(model)
    state = nnx.state(small, nnx.Any(nnx.Param, nnx.BatchStat))
    flat = dict(state.flat_state())
    arrays = _smaller(stored, {path: np.asarray(each.get_value()) for path, each in flat.items()})
    for path, variable in flat.items():
        variable.set_value(arrays[path])
    nnx.update(small, state)
    for path in {path[:-1] for path in arrays}:
        _set_sizes(small, path, {key[-1]: arrays[key] for key in arrays if key[:-1] == path})

    check_agreement(stored.after, lambda feeds: small(*feeds.values()), "Flax")
    return small


def _smaller(stored: StoredWeights, arrays: Mapping[Path, Array]) -> dict[Path, Array]:
    """What is left of all variables, by their paths."""
    layers: dict[Path, dict[Path, Array]] = {}
    for path, array in arrays.items():
        layer = path[1:-1] if path and path[0] in ("params", "batch_stats") else path[:-1]
        layers.setdefault(layer, {})[path] = array
    return {path: a for layer in layers.values() for path, a in _layer(stored, layer).items()}


def _layer(stored: StoredWeights, arrays: Mapping[Path, Array]) -> dict[Path, Array]:
    """Kernels are found by their values; the vectors beside lose what the results lose."""
    found = {path: stored.find(array) for path, array in arrays.items()}
    for path, array in arrays.items():
        if array.ndim > 1 and array.size > 1 and found[path] is None:
            raise OptionError(
                f"`{'/'.join(map(str, path))}` is not stored in the ONNX model as it is in Flax"
            )
    kernel = next((m for path, m in found.items() if m and arrays[path].ndim > 1), None)
    some = kernel or next((match for match in found.values() if match is not None), None)
    results = some.kept[-1] if some is not None else None
    shift = stored.shift(kernel, len(kernel.kept) - 1) if kernel is not None else None
    left: dict[Path, Array] = {}
    for path, array in arrays.items():
        match = found[path]
        if match is not None and (array.ndim > 1 or kernel is None):
            left[path] = match.after
        else:
            left[path] = sliced(array, {0: results}) if array.ndim == 1 else array
            if shift is not None and path[-1] == "bias":
                left[path], shift = left[path] + shift, None
    if shift is not None and shift.any():
        name = "/".join(map(str, next(iter(arrays))[:-1]))
        raise OptionError(
            f"layer `{name}` has no bias for what the refit added: prune with reconstruct='none'"
        )
    return left


def _set_sizes(module: Any, path: Path, arrays: Mapping[Any, Array]) -> None:
    """The attributes of an nnx layer that its variables decide."""
    for key in path:
        module = module[key] if isinstance(key, int) else getattr(module, key)
    kernel = arrays.get("kernel", arrays.get("embedding"))
    vector = arrays.get("scale", arrays.get("mean"))
    sizes: dict[str, int] = {}
    if kernel is not None:
        per_group, results = kernel.shape[-2:]
        groups = getattr(module, "feature_group_count", 1)
        if groups > 1 and groups == getattr(module, "in_features", None):  # depthwise
            groups = results * module.in_features // module.out_features
            sizes["feature_group_count"] = groups
        sizes |= {"in_features": per_group * groups, "out_features": results, "features": results}
    elif vector is not None:
        sizes["num_features"] = len(vector)
    for name, size in sizes.items():
        if isinstance(getattr(module, name, None), int):
            setattr(module, name, size)
