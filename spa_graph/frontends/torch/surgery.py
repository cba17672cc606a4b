"""Making a module itself smaller: its parameters by name, and the attributes that state sizes.

PyTorch's own layers state the sizes of their weights; those attributes are always corrected. Other
modules keep numbers (heads, widths) that their `forward` puts into views and splits. Where a call
that a module made must name another size, and an integer attribute of that module has the old one,
the attribute is a *candidate*. Whether candidates are right is found out by running the module.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn

from spa_graph.edits import Edits
from spa_graph.frontends.torch import attention
from spa_graph.frontends.torch.editor import CallEdits, NewCall
from spa_graph.frontends.torch.lowering import arguments_by_name
from spa_graph.frontends.torch.reader import Place, Reading, tied_names
from spa_graph.plan import AxisIndices

Attributes = dict[str, dict[str, Any]]
"""New values of attributes, by the module's name."""

SPOKEN = frozenset(
    {"all_head_size", "attention_head_size", "attn_dim", "d_kv", "dim_head", "embed_dim",
     "head_dim", "head_size", "heads", "hidden_features", "inner_dim", "kdim", "kv_dim", "n_head",
     "n_heads", "nf", "nhead", "num_attention_heads", "num_heads", "num_key_value_heads",
     "num_kv_heads", "split_size", "vdim"}
)  # fmt: skip
"""Attributes that say what their names say, whether or not `forward` reads them."""
SIZES = SPOKEN | {
    "d_model", "dim", "hidden_dim", "hidden_size", "in_channels", "in_features", "num_channels",
    "num_features", "num_groups", "out_channels", "out_features",
}  # fmt: skip
"""Attributes that are sizes of features by their names, if their values are."""


def set_attributes(model: nn.Module, attributes: Attributes) -> None:
    """Set attributes of modules, in place."""
    for name, own in attributes.items():
        module = model.get_submodule(name)
        for key, value in own.items():
            setattr(module, key, value)
        if isinstance(module, nn.MultiheadAttention):
            attention.convert(module)
    attention.pad_inputs(model)


