"""The proof: on random inputs, the pruned network computes what the masked original computes.

The masked original runs at the example's sizes and at others (`frontends/torch/masking.py`). The
pruned graph, and the pruned module if there is one, must give the same outputs; and every value of
the pruned graph must have the size that the cost was counted with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from spa_graph.errors import VerificationError
from spa_graph.frontends.torch.calls import Call, randomised
from spa_graph.frontends.torch.masking import Reference
from spa_graph.frontends.torch.tracing import Traced, short, where
from spa_graph.graph import Shape
from spa_graph.runtime.verify import Agreement, compare

Outputs = list[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """Random calls, and what the masked original gives for each."""

    calls: list[Call]
    wanted: list[Outputs]

    def of(self, module: nn.Module) -> Agreement:
        """Compare a module.

        Raises:
            VerificationError: it gives something else, or fails.
        """
        found = []
        for call, wanted in zip(self.calls, self.wanted, strict=True):
            try:
                got = pytree.tree_leaves(call.run(module))
            except Exception as error:  # whatever the user's module raises
                text = f"it fails{where(error)}: {short(error)}"
                raise VerificationError(text) from error
            found.append(agreement(got, wanted))
        return max(found, key=lambda each: (each.share, each.shown))


def make_proof(traced: Traced, reference: Reference, seed: int = 0) -> Proof:
    """Run the masked original on random inputs, at the example's sizes and at others."""
    calls = [randomised(call, seed + place) for place, call in enumerate(traced.calls)]
    with torch.no_grad():
        wanted = [
            pytree.tree_leaves(reference.run(*traced.flat(call), enable_io_processing=False))
            for call in calls
        ]
    return Proof(calls, wanted)


def agreement(got: Outputs, want: Outputs) -> Agreement:
    """The worst of all outputs.

    Raises:
        VerificationError: there is another number of outputs, or one differs.
    """
    if len(got) != len(want):
        raise VerificationError(f"there are {len(got)} outputs instead of {len(want)}")
    tensors = [isinstance(each, Tensor) for each in want]
    for first, second in zip(got, want, strict=True):
        if not isinstance(second, Tensor) and first != second:
            raise VerificationError(f"an output is {first} instead of {second}")
    names = [f"{place}" for place, is_one in enumerate(tensors) if is_one]
    if not names:
        raise VerificationError("the module returns no tensor, so nothing can be compared")
    return compare(names, _arrays(got, tensors), _arrays(want, tensors))


def _arrays(values: Outputs, tensors: Sequence[bool]) -> list[np.ndarray[Any, Any]]:
    found = []
    for value, is_one in zip(values, tensors, strict=True):
        if is_one:
            held = value.detach().cpu().resolve_conj()
            held = torch.view_as_real(held) if held.is_complex() else held
            half = held.dtype == torch.bfloat16
            found.append((held.to(torch.float16) if half else held).numpy())
    return found


class Measured(fx.Interpreter):
    """Runs a graph and checks the shape of every value."""

    def __init__(self, module: fx.GraphModule, expected: dict[str, Shape], which: int) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._expected, self._which = expected, which

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        wanted = self._expected.get(n.name)
        if wanted is not None and isinstance(result, Tensor):
            shape = tuple(extent[self._which] for extent in wanted)
            if tuple(result.shape) != shape:
                raise VerificationError(
                    f"`{n.name}` would be {list(result.shape)} instead of {list(shape)}"
                )
        return result


def check_sizes(traced: Traced, pruned: fx.GraphModule, expected: dict[str, Shape]) -> None:
    """Every value of the pruned graph has the size that it was counted with.

    Raises:
        VerificationError: one doesn't, or the graph fails.
    """
    call, which = traced.measured
    if traced.sizes.unknown:
        return  # sizes depend on data
    try:
        with torch.no_grad():
            Measured(pruned, expected, which).run(*traced.flat(call), enable_io_processing=False)
    except VerificationError:
        raise
    except Exception as error:
        raise VerificationError(f"the pruned graph fails: {short(error)}") from error
