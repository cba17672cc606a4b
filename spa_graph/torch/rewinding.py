"""Lottery tickets: a pruned network with the weights that it had early, or before training.

Frankle & Carbin, The Lottery Ticket Hypothesis, arXiv 1803.03635; rewinding to early weights
instead of the initial ones: Frankle et al., arXiv 1912.05671.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from spa_graph.errors import OptionError
from spa_graph.frontends.torch.editor import sliced
from spa_graph.frontends.torch.reader import named_state, tied_names
from spa_graph.torch.api import plan_of
from spa_graph.torch.biases import bias_of


def rewind(pruned: nn.Module, early: Mapping[str, Tensor]) -> None:
    """Give the channels that stayed the weights of a saved state, in place.

    Biases that a refit added were not there then: they become zero.

    Args:
        pruned: a result of `prune`, or a module that was pruned in place, in one step or several.
        early: the state_dict of the whole module at an earlier time (a copy: `state_dict` itself
            follows the training).

    Raises:
        OptionError: the state is of another module; nothing is changed then.
    """
    plan, state = plan_of(pruned), dict(named_state(pruned))
    kept = {
        name: plan.kept[known]
        for names in tied_names(pruned).values()
        for known in names
        if known in plan.kept
        for name in names
    }
    new: dict[Tensor, Tensor] = {}
    added = {bias_of(name) for name in plan.model.get("biases", ())}
    for name in pruned.state_dict().keys() & state.keys():
        if name not in early and name in added:
            new[state[name]] = torch.zeros_like(state[name])
            continue
        if name not in early:
            if isinstance(pruned, torch.fx.GraphModule) and not isinstance(
                state[name], nn.Parameter
            ):
                continue  # a constant of the graph
            raise OptionError(f"the early state has no `{name}`: is it of the whole module?")
        axes, value = kept.get(name, {}), early[name]
        whole = plan.model["shapes"].get(name, list(value.shape))
        if list(value.shape) != whole or plan.left(name, whole) != list(state[name].shape):
            raise OptionError(
                f"the early state is of another module: its `{name}` is {list(value.shape)}, which "
                f"doesn't become {list(state[name].shape)}"
            )
        new[state[name]] = sliced(value, axes)
    with torch.no_grad():
        for tensor, value in new.items():
            tensor.copy_(value)
