"""Pruning amid training: the module itself becomes smaller, or its optimizer follows."""

from __future__ import annotations

from contextlib import suppress

from torch import Tensor, nn
from torch.optim import Optimizer

from spa_graph.errors import OptionError
from spa_graph.frontends.torch.tracing import check_module
from spa_graph.plan import Plan
from spa_graph.torch.api import check_shapes, cut, fits, plan_of, record_of, was_pruned
from spa_graph.torch.biases import new_biases
from spa_graph.torch.optimizers import put_states, replace_parameters, sliced_states


def apply_plan_(model: nn.Module, plan: Plan, optimizer: Optimizer | None = None) -> None:
    """Prune a module by a plan of `prune`, in place: its parameters stay the same objects.

    So whatever holds the module or its parameters (a trainer, an optimizer, a scheduler) goes on.
    DistributedDataParallel doesn't, which has buffers of the old sizes: wrap the module again. Call
    it between steps, when no gradients are waiting.

    Args:
        model: the module, as it was when the plan was made.
        plan: of `prune(model, ...)`, by `plan_of`; it also tells attributes of modules. A module
            that was pruned before loses what the plan takes beyond that.
        optimizer: of the module; what it remembers of each parameter is sliced as well.

    Raises:
        OptionError: the plan doesn't fit the module, or the optimizer's state can't be sliced.
            Nothing is changed then.
    """
    check_module(model)
    if was_pruned(model) and not fits(model, plan):
        with suppress(OptionError):  # else it is told below what doesn't fit
            plan = plan.since(plan_of(model))
    check_shapes(model, plan)
    states = None if optimizer is None else sliced_states(optimizer, model, plan)
    cut(model, plan)
    if optimizer is not None and states is not None:
        put_states(optimizer, states)


def follow(optimizer: Optimizer, model: nn.Module, pruned: nn.Module) -> None:
    """Let an optimizer of a module train the pruned one from now on, in place.

    What it remembers of the channels that stay (momenta and the like) is kept, and so are parameter
    groups with their options, and learning-rate schedulers.

    Args:
        optimizer: of parameters of `model`; those of other modules stay.
        model: the module that went into `prune` or `apply_plan`.
        pruned: what came out.

    Raises:
        OptionError: `pruned` was not made of such a module, or the optimizer is of another one, or
            its state can't be sliced. Nothing is changed then.
    """
    step = record_of(pruned).step
    check_shapes(model, step)
    states = sliced_states(optimizer, model, step)
    after = dict(pruned.named_parameters(remove_duplicate=False))
    before = model.named_parameters(remove_duplicate=False)
    new: dict[Tensor, Tensor] = {tensor: after[name] for name, tensor in before if name in after}
    added: dict[Tensor, Tensor] = {after[name]: bias for name, bias in new_biases(pruned, step)}
    replace_parameters(optimizer, states, new, added)
