"""A traced module -> `Graph`: one operator per ATen call, lowered where ONNX has the same operator.

Values go by the names of the graph's nodes, parameters and buffers by their fully qualified names,
tied ones by the first of theirs. Small integers that follow from constants and sizes alone are
computed, under both choices of sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from spa_graph.frontends.torch.folding import Folding
from spa_graph.frontends.torch.lowering import (
    LOWERINGS,
    AtenCall,
    Lowered,
    Slot,
    arguments_by_name,
    is_symbolic,
    is_tensor,
)
from spa_graph.frontends.torch.sizes import Sizes
from spa_graph.frontends.torch.tracing import Traced
from spa_graph.graph import Extent, Graph, Known, Operator, Parameter, Shape

_DTYPES = {
    torch.float64: np.float64, torch.float32: np.float32, torch.float16: np.float16,
    torch.int64: np.int64, torch.int32: np.int32, torch.int16: np.int16, torch.int8: np.int8,
    torch.uint8: np.uint8, torch.bool: np.bool_,
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where an operator stands in the traced module."""

    node: fx.Node
    lowered: Lowered


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """The graph of a traced module.

    places: where each operator stands, by its index.
    values: the names of the tensors that nodes give.
    tied: by parameter, all names that it goes by.
    """

    graph: Graph
    places: list[Place]
    values: dict[fx.Node, str]
    tied: dict[str, list[str]]


def read(
    traced: Traced,
    name: str,
    shapes: Mapping[str, Shape] | None = None,
    *,
    even: bool = False,
) -> Reading:
    """Build the neutral graph of a traced module.

    Args:
        name: of the network.
        shapes: of values, where they are others than when the module was traced.
        even: whether what is cut into equal parts must stay so.
    """
    return _Reader(traced, name, shapes or {}, even).read()