def owner(node: fx.Node) -> str | None:
    """The module whose `forward` made a call, by its name."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return re.sub(r"@\d+", "", stack[-1][0]) if stack else None


# --- attributes of PyTorch's own layers -------------------------------------------------------


LAYERS = (
    nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, nn.EmbeddingBag,
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.PReLU, nn.RNNBase,
    nn.MultiheadAttention,
)  # fmt: skip


def layer_attributes(
    model: nn.Module, kept: dict[str, AxisIndices], calls: Attributes
) -> Attributes:
    """What PyTorch's own layers must state once their weights are sliced.

    calls: new arguments of the calls that each module made.
    """
    tied = tied_names(model).values()
    kept = {name: kept[own] for names in tied for own in names if own in kept for name in names}
    touched = {name.rpartition(".")[0] for name in kept} | calls.keys()
    found: Attributes = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name not in touched:
            continue
        shapes = {
            leaf: _sliced_shape(tensor, kept.get(f"{name}.{leaf}" if name else leaf, {}))
            for leaf, tensor in _own_state(module)
        }
        own = dict(_stated(module, shapes, calls.get(name, {})))
        if isinstance(module, nn.MultiheadAttention):
            own |= attention.stated(module, shapes, kept.get(f"{name}.in_proj_weight", {}))
        changed = {key: new for key, new in own.items() if getattr(module, key, None) != new}
        if changed:
            found[name] = changed
    return found


def _own_state(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _sliced_shape(tensor: Tensor, axes: AxisIndices) -> tuple[int, ...]:
    return tuple(len(axes[i]) if i in axes else size for i, size in enumerate(tensor.shape))


def _stated(
    module: nn.Module, shapes: dict[str, tuple[int, ...]], call: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    weight = shapes.get("weight")
    vector = weight or shapes.get("running_mean")
    if isinstance(module, nn.modules.conv._ConvNd) and weight:
        groups = call.get("groups", module.groups)
        first, second = (weight[1] * groups, weight[0])
        if module.transposed:
            first, second = weight[0], weight[1] * groups
        yield from (("groups", groups), ("in_channels", first), ("out_channels", second))
    elif isinstance(module, nn.Linear) and weight:
        yield from (("in_features", weight[1]), ("out_features", weight[0]))
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag) and weight:
        yield from (("num_embeddings", weight[0]), ("embedding_dim", weight[1]))
    elif isinstance(module, nn.modules.batchnorm._NormBase) and vector:
        yield "num_features", vector[0]
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        yield "normalized_shape", tuple(call.get("normalized_shape", module.normalized_shape))
    elif isinstance(module, nn.GroupNorm):
        yield "num_groups", call.get("num_groups", module.num_groups)
        if weight:
            yield "num_channels", weight[0]
    elif isinstance(module, nn.PReLU) and weight:
        yield "num_parameters", weight[0]
    elif isinstance(module, nn.RNNBase):
        inputs, states = shapes["weight_ih_l0"], shapes["weight_hh_l0"]
        yield from (("input_size", inputs[1]), ("hidden_size", states[1]))


# --- attributes of other modules --------------------------------------------------------------


def new_arguments(reading: Reading, calls: CallEdits) -> Iterator[tuple[Place, NewCall]]:
    """Every call that must name other sizes."""
    for index, place in enumerate(reading.places):
        new = calls.of(index)
        if new is not None:
            yield place, new


def by_module(changes: list[tuple[Place, NewCall]]) -> Attributes:
    """New arguments of calls, by the module that made them."""
    found: Attributes = {}
    for place, new in changes:
        name = owner(place.node)
        if name is not None:
            found.setdefault(name, {}).update(new.arguments)
    return found


def candidates(
    model: nn.Module, reading: Reading, edits: Edits, changes: list[tuple[Place, NewCall]]
) -> dict[tuple[str, str], Attributes]:
    """Attributes that may state an old size, with the new one; by class and attribute."""
    pairs: dict[str, dict[int, int]] = {}  # by module, from named to new size
    told: dict[str, dict[int, int]] = {}
    for place, new in changes:
        for old_size, size in _changed_numbers(place, new):
            pairs.setdefault(owner(place.node) or "", {}).setdefault(old_size, size)
    for place, operator in zip(reading.places, reading.graph.operators, strict=True):
        for name in operator.outputs:
            shape, wanted = reading.graph.shapes.get(name), edits.expected.get(name)
            for old, extent in zip(shape or (), wanted or (), strict=False):
                if old != extent and extent.static:
                    sizes = told.setdefault(owner(place.node) or "", {})
                    sizes.setdefault(old.nominal, extent.nominal)
    found: dict[tuple[str, str], Attributes] = {}
    still = _unchanged_numbers(reading, {place.node for place, _ in changes})
    modules = dict(model.named_modules(remove_duplicate=False))  # calls may name either
    for name in sorted(pairs.keys() | told.keys()):
        module = modules.get(name)
        if module is None or isinstance(module, LAYERS):
            continue  # a graph lost its modules in torch.export; `layer_attributes` knows layers
        for key, value in _stated_by(module).items():
            new_value = _renewed(value, pairs.get(name, {}))
            if new_value is None and key in SPOKEN:
                new_value = _renewed(value, told.get(name, {}))
            if new_value is not None:
                # another call of the module has this number too, and keeps it: which is meant?
                kept = type(value) is int and value in still.get(name, ())
                doubtful = name.rpartition(".")[2] if kept else ""
                group = found.setdefault((type(module).__name__ + doubtful, key), {})
                group[name] = {key: new_value}
    return found


def are_sizes(attributes: Attributes) -> bool:
    """Whether all attributes are sizes of features by their names."""
    return all(key in SIZES for own in attributes.values() for key in own)


def _stated_by(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module, also those of its own classes."""
    found: dict[str, Any] = {}
    for base in reversed(type(module).__mro__):
        if base.__module__.partition(".")[0] not in ("torch", "builtins"):
            found |= {key: value for key, value in vars(base).items() if key[:1] != "_"}
    return found | vars(module)


def _unchanged_numbers(reading: Reading, changed: set[fx.Node]) -> dict[str, set[int]]:
    """The sizes that calls of each module name, and keep."""
    found: dict[str, set[int]] = {}
    for place in reading.places:
        if place.node not in changed and place.lowered.sizes:
            listed = arguments_by_name(place.node)[place.lowered.sizes]
            listed = listed if isinstance(listed, list | tuple) else [listed]
            numbers = {each for each in listed if type(each) is int}
            found.setdefault(owner(place.node) or "", set()).update(numbers)
    return found


def _renewed(value: Any, sizes: dict[int, int]) -> Any:
    """The new value of an attribute that states an old size, or None."""
    if type(value) is int:
        return sizes.get(value)
    if isinstance(value, tuple | list) and value and all(type(each) is int for each in value):
        new = [sizes.get(each, each) for each in value]
        return None if new == list(value) else type(value)(new)
    return None


def _changed_numbers(place: Place, new: NewCall) -> Iterator[tuple[int, int]]:
    """(old, new) of every size that a call names otherwise."""
    old = arguments_by_name(place.node)
    for key, value in new.arguments.items():
        before = old.get(key, old.get("split_size"))
        if isinstance(value, list):
            given = list(before) if isinstance(before, list | tuple) else [before] * len(value)
            both = list(zip(given, value, strict=False))
        else:
            both = [(before, value)]
        for first, second in both:
            if type(first) is int and type(second) is int and first != second:
                yield first, second
