"""What optimizers remember of each parameter (momenta, squared gradients), made smaller with it.

State is sliced where it has its parameter's shape, or a size of 1 instead of some of its axes (as
the factored moments of Adafactor have), which covers the optimizers of torch.optim but LBFGS.
Anything else is refused before anything is changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils import _pytree as pytree

from spa_graph.errors import OptionError
from spa_graph.frontends.torch.editor import get_tensor, sliced
from spa_graph.plan import AxisIndices, Plan

States = dict[Tensor, dict[str, Any]]
"""What is remembered of each parameter."""


def sliced_states(optimizer: Optimizer, model: nn.Module, plan: Plan) -> States:
    """What an optimizer remembers, as it is once the plan is applied; nothing is changed.

    Args:
        model: still whole.

    Raises:
        OptionError: the optimizer is of another module, or something can't be sliced: what, and of
            which parameter.
    """
    _check(optimizer, model)
    cut = {get_tensor(model, name): axes for name, axes in plan.kept.items()}
    names: dict[Tensor, str] = {tensor: name for name, tensor in model.named_parameters()}
    found: States = {}
    for parameter, state in optimizer.state.items():
        name = names.get(parameter, "a parameter of another module")
        found[parameter] = {
            key: _sliced_state(value, parameter, cut.get(parameter, {}), f"`{key}` of `{name}`")
            for key, value in state.items()
        }
    return found


def _check(optimizer: Optimizer, model: nn.Module) -> None:
    """All that can be said against an optimizer before it remembers anything."""
    if isinstance(optimizer, LBFGS):
        raise OptionError("LBFGS keeps all parameters as one vector, which can't be sliced")
    own = {id(each) for each in model.parameters()}
    held = [each for group in optimizer.param_groups for each in group["params"]]
    if not any(id(each) in own for each in held):
        raise OptionError("the optimizer has no parameter of this module")


def _sliced_state(value: Any, parameter: Tensor, kept: AxisIndices, where: str) -> Any:
    def slice_one(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.numel() == 1:
            return leaf
        if not kept and leaf.numel() <= parameter.numel():
            return leaf  # its own, whatever it is
        pairs = zip(leaf.shape, parameter.shape, strict=False)
        if leaf.ndim != parameter.ndim or any(own not in (1, size) for own, size in pairs):
            raise OptionError(
                f"the optimizer keeps {where} as {list(leaf.shape)}, where the parameter is "
                f"{list(parameter.shape)}: that can't be sliced; make a new optimizer"
            )
        return sliced(leaf, {axis: at for axis, at in kept.items() if leaf.shape[axis] > 1})

    return pytree.tree_map(slice_one, value)


def put_states(optimizer: Optimizer, states: States) -> None:
    """Let an optimizer remember this."""
    optimizer.state.clear()
    optimizer.state.update(states)


def replace_parameters(
    optimizer: Optimizer,
    states: States,
    new: Mapping[Tensor, Tensor],
    beside: Mapping[Tensor, Tensor],
) -> None:
    """Put other parameters in the place of an optimizer's, with what it remembers of them.

    Args:
        beside: by a new parameter, one that is trained with it from now on.
    """
    for group in optimizer.param_groups:
        group["params"] = [new.get(each, each) for each in group["params"]]
        group["params"] += [beside[each] for each in group["params"] if each in beside]
    put_states(optimizer, {new.get(each, each): state for each, state in states.items()})
