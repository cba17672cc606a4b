"""Example inputs: what a module is called with, as people give it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from spa_graph.errors import ModelError
from spa_graph.frontends.torch.attention import plain_attention


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def map(self, function: Callable[[Any], Any]) -> Call:
        """The call with each leaf (a tensor, a number, ...) replaced."""
        args, kwargs = pytree.tree_map(function, (self.args, self.kwargs))
        return Call(args, kwargs)

    def leaves(self) -> list[Any]:
        """All tensors, numbers, ... in the order in which an exported graph takes them."""
        return pytree.tree_leaves((self.args, self.kwargs))

    def run(self, module: nn.Module) -> Any:
        """What the module returns; nothing is recorded for gradients."""
        with torch.no_grad(), plain_attention():
            return module(*self.args, **self.kwargs)


def as_call(example_inputs: Any) -> Call:
    """A tensor, a tuple of arguments, a mapping of named ones, or (arguments, named ones)."""
    if isinstance(example_inputs, Mapping):
        return Call((), dict(example_inputs))
    if isinstance(example_inputs, tuple | list):
        *args, last = example_inputs or (None,)
        if isinstance(last, dict) and len(args) == 1 and isinstance(args[0], tuple):
            return Call(args[0], last)
        return Call(tuple(example_inputs), {})
    return Call((example_inputs,), {})


def bound_arguments(model: nn.Module, call: Call) -> dict[str, Any]:
    """The arguments by the names that `forward` gives them.

    Raises:
        ModelError: forward doesn't take these arguments.
    """
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*call.args, **call.kwargs)
    except TypeError as error:
        hint = "; for one argument that is a mapping, give (mapping,)" * (not call.args)
        raise ModelError(
            f"the example inputs don't fit {type(model).__name__}.forward: {error}{hint}"
        ) from error
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            found.update(value)
        else:
            found[name] = value
    return found


def batch_size(call: Call) -> int | None:
    """The size of the first axis of the first tensor that has one: most likely the batch."""
    tensors = (leaf for leaf in call.leaves() if isinstance(leaf, Tensor) and leaf.ndim)
    first = next(tensors, None)
    return None if first is None else len(first)


def resized(call: Call, size: int) -> Call:
    """The call with another batch size: samples are repeated, or left out."""
    batch = batch_size(call)

    def resize(leaf: Any) -> Any:
        if not has_batch(leaf, batch):
            return leaf
        return leaf[torch.arange(size, device=leaf.device) % len(leaf)]

    return call.map(resize)


def has_batch(leaf: Any, batch: int | None) -> bool:
    """Whether a leaf is a tensor whose first axis seems to be the batch."""
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) == batch


def with_shapes(call: Call, shapes: Sequence[tuple[int, ...] | None]) -> Call:
    """The call with tensors of other sizes: what they hold is repeated, or left out.

    shapes: per leaf; None for those that stay.
    """
    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    for place, (leaf, shape) in enumerate(zip(leaves, shapes, strict=True)):
        for axis, size in enumerate(shape or ()):
            if isinstance(leaf, Tensor) and leaf.shape[axis] != size:
                index = torch.arange(size, device=leaf.device) % leaf.shape[axis]
                leaf = leaf.index_select(axis, index)
        leaves[place] = leaf
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return Call(args, kwargs)


def randomised(call: Call, seed: int) -> Call:
    """The call with random floating-point numbers, spread as the given ones; others stay."""
    generator = torch.Generator().manual_seed(seed)

    def draw(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or not leaf.numel():
            return leaf
        noise = torch.randn(leaf.shape, generator=generator)
        wide = leaf.detach().float().cpu()
        spread, mean = float(wide.std(correction=0)), float(wide.mean())
        if not 0 < spread < float("inf"):  # constant, or not finite: nothing to imitate
            return leaf if spread == 0 and mean != 0 else noise.to(leaf)
        return (noise * spread + mean).to(leaf)

    return call.map(draw)
