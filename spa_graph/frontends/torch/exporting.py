"""A traced module -> an ONNX model in memory, whose stored weights are the module's parameters.

As torch.onnx writes it, without its optimisations: so initializers have the names of parameters and
buffers. A weight that is read only through one transposition (as that of a linear layer is) is
stored transposed, so that its layer reads it directly.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import fx

from spa_graph.errors import ModelError, root_cause
from spa_graph.frontends.torch.tracing import Traced, short

Permutation = tuple[int, ...]
aten = torch.ops.aten
_CONV3D_DEFAULTS = (None, [1, 1, 1], [0, 0, 0], [1, 1, 1], 1)
"""Bias, stride, padding, dilation and groups; torch.export leaves them out where they are these."""


@dataclass(frozen=True, slots=True, eq=False)
class Exported:
    """An ONNX model of a module.

    permuted: by initializer, how its axes are ordered where not as the parameter's: axis i is the
        parameter's axis permuted[i].
    """

    model: ir.Model
    permuted: dict[str, Permutation]

    def in_model(self, name: str, axes: tuple[Any, ...]) -> tuple[Any, ...]:
        """What is known of each axis of a parameter, in the order of the initializer's axes."""
        order = self.permuted.get(name, range(len(axes)))
        return tuple(axes[axis] for axis in order)

    def in_module(self, name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """An initializer in the parameter's layout."""
        order = self.permuted.get(name)
        return array if order is None else array.transpose(np.argsort(order))


def export(traced: Traced, name: str) -> Exported:
    """Export a traced module; the weights are copied, so that the module may change later.

    Raises:
        ModelError: torch.onnx can't export it: why.
    """
    try:
        model = written(traced)
    except ImportError as error:
        raise ModelError(
            f"calibration runs {name} as ONNX, which needs onnxscript: "
            "pip install 'spa-prune[torch]'"
        ) from error
    except Exception as error:  # whatever the exporter raises
        raise ModelError(
            f"calibration runs {name} as ONNX, which torch.onnx.export can't make of it: "
            f"{short(root_cause(error))}"
        ) from error
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        array = np.array(value.const_value.numpy())
        value.const_value = ir.tensor(array, value.const_value.dtype, value.name)
    permuted = {str(value.name): order for value, order in _transpose_stored(model)}
    RemoveUnusedNodesPass()(model)
    return Exported(model, permuted)


def written(traced: Traced) -> ir.Model:
    """A traced module as torch.onnx writes it, without its optimisations."""
    _fix_layouts(traced.program.graph_module)
    _fix_convolutions(traced.program.graph_module)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(traced.program, dynamo=True, optimize=False, verbose=False)
    model: ir.Model = program.model
    return model


def _fix_layouts(module: fx.GraphModule) -> None:
    """Let attention give its result in the plain layout, in place.

    Each implementation has its own. torch.onnx makes a `reshape` behind it a view of the layout
    that it has here, and then takes attention apart, which gives another: T5 fails so.
    """
    for node in list(module.graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default:
            continue
        with module.graph.inserting_after(node):
            copied = module.graph.call_function(
                aten.clone.default, (node,), {"memory_format": torch.contiguous_format}
            )
        copied.meta = dict(node.meta)
        node.replace_all_uses_with(
            copied, lambda user, own=copied: user is not own and user.op != "output"
        )
    module.recompile()


def _fix_convolutions(module: fx.GraphModule) -> None:
    """Let a Conv3d without a bias stay without one, in place.

    onnxscript 0.7.2 makes one of shape (channels, 2) for `aten.conv3d`, which no runtime takes, and
    none for `aten.convolution`, which computes the same.
    """
    for node in module.graph.nodes:
        if node.target is not aten.conv3d.default:
            continue
        operands = (*node.args, *_CONV3D_DEFAULTS[len(node.args) - 2 :])
        features, weight, bias, stride, padding, dilation, groups = operands
        if bias is None and not node.kwargs:
            node.target = aten.convolution.default
            steps = (stride, padding, dilation)
            node.args = (features, weight, None, *steps, False, [0, 0, 0], groups)
    module.recompile()


def _transpose_stored(model: ir.Model) -> Iterator[tuple[ir.Value, Permutation]]:
    """Store weights transposed that are read in no other way, in place."""
    for value in list(model.graph.initializers.values()):
        users = [use.node for use in value.uses()]
        orders = {_order(node, value) for node in users}
        if len(orders) != 1 or None in orders or value.is_graph_output():
            continue
        if any(node.outputs[0].is_graph_output() for node in users):
            continue
        (order,) = orders
        assert value.const_value is not None and order is not None
        array = np.ascontiguousarray(value.const_value.numpy().transpose(order))
        value.const_value = ir.tensor(array, value.const_value.dtype, value.name)
        value.shape = ir.Shape(array.shape)
        for node in users:
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
        yield value, order


def _order(node: ir.Node, value: ir.Value) -> Permutation | None:
    """How a node transposes a value; None if it does something else."""
    if node.op_type != "Transpose" or node.domain or value.shape is None:
        return None
    given = node.attributes.get("perm")
    return tuple(given.as_ints()) if given is not None else tuple(range(len(value.shape)))[::-1]
