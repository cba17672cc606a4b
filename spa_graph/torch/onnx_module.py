"""An ONNX network as a module: it can be differentiated and trained, and goes back to ONNX.

    module = OnnxModule("model.onnx")
    loss(module(x), y).backward()
    onnx_ir.save(module.to_onnx(), "trained.onnx")

Weights are parameters under the names that they have in the file, statistics of BatchNormalization
and other numbers are buffers. It starts in evaluation mode; in training mode BatchNormalization
uses the statistics of the batch and keeps up its own, and Dropout drops.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import InlinePass
from torch import Tensor, nn

from spa_graph.errors import ModelError
from spa_graph.frontends.onnx import forms
from spa_graph.frontends.onnx.editor import operator_nodes
from spa_graph.frontends.onnx.reader import read
from spa_graph.frontends.onnx.sizes import InputShapes
from spa_graph.frontends.onnx.weights import store_tensor
from spa_graph.graph import Graph, Operator
from spa_graph.torch.onnx_operators import OPERATORS, Call
from spa_graph.torch.watching import Around, Operands

_STATISTICS = {("BatchNormalization", 3), ("BatchNormalization", 4)}
"""Inputs, by slot, that are estimated, not learned."""
_NUMBERS = frozenset({"Clip", "Pad", "Pow", "Resize", "Range", "Dropout", "ConstantOfShape"})
"""Operators whose constants are settings."""


class OnnxModule(nn.Module):
    """A network of an ONNX file, run by torch; see above.

    Args:
        model: a path, `onnx.ModelProto`, `onnx_ir.Model` or `onnx_graphsurgeon.Graph`; it isn't
            changed.
        input_shapes: sizes of dynamic axes, as of `spa_graph.prune`, where the guess doesn't fit.
        graph: its graph, if that was read before.

    Raises:
        ModelError: it can't be read, or has an operator that torch doesn't run here.
    """

    def __init__(
        self, model: object, input_shapes: InputShapes | None = None, graph: Graph | None = None
    ) -> None:
        super().__init__()
        original, self._restore = forms.take(model)
        self._model = original.clone()
        self._model.meta.update(original.meta)
        if self._model.functions:
            InlinePass()(self._model)
        self._graph = graph or read(self._model, input_shapes)
        _check(self._graph)
        self._around: Around | None = None
        self._places: dict[str, str] = {}
        trained = _trained(self._graph)
        for name in dict.fromkeys(n for o in self._graph.operators for n in o.inputs):
            if name in self._graph.parameters:
                self._places[name] = self._enter(name, name in trained)
        for name in self._graph.outputs:  # a stored constant may be an output
            if name in self._graph.parameters and name not in self._places:
                self._places[name] = self._enter(name, False)
        self._used = {name for o in self._graph.operators for name in o.inputs}
        self._used |= set(self._graph.outputs)
        self._last = _last_uses(self._graph)
        self.eval()

    def _enter(self, name: str, trained: bool) -> str:
        """Hold a stored tensor under its name, whose dots are those of submodules."""
        value = torch.from_numpy(np.array(self._graph.parameters[name].load()))
        *path, last = [part or "_" for part in name.split(".")]
        owner: nn.Module = self
        for part in path:
            while hasattr(owner, part) and part not in owner._modules:
                part += "_"
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        while hasattr(owner, last):
            last += "_"
        if trained:
            owner.register_parameter(last, nn.Parameter(value))
        else:
            owner.register_buffer(last, value)
        found = next(path for path, module in self.named_modules() if module is owner)
        return f"{found}.{last}" if found else last

    def stored(self, name: str) -> Tensor:
        """The tensor that a weight of the file is held in."""
        path, _, last = self._places[name].rpartition(".")
        found = getattr(self.get_submodule(path), last)
        assert isinstance(found, Tensor)
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network on tensors, by position or by input name.

        Returns:
            the output, or a tuple of all if there are several.
        """
        values: dict[str, Any] = {"": None} | self._inputs(args, kwargs)
        values |= {name: self.stored(name) for name in self._places}
        for operator in self._graph.operators:
            operands = [values[name] for name in operator.inputs]
            results = self._run(operator, operands)
            values.update(zip(operator.outputs, results, strict=False))
            for name in self._last.get(operator.index, ()):
                values.pop(name, None)
        outputs = tuple(values[name] for name in self._graph.outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        names = self._graph.inputs
        given = dict(zip(names, args, strict=False)) | dict(kwargs)
        if len(args) > len(names) or given.keys() != set(names):
            raise ModelError(
                f"the network takes {', '.join(names)}; given were "
                f"{', '.join(given)}" + f" and {len(args)} by position" * (len(args) > len(names))
            )
        return given

    def _run(self, operator: Operator, operands: Operands) -> tuple[Any, ...]:
        call = Call(
            str(operator), operator.attributes, operator.version, len(operator.outputs),
            self.training,
        )  # fmt: skip

        def run(given: Operands) -> Any:
            return OPERATORS[operator.op_type](call, *given)

        try:
            found = (
                run(operands)
                if self._around is None
                else self._around(operator.index, operands, run)
            )
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            raise ModelError(f"{operator} fails in torch: {str(error).splitlines()[0]}") from error
        results = found if isinstance(found, tuple) else (found,)
        lacking = self._used.intersection(filter(None, operator.outputs[len(results) :]))
        if lacking:
            raise ModelError(f"{operator}: its output {min(lacking)} can't be run in torch yet")
        return results

    def watched(self, around: Around) -> OnnxModule:
        """A copy with someone around each operator."""
        module = copy.deepcopy(self)
        module._around = around
        return module

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxModule:
        """State is copied; the file's model, which nothing changes, is shared."""
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        shared = ("_model", "_restore", "_graph", "_used", "_last", "_places", "_around")
        for key, value in self.__dict__.items():
            new.__dict__[key] = value if key in shared else copy.deepcopy(value, memo)
        return new

    def to_onnx(self) -> Any:
        """The network with the weights of now, in the form that came in; a path gives an
        `onnx_ir.Model`. Inputs, outputs, names and opsets are those of the file."""
        model = self._model.clone()
        model.meta.update(self._model.meta)
        nodes = operator_nodes(model, self._graph)
        values = {v.name: v for node in nodes for v in node.inputs if v is not None}
        for name in self._places:
            tensor = self.stored(name).detach().cpu()
            before = self._graph.parameters[name]
            if name not in values or np.array_equal(before.load(), tensor.numpy(), equal_nan=True):
                continue
            array = tensor.numpy().astype(before.dtype)
            store_tensor(values[name], ir.tensor(array, name=name))
        return self._restore(model)


def _check(graph: Graph) -> None:
    unknown = {
        operator.kind: operator
        for operator in graph.operators
        if operator.domain or operator.op_type not in OPERATORS
    }
    if unknown:
        first = next(iter(unknown.values()))
        raise ModelError(
            f"{', '.join(sorted(unknown))} can't be run in torch yet (for example {first}): "
            "criteria that need no gradients can be used"
        )


def _trained(graph: Graph) -> set[str]:
    """The weights: floating-point tensors of more than one element that are no settings."""
    found: set[str] = set()
    settings: set[str] = set()
    for operator in graph.operators:
        for slot, name in enumerate(operator.inputs):
            parameter = graph.parameters.get(name)
            if parameter is None or parameter.dtype.kind != "f" or np.prod(parameter.shape) < 2:
                continue
            number = operator.op_type in _NUMBERS or (operator.op_type, slot) in _STATISTICS
            (settings if number else found).add(name)
    return found - settings


def _last_uses(graph: Graph) -> dict[int, list[str]]:
    """The values that nobody needs any more after each operator."""
    last = {name: o.index for o in graph.operators for name in (*o.inputs, *o.outputs) if name}
    kept = {*graph.outputs, *graph.parameters}
    found: dict[int, list[str]] = {}
    for name, index in last.items():
        if name not in kept:
            found.setdefault(index, []).append(name)
    return found
