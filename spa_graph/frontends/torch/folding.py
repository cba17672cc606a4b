"""Small tensors that follow from constants and sizes alone: positions, masks, zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from spa_graph.frontends.torch.sizes import Sizes
from spa_graph.graph import Known

LIMIT = 1 << 16
"""Tensors of more elements than this are not computed."""
_FILLING = frozenset(
    {"zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "scalar_tensor"}
)
_PASSING = frozenset(
    {"clone", "view", "_unsafe_view", "reshape", "expand", "permute", "transpose", "unsqueeze",
     "squeeze", "slice", "select", "to", "_to_copy", "alias", "detach"}
)  # fmt: skip
_RANDOM = torch.Tag.nondeterministic_seeded


class Folding:
    """Computes what can be computed, under both choices of sizes."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._values: dict[fx.Node, tuple[Tensor, Tensor]] = {}
        self._fills: set[fx.Node] = set()
        self._dynamic: set[fx.Node] = set()

    def enter(self, node: fx.Node, tensor: Tensor) -> None:
        """A constant: a buffer or parameter that holds integers or flags."""
        single = not tensor.ndim and not isinstance(tensor, torch.nn.Parameter)
        whole = not tensor.is_floating_point() and not tensor.is_complex()
        if single or (whole and tensor.numel() <= LIMIT):
            held = tensor.detach().cpu()
            self._values[node] = (held, held)

    def call(self, node: fx.Node) -> None:
        """Compute a call whose operands are all known."""
        target: Any = node.target
        operands = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
        name = target._schema.name if isinstance(target, torch._ops.OpOverload) else ""
        if not name.startswith("aten::") or not self._computable(node, operands, name[6:]):
            return
        results = [self._run(node, which) for which in (0, 1)]
        if any(not isinstance(each, Tensor) or each.numel() > LIMIT for each in results):
            return
        self._values[node] = (results[0], results[1])
        first = operands[0] if operands else None
        if name[6:] in _FILLING or (name[6:] in _PASSING and first in self._fills):
            self._fills.add(node)
        symbols = any(isinstance(n.meta.get("val"), torch.SymInt) for n in node.all_input_nodes)
        if symbols or self._dynamic.intersection(operands):
            self._dynamic.add(node)

    def _computable(self, node: fx.Node, operands: list[fx.Node], name: str) -> bool:
        value, target = node.meta.get("val"), node.target
        if not isinstance(value, Tensor) or _RANDOM in target.tags:  # type: ignore[union-attr]
            return False
        fills = name in _FILLING  # of an operand only the type matters
        if not fills and not all(n in self._values for n in operands):
            return False
        if not operands and not fills and name != "arange":
            return False
        return all(
            int(np.prod([extent[which] for extent in self._sizes.shape(value)])) <= LIMIT
            for which in (0, 1)
        )

    def _run(self, node: fx.Node, which: int) -> Any:
        def concrete(value: Any) -> Any:
            if isinstance(value, torch.device):
                return torch.device("cpu")
            if not isinstance(value, fx.Node):
                return value
            if value in self._values:
                return self._values[value][which]
            held = value.meta["val"]
            if isinstance(held, Tensor):  # only its type matters
                return torch.zeros((), dtype=held.dtype)
            return self._sizes.extent(held)[which]

        args, kwargs = pytree.tree_map(
            concrete, (list(node.args), dict(node.kwargs)), is_leaf=lambda v: isinstance(v, fx.Node)
        )
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def known(self, node: fx.Node) -> Known | None:
        """What is known of a node's tensor."""
        if node not in self._values:
            return None
        first, second = (_array(value) for value in self._values[node])
        return Known(first, second, fill=node in self._fills, static=node not in self._dynamic)


def _array(tensor: Tensor) -> Any:
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return tensor.resolve_conj().numpy()