class _Reader:
    def __init__(self, traced: Traced, name: str, shapes: Mapping[str, Shape], even: bool) -> None:
        self.even = even
        self.module = traced.module
        self.sizes: Sizes = traced.sizes
        self.given = shapes
        self.tied = tied_names(self.module)
        self.canonical = {other: first for first, names in self.tied.items() for other in names}
        self.values: dict[fx.Node, str] = {}
        self.folding = Folding(self.sizes)
        self.places: list[Place] = []
        self.unsized: set[tuple[str, int]] = set()
        self.graph = Graph(
            name=name, operators=[], shapes={}, parameters={}, known={}, inputs=(), outputs=(),
            merges=False,
        )  # fmt: skip

    def read(self) -> Reading:
        graph = self.graph
        for node in self.module.graph.nodes:
            getattr(self, f"_{node.op}")(node)
        graph.unsized = frozenset(self.unsized)
        placeholders = [n for n in self.module.graph.nodes if n.op == "placeholder"]
        graph.inputs = tuple(self.values[n] for n in placeholders if n in self.values)
        return Reading(graph, self.places, self.values, self.tied)

    # --- nodes --------------------------------------------------------------------------------

    def _placeholder(self, node: fx.Node) -> None:
        if is_tensor(node):
            self._enter(node, node.name, node.meta["val"])

    def _get_attr(self, node: fx.Node) -> None:
        tensor = attribute(self.module, str(node.target))
        if not isinstance(tensor, Tensor) or not node.users:
            return  # a graph, say
        name = self.canonical.get(str(node.target), str(node.target))
        self.values[node] = name
        self.folding.enter(node, tensor)
        self._learn(node, name)
        if name not in self.graph.parameters:
            self.graph.parameters[name] = _parameter(name, tensor)
            self.graph.shapes[name] = tuple(Extent(size, size) for size in tensor.shape)

    def _call_function(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if str(node.target) == "<built-in function getitem>":
            source, index = node.args
            if source in self.values:
                self.values[node] = f"{self.values[source]}.{index}"  # type: ignore[index]
            return
        if not _gives_tensors(value):
            return  # a size, or a check
        lowered = self._lower(node)
        outputs = self._outputs(node, value, lowered)
        self.folding.call(node)
        if len(outputs) == 1 and lowered.outputs is None:
            self._learn(node, outputs[0])
        index = len(self.graph.operators)
        inputs = [self._operand(node, slot, each) for slot, each in enumerate(lowered.slots)]
        while inputs and not inputs[-1]:
            inputs.pop()
        self.graph.operators.append(
            Operator(
                index=index,
                position=index,
                name=node.name,
                domain=lowered.domain,
                op_type=lowered.op_type,
                version=lowered.version,
                inputs=tuple(inputs),
                outputs=outputs,
                attributes=lowered.attributes,
            )
        )
        self.places.append(Place(node, lowered))

    _call_module = _call_method = _call_function

    def _output(self, node: fx.Node) -> None:
        results = [n for n in node.all_input_nodes if n in self.values]
        self.graph.outputs = tuple(self.values[result] for result in results)

    # --- values -------------------------------------------------------------------------------

    def _lower(self, node: fx.Node) -> Lowered:
        target: Any = node.target
        if isinstance(target, torch._ops.OpOverload):
            space, _, name = target._schema.name.partition("::")
            lowering = LOWERINGS.get(name) if space == "aten" else None
            if lowering is not None:
                call = AtenCall(node, arguments_by_name(node), self.even)
                lowered = lowering(call)
                if lowered is not None:
                    return lowered
        else:
            space, name = "torch", getattr(target, "__name__", str(target))
        value = node.meta.get("val")
        operands: list[Slot] = [n for n in node.all_input_nodes if n in self.values]
        count = len(value) if isinstance(value, tuple | list) else None
        return Lowered(name, operands, domain=space, outputs=count)

    def _outputs(self, node: fx.Node, value: Any, lowered: Lowered) -> tuple[str, ...]:
        self.values[node] = node.name
        if lowered.outputs is None:
            self._enter(node, node.name, value)
            return (node.name,)
        names = []
        for index, each in enumerate(value[: lowered.outputs]):
            names.append(f"{node.name}.{index}" if isinstance(each, Tensor) else "")
            if names[-1]:
                self._enter(None, names[-1], each)
        return tuple(names)

    def _enter(self, node: fx.Node | None, name: str, tensor: Tensor) -> None:
        if node is not None:
            self.values[node] = name
        self.graph.shapes[name] = self.given.get(name) or self.sizes.shape(tensor)
        self.graph.dtypes[name] = np.dtype(_DTYPES.get(tensor.dtype, np.float32))
        for axis, size in enumerate(tensor.shape):
            if self.sizes.depends_on_data(size):
                self.unsized.add((name, axis))

    def _learn(self, node: fx.Node, name: str) -> None:
        known = self.folding.known(node)
        if known is not None:
            self.graph.known[name] = known

    def _operand(self, node: fx.Node, slot: int, operand: Slot) -> str:
        """The name of an operand; constants and sizes become values of their own."""
        if operand is None:
            return ""
        if isinstance(operand, fx.Node) and not is_symbolic(operand):
            return self.values[operand]
        name = f"{node.name}.input{slot}"
        nominal, other = (self._number(operand, which) for which in (0, 1))
        self.graph.shapes[name] = tuple(Extent(size, size) for size in nominal.shape)
        self.graph.dtypes[name] = nominal.dtype
        self.graph.known[name] = Known(nominal, other, static=not _has_symbols(operand))
        return name

    def _number(self, operand: Slot, which: int) -> NDArray[Any]:
        if isinstance(operand, tuple):
            return np.array([self._scalar(each, which) for each in operand])
        return np.asarray(self._scalar(operand, which))

    def _scalar(self, value: Any, which: int) -> Any:
        return self.sizes.extent(value.meta["val"])[which] if is_symbolic(value) else value


def _has_symbols(operand: Slot) -> bool:
    return any(map(is_symbolic, operand if isinstance(operand, tuple) else (operand,)))


def _gives_tensors(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(isinstance(each, Tensor) for each in value)
    return isinstance(value, Tensor)


def attribute(module: torch.nn.Module, name: str) -> Any:
    """What a module holds under a fully qualified name."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found


def tied_names(module: torch.nn.Module) -> dict[str, list[str]]:
    """Every name of each parameter and buffer, by the first one."""
    found: dict[int, list[str]] = {}
    for name, tensor in named_state(module):
        found.setdefault(id(tensor), []).append(name)
    return {names[0]: names for names in found.values()}


def named_state(module: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by fully qualified names; tied ones under each of theirs."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _parameter(name: str, tensor: Tensor) -> Parameter:
    wide = tensor.dtype not in _DTYPES  # bfloat16 and the like
    dtype = np.dtype(np.float32 if wide else _DTYPES[tensor.dtype])

    def load() -> NDArray[Any]:
        held = tensor.detach().cpu()
        return (held.float() if wide else held).numpy()

    return Parameter(name, tuple(tensor.shape), dtype, tensor.numel() * tensor.element_size(), load)
