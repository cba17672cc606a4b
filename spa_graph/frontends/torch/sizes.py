"""Symbolic sizes of a traced module, evaluated under two choices (the probes of `graph.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from spa_graph.graph import Extent, Shape

_STEP = 5
"""How much the second choice adds to a dynamic axis other than the batch."""
_UNKNOWN = (3, 5)
"""What is chosen for a size that depends on data."""

Choice = dict[sympy.Symbol, int]


@dataclass(slots=True, eq=False)
class Sizes:
    """Two choices for every symbol of a traced module."""

    nominal: Choice
    other: Choice
    unknown: set[sympy.Symbol] = field(default_factory=set)
    """Symbols of sizes that depend on data."""

    @property
    def dynamic(self) -> bool:
        """Whether any size is free."""
        return bool(self.nominal)

    def extent(self, size: Any) -> Extent:
        """A size, perhaps symbolic, under both choices."""
        if not isinstance(size, torch.SymInt):
            return Extent(int(size), int(size))
        expression = sympy.sympify(size.node.expr)
        for symbol in expression.free_symbols - self.nominal.keys():
            self.nominal[symbol], self.other[symbol] = _UNKNOWN
            self.unknown.add(symbol)
        nominal, other = (
            int(expression.xreplace({s: sympy.Integer(v) for s, v in choice.items()}))
            for choice in (self.nominal, self.other)
        )
        return Extent(nominal, other)

    def shape(self, tensor: Tensor) -> Shape:
        """The extents of a (fake) tensor's axes."""
        return tuple(map(self.extent, tensor.shape))

    def depends_on_data(self, size: Any) -> bool:
        """Whether a size is known only when the module runs."""
        if not isinstance(size, torch.SymInt):
            return False
        return bool(sympy.sympify(size.node.expr).free_symbols & self.unknown)


def choose_sizes(module: fx.GraphModule, ranges: Mapping[Any, Any], *, batched: bool) -> Sizes:
    """The size that each symbol was traced with, and another one within its range.

    Costs are those of one sample: a batch (the only free axis if `batched`) counts as 1. The other
    choice is one that the module takes, and that differs from the example.
    """
    sizes = Sizes({}, {})
    for node in module.graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        for size in value.shape if isinstance(value, Tensor) else ():
            if isinstance(size, torch.SymInt):
                for symbol in sympy.sympify(size.node.expr).free_symbols:
                    first, second = _within(size, ranges.get(symbol), 1 if batched else _STEP)
                    sizes.nominal[symbol], sizes.other[symbol] = 1 if batched else first, second
    return sizes


def _within(size: torch.SymInt, allowed: Any, step: int) -> tuple[int, int]:
    hint = int(size.node.hint)
    low, high = (int(allowed.lower), allowed.upper) if allowed is not None else (1, hint + step)
    if hint + step <= high:
        return hint, hint + step
    return (hint, int(high)) if hint < high else (hint, max(low, 1))
