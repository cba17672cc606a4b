"""The smaller Flax model: an nnx module, or the variables of a linen module.

Layers are found in the tree of variables: what stands beside each other is one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from spa_graph.errors import OptionError
from spa_graph.export.agreement import check_agreement
from spa_graph.export.given import check_type, framework
from spa_graph.export.heads import PROJECTIONS, Weight, fit_heads
from spa_graph.export.stored import Array, GivenPlan, StoredWeights, sliced

Path = tuple[Any, ...]
_COLLECTIONS = ("params", "batch_stats")


def to_flax(
    model: Any,
    original: object,
    pruned: object,
    plan: GivenPlan,
    apply: Callable[..., Any] | None = None,
) -> Any:
    """The smaller Flax model, with the pruned ONNX model's weights.

    Args:
        model: the whole model, as it was exported; it isn't changed. An `nnx.Module`, or the
            variables of a linen module (nested dictionaries).
        original: its ONNX export (a path or a model in memory).
        pruned: the pruned ONNX model.
        plan: what was kept; `result.plan`, or the file that `--plan` wrote.
        apply: needed for variables: (variables, *inputs) -> outputs, by a linen module of the sizes
            that the variables have.

    Returns:
        An `nnx.Module`, or variables.

    Raises:
        OptionError: Flax isn't installed, the model is none of Flax, a weight isn't stored in the
            ONNX model, a module can't have the sizes that are left, or the plan is for another
            network.
        VerificationError: the result doesn't compute what the pruned ONNX model does.
    """
    nnx = framework("flax.nnx", "to_flax", "flax")
    traverse_util = framework("flax.traverse_util", "to_flax", "flax")
    takes = "to_flax takes an nnx.Module, or the variables of a linen module"
    check_type(model, (nnx.Module, Mapping), takes)
    stored = StoredWeights(original, pruned, plan)
    if isinstance(model, Mapping):
        if apply is None:
            raise OptionError("variables of a linen module need `apply`, which runs it on them")
        variables = traverse_util.flatten_dict(model)
        arrays = {path: np.asarray(each) for path, each in variables.items()}
        left = traverse_util.unflatten_dict(_smaller(stored, arrays))
        check_agreement(stored.after, lambda feeds: apply(left, *feeds.values()), "Flax")
        return left
    small = nnx.clone(model)
    state = nnx.state(small, nnx.Any(nnx.Param, nnx.BatchStat))
    flat = dict(nnx.to_flat_state(state))
    arrays = _smaller(stored, {path: np.asarray(each.get_value()) for path, each in flat.items()})
    for path, variable in flat.items():
        variable.set_value(arrays[path])
    nnx.update(small, state)
    for path, inside in _modules(arrays).items():
        _set_sizes(_at(small, path), inside)

    judged = nnx.clone(small)
    judged.eval()  # exporters write what inference computes, whatever mode the module is in

    def compute(feeds: dict[str, Array]) -> Any:
        try:
            return judged(*feeds.values())
        except (ValueError, TypeError, AssertionError) as error:
            why = str(error).splitlines()[0]
            raise OptionError(f"Flax can't run the sizes that are left: {why}") from error

    check_agreement(stored.after, compute, "Flax")
    return small


# --- variables ------------------------------------------------------------------------------------


def _smaller(stored: StoredWeights, arrays: Mapping[Path, Array]) -> dict[Path, Array]:
    """What is left of all variables, by their paths."""
    layers: dict[Path, dict[Path, Array]] = {}
    for path, array in arrays.items():
        layers.setdefault(_layer_path(path), {})[path] = array
    left = {path: a for layer in layers.values() for path, a in _layer(stored, layer).items()}
    _fit_attention(arrays, left)
    return left


def _layer_path(path: Path) -> Path:
    """Where a variable's layer is in the model, whatever collection the variable is in."""
    return path[1:-1] if path and path[0] in _COLLECTIONS else path[:-1]


def _layer(stored: StoredWeights, arrays: Mapping[Path, Array]) -> dict[Path, Array]:
    """Kernels are found by their values; what stands beside loses what the results lose."""
    found = {path: stored.find(array) for path, array in arrays.items()}
    kernels = [path for path, array in arrays.items() if array.ndim > 1 and path[-1] != "bias"]
    for path in kernels:
        if arrays[path].size > 1 and found[path] is None:
            raise OptionError(
                f"`{'/'.join(map(str, path))}` is not stored in the ONNX model as it is in Flax"
            )
    kernel = next((match for path in kernels if (match := found[path])), None)
    some = kernel or next((match for match in found.values() if match is not None), None)
    kept = some.kept if some is not None else ()
    left: dict[Path, Array] = {}
    for path, array in arrays.items():
        match = found[path]
        if match is not None and (path in kernels or kernel is None):
            left[path] = match.after
        else:  # the last axes of the kernel are those of the bias
            axes = enumerate(kept[-array.ndim :]) if array.ndim <= len(kept) else ()
            left[path] = array if path in kernels else sliced(array, dict(axes))
    if kernel is not None and kernel.shift is not None:
        bias = next((path for path in arrays if path[-1] == "bias"), None)
        if bias is None:
            name = "/".join(map(str, next(iter(arrays))[:-1]))
            raise OptionError(
                f"layer `{name}` has no bias for what the refit added: prune with "
                "reconstruct='none'"
            )
        inner = kernel.shift.ndim - left[bias].ndim
        left[bias] = left[bias] + kernel.shift[(0,) * inner]
    return left


