"""Running a network with someone standing around each of its operators.

The operators are those of the analysis, of whichever frontend; so are their operands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from spa_graph.frontends.torch.calls import Call
from spa_graph.frontends.torch.reader import Place, Reading
from spa_graph.frontends.torch.tracing import Traced

Operands = Sequence[Any]
"""Tensors, constants and None, by input slot."""
Run = Callable[[Operands], Any]
"""Runs an operator on other operands."""


class Around(Protocol):
    """Decides what an operator gives."""

    def __call__(self, index: int, operands: Operands, run: Run) -> Any:
        """What operator `index` gives; as it is, that is `run(operands)`."""


def watched(traced: Traced, reading: Reading, around: Around) -> nn.Module:
    """A copy of a traced module, with someone around each operator."""
    module = traced.copied()
    interpreter = _Interpreter(module, reading.places, around)

    def forward(*args: Any, **kwargs: Any) -> Any:
        flat = traced.flat(Call(args, kwargs))
        return module.graph.process_outputs(interpreter.run(*flat, enable_io_processing=False))

    module.forward = forward  # type: ignore[method-assign]
    return module


class _Interpreter(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, places: Sequence[Place], around: Around) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._around = around
        self._places = {place.node.name: (n, place) for n, place in enumerate(places)}

    def run_node(self, n: fx.Node) -> Any:
        if n.name not in self._places:
            return super().run_node(n)
        index, place = self._places[n.name]
        named = {node.name: self.env[node] for node in n.all_input_nodes}
        sources = [s.name if isinstance(s, fx.Node) else None for s in place.lowered.slots]
        operands = [
            named.get(source) if source else constant
            for source, constant in zip(sources, place.lowered.slots, strict=True)
        ]

        def run(given: Operands) -> Any:
            replaced = named | {s: v for s, v in zip(sources, given, strict=True) if s}
            args, kwargs = pytree.tree_map(
                lambda v: replaced[v.name] if isinstance(v, fx.Node) else v,
                (list(n.args), dict(n.kwargs)),
                is_leaf=lambda v: isinstance(v, fx.Node),
            )
            return n.target(*args, **kwargs)  # type: ignore[operator]

        return self._around(index, operands, run)


def tensors(operands: Operands) -> list[Tensor]:
    """The operands that are floating-point tensors."""
    return [each for each in operands if isinstance(each, Tensor) and each.is_floating_point()]
