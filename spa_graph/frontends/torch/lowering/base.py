"""What lowering an ATen call means, and the registry of how each is lowered.

An ATen operator that does what an ONNX operator does is given to the analysis as that operator, so
that one set of rules serves both frontends. A few have no counterpart: they keep their name, in the
domain "aten", and have rules of their own (`coupling/rules_aten`). Whatever isn't in the registry
is unknown: it freezes what it touches and is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

OPSET = 21
"""The version of ONNX operators whose meaning is taken, where none is stated."""
ATTRIBUTES = 11
"""A version at which reductions hold their axes in attributes."""

Slot: TypeAlias = fx.Node | int | float | bool | NDArray[Any] | tuple[Any, ...] | None
"""An operand: a tensor or symbolic size of the graph, a constant, sizes, or absent."""


@dataclass(frozen=True, slots=True, eq=False)
class Lowered:
    """An ATen call as the analysis sees it.

    Attributes:
        op_type, slots, attributes, domain, version: as in `graph.Operator`.
        outputs: how many tensors it gives; None: one, which is not in a tuple.
        arguments: by attribute or slot that may change, the call's argument that holds it.
        sizes: the argument that lists the sizes of the output, or of the parts.
        inner: the argument that lists the sizes of the last axes, of input and output alike.
    """

    op_type: str
    slots: list[Slot]
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ""
    version: int = OPSET
    outputs: int | None = None
    arguments: dict[str | int, str] = field(default_factory=dict)
    sizes: str | None = None
    inner: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class AtenCall:
    """One call of an ATen operator, its arguments by name."""

    node: fx.Node
    arguments: Mapping[str, Any]
    even: bool = False
    """Whether what is cut into equal parts must stay so: a module's `chunk` can't do otherwise."""

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.arguments.get(name, default)

    def rank(self, name: str) -> int:
        """How many axes a tensor argument has."""
        return self.arguments[name].meta["val"].ndim

    def axis(self, value: str, name: str = "dim") -> int:
        """The axis that an argument names, counted from 0."""
        return int(self.arguments[name]) % max(self.rank(value), 1)

    @property
    def result(self) -> Any:
        """The (fake) tensor, or tensors, that it gives."""
        return self.node.meta["val"]


Lowering = Callable[[AtenCall], Lowered | None]
"""None: not in this form."""
LOWERINGS: dict[str, Lowering] = {}


AnyLowering = TypeVar("AnyLowering", bound=Lowering)


def lowers(*names: str) -> Callable[[AnyLowering], AnyLowering]:
    """Register how ATen operators (overload packets) are lowered."""

    def register(function: AnyLowering) -> AnyLowering:
        for name in names:
            if name in LOWERINGS:
                raise ValueError(f"two lowerings for aten::{name}")
            LOWERINGS[name] = function
        return function

    return register


def renamed(op_type: str, *operands: str, domain: str = "") -> Lowering:
    """The operator under another name; `operands` are the arguments that it takes."""

    def lower(call: AtenCall) -> Lowered:
        return Lowered(op_type, [call[name] for name in operands], domain=domain)

    return lower


def arguments_by_name(node: fx.Node) -> dict[str, Any]:
    """A call's arguments, also those that have their default, by the names of the schema."""
    found: dict[str, Any] = {}
    for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if position < len(node.args):
            found[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            found[argument.name] = node.kwargs[argument.name]
        else:
            found[argument.name] = argument.default_value
    return found


def changed_arguments(
    node: fx.Node, new: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments with some changed, by the names of the schema; the node stays."""
    args, kwargs = list(node.args), dict(node.kwargs)
    for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name not in new:
            continue
        if position < len(args):
            args[position] = new[argument.name]
        else:
            kwargs[argument.name] = new[argument.name]
    return tuple(args), kwargs


def is_tensor(value: object) -> bool:
    """Whether a value is a node that gives one tensor."""
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)


class Fill:
    """A repeated value, in the form in which ONNX attributes hold tensors."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def numpy(self) -> NDArray[Any]:
        return np.array([self._value if not isinstance(self._value, fx.Node) else 1])


def is_symbolic(value: object) -> bool:
    """Whether a value is a node that gives a size."""
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.SymInt)