def _fit_attention(arrays: Mapping[Path, Array], left: dict[Path, Array]) -> None:
    """Heads as attention layers demand them; these have four projections beside each other."""
    inside: dict[Path, dict[Weight, Path]] = {}
    for path in arrays:
        if len(path) > 1:
            inside.setdefault(path[:-2], {})[path[-2], path[-1]] = path
    for paths in inside.values():
        if _is_attention({part: left[p] for (part, name), p in paths.items() if name == "kernel"}):
            before = arrays[paths["query", "kernel"]].shape[-1]
            weights = {key: left[path] for key, path in paths.items()}
            fitted = fit_heads(weights, before, one_size=True)  # jax.nn.dot_product_attention's
            left |= {paths[key]: array for key, array in fitted.items()}


def _is_attention(kernels: Mapping[Any, Array]) -> bool:
    """Whether these kernels, by their layers, are (in, heads, size), and (heads, size, out)."""
    return kernels.keys() >= {*PROJECTIONS} and all(kernels[each].ndim == 3 for each in PROJECTIONS)


# --- sizes of nnx modules -------------------------------------------------------------------------


def _modules(arrays: Mapping[Path, Array]) -> dict[Path, dict[Path, Array]]:
    """What is in each module and its parts, by their paths from there."""
    modules: dict[Path, dict[Path, Array]] = {}
    for path, array in arrays.items():
        for end in range(len(path)):
            modules.setdefault(path[:end], {})[path[end:]] = array
    return modules


def _at(module: Any, path: Path) -> Any:
    for key in path:
        module = module[key] if isinstance(key, int) else getattr(module, key)
    return module


def _set_sizes(module: Any, arrays: Mapping[Path, Array]) -> None:
    """The attributes of a module that the variables in it decide.

    Args:
        arrays: by their paths from the module.
    """
    for name, size in {**_layer_sizes(module, arrays), **_sizes_of_parts(arrays)}.items():
        if type(getattr(module, name, None)) is type(size):
            setattr(module, name, size)


def _layer_sizes(module: Any, arrays: Mapping[Path, Array]) -> dict[str, Any]:
    """What a layer's own variables say."""
    kernel = arrays.get(("kernel",), arrays.get(("embedding",)))
    vector = arrays.get(("scale",), arrays.get(("mean",)))
    if kernel is None:
        return {} if vector is None else _normalised(module, len(vector))
    stated = getattr(module, "in_features", None)
    if isinstance(stated, tuple):  # LinearGeneral: (in ..., out ...)
        split = len(stated)
        return {"in_features": kernel.shape[:split], "out_features": kernel.shape[split:]}
    per_group, results = kernel.shape[-2:]
    groups = getattr(module, "feature_group_count", 1)
    sizes: dict[str, Any] = {}
    if groups > 1 and groups == stated:  # depthwise
        groups = results * module.in_features // module.out_features
        sizes["feature_group_count"] = groups
    return sizes | {
        "in_features": per_group * groups, "out_features": results, "features": results,
    }  # fmt: skip


def _normalised(module: Any, features: int) -> dict[str, Any]:
    """Of a normalisation, perhaps of groups, which are gone as a whole if their size allows it."""
    groups, size = getattr(module, "num_groups", None), getattr(module, "group_size", None)
    if not (isinstance(groups, int) and isinstance(size, int)):
        return {"num_features": features}
    groups, size = (groups, features // groups) if features % size else (features // size, size)
    return {"num_features": features, "num_groups": groups, "group_size": size}


def _sizes_of_parts(arrays: Mapping[Path, Array]) -> dict[str, Any]:
    """What the kernels of attention and of recurrent cells say."""
    kernels = {path[0]: each for path, each in arrays.items() if path[1:] == ("kernel",)}
    if _is_attention(kernels):
        features, heads, size = kernels["query"].shape
        in_kv, kv_heads, _ = kernels["key"].shape
        return {
            "in_features": features, "in_kv_features": in_kv, "num_heads": heads,
            "num_kv_heads": kv_heads, "head_dim": size, "qkv_features": heads * size,
            "out_features": kernels["out"].shape[-1],
        }  # fmt: skip
    cells = {
        "dense_i": "in_features", "ii": "in_features",
        "dense_h": "hidden_features", "hi": "hidden_features",
    }  # fmt: skip
    return {cells[part]: kernels[part].shape[0] for part in kernels.keys() & cells.keys()}
