"""Regularise, then prune: a penalty on coupled channels, for the loss.

With w_c all trainable weights that go when channel c goes, of n_c elements,
  lasso   sum of sqrt(n_c) |w_c| over channels (Yuan & Lin, J. R. Stat. Soc. B 68, 2006, equation
          2.1; for channels of networks: Wen et al., arXiv 1608.03665): it empties whole channels
  ridge   sum of |w_c|^2 / 2 over the channels that a plan removes. Growing, it moves what they do
          to the others before they go (Wang et al., Neural Pruning via Growing Regularization,
          arXiv 2012.09243; for language models, DReSS, arXiv 2501.17905)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from spa_graph.coupling.analysis import Ints
from spa_graph.errors import ModelError, OptionError
from spa_graph.plan import Plan, kept_channels
from spa_graph.torch.api import analyze
from spa_graph.torch.options import in_python
from spa_graph.torch.pipeline import ModuleAnalysis

Kind = Literal["lasso", "ridge"]


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One axis of a parameter: position `positions[i]` goes with channel `channels[i]`."""

    name: str
    parameter: Tensor
    shape: torch.Size
    axis: int
    positions: Tensor
    channels: Tensor

    def add_squares(self, total: Tensor) -> Tensor:
        """Add the sum of squares of what goes with each channel; (channels,)."""
        if self.parameter.shape != self.shape:
            raise ModelError(
                f"`{self.name}` was {list(self.shape)} and is {list(self.parameter.shape)}: the "
                "module was pruned since, so make the penalty again"
            )
        own = self.parameter.movedim(self.axis, 0).float().square()
        each = own.flatten(1).sum(1) if own.ndim > 1 else own
        return total.index_add(0, self.channels, each[self.positions])


class GroupPenalty:
    """A number to add to the loss; `strength` scales it."""

    def __init__(self, parts: list[_Part], chosen: Tensor, kind: Kind, strength: float) -> None:
        self._parts, self._chosen, self.kind, self.strength = parts, chosen, kind, strength
        count = len(chosen)
        sizes = torch.zeros(count, device=chosen.device)
        for part in parts:
            own = part.parameter.numel() // part.shape[part.axis]
            sizes += own * torch.bincount(part.channels, minlength=count)
        self._sizes = sizes[chosen]

    def __call__(self) -> Tensor:
        """The penalty of the weights as they are."""
        squares = torch.zeros(len(self._chosen), device=self._chosen.device)
        for part in self._parts:
            squares = part.add_squares(squares)
        squares = squares[self._chosen]
        if self.kind == "ridge":
            return self.strength * squares.sum() / 2
        tiny = torch.finfo(squares.dtype).tiny  # where nothing is left, the gradient is 0
        return self.strength * (self._sizes * squares.clamp_min(tiny)).sqrt().sum()

    def grow(self, by: float, at_most: float) -> None:
        """Make the penalty stronger, as growing regularisation does every few steps."""
        self.strength = min(self.strength + by, at_most)


def group_penalty(
    model: nn.Module,
    example_inputs: Any,
    *,
    kind: Kind = "lasso",
    plan: Plan | None = None,
    strength: float = 1e-4,
    dynamic_shapes: Any = None,
    **options: Any,
) -> GroupPenalty:
    """A penalty on the channels of a module, to add to the loss of each training step.

    penalty = group_penalty(model, example_inputs)
    loss = loss_function(model(inputs), targets) + penalty()

    Args:
        model: the module that is trained.
        example_inputs: as of `prune`.
        kind: "lasso" makes whole channels small; "ridge" pulls all alike.
        plan: as of `plan_of(prune(model, ...))`: only the channels that it removes are penalised.
            Then prune with `apply_plan`.
        strength: what the penalty is multiplied by; it is an attribute, and may change.
        options: `exclude`, `exact`, `attention`, `groups` of `prune`.

    Raises:
        SpaError: the module can't be analysed, the plan doesn't fit, or an option is wrong.
    """
    if kind not in get_args(Kind):
        raise OptionError(f"kind {kind}: choose among {', '.join(get_args(Kind))}")
    if plan is not None:
        blocks = ("attention", "groups")
        options = {key: plan.model[key] for key in blocks if key in plan.model} | options
    analysis = analyze(model, example_inputs, dynamic_shapes=dynamic_shapes, **options)
    with in_python():
        count = analysis.coupling.count
        gone = np.ones(count, bool) if plan is None else ~kept_channels(analysis.coupling, plan)
    parts = _parts(model, analysis)
    if not gone.any() or not parts:
        raise ModelError("there is nothing to penalise: no channel can go, or no weight is trained")
    chosen = torch.from_numpy(gone).to(parts[0].channels.device)
    return GroupPenalty(parts, chosen, kind, strength)


def _parts(model: nn.Module, analysis: ModuleAnalysis) -> list[_Part]:
    """Every axis of a trainable parameter that goes with channels; each once, also if shared."""
    trained = dict(model.named_parameters(remove_duplicate=False))
    found: dict[tuple[str, int], dict[int, tuple[Ints, Ints]]] = {}
    for number, group in enumerate(analysis.groups):
        for member in group.members:
            if member.parameter in trained and trained[member.parameter].requires_grad:
                own = np.arange(group.start, group.stop)
                pair = (member.index.reshape(-1), own.repeat(member.index.shape[1]))
                found.setdefault((member.parameter, member.axis), {})[number] = pair
    parts = []
    for (name, axis), by_group in found.items():
        positions, channels = (
            torch.from_numpy(np.concatenate(each)).to(trained[name].device)
            for each in zip(*by_group.values(), strict=True)
        )
        parts.append(_Part(name, trained[name], trained[name].shape, axis, positions, channels))
    return parts
