"""How far to prune at which time: ramps from the whole network to the budget.

With f the share of the cost that is left in the end, after step t of n is left
  linear       1 - (1 - f) t / n
  exponential  f^(t / n), the same share of what there is in each step (Frankle & Carbin, arXiv
               1803.03635)
  cubic        f + (1 - f) (1 - t / n)^3, most of it early, when there is most to choose from (Zhu &
               Gupta, arXiv 1710.01878, equation 1)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from torch import nn
from torch.optim import Optimizer

from spa_graph.errors import OptionError
from spa_graph.passes.importance.differential import FromGradients
from spa_graph.passes.pipeline import chosen_criterion
from spa_graph.plan import Plan
from spa_graph.torch.api import plan_of, prune, record_of, remember, report_of, was_pruned
from spa_graph.torch.distributed import agree, of_first
from spa_graph.torch.in_place import apply_plan_
from spa_graph.torch.objective import check
from spa_graph.torch.optimizers import sliced_states
from spa_graph.torch.options import in_python, make_options

Ramp = Literal["linear", "exponential", "cubic"]
RAMPS: dict[Ramp, Callable[[float, float], float]] = {
    "linear": lambda final, time: 1 - (1 - final) * time,
    "exponential": lambda final, time: final**time,
    "cubic": lambda final, time: final + (1 - final) * (1 - time) ** 3,
}


def ratios(final: float, steps: int, ramp: Ramp = "cubic") -> list[float]:
    """The share of the cost that is left after each step; the last is `final`.

    Raises:
        OptionError: there is no such ramp, no step, or no share between 0 and 1.
    """
    if ramp not in RAMPS:
        raise OptionError(f"ramp {ramp}: choose among {', '.join(get_args(Ramp))}")
    if steps < 1:
        raise OptionError(f"steps must be at least 1, not {steps}")
    if not 0 < final < 1:
        raise OptionError(f"a budget must lie between 0 and 1, not {final}")
    return [RAMPS[ramp](final, step / steps) for step in range(1, steps)] + [final]


@dataclass(frozen=True, slots=True)
class Pace:
    """After which epochs a trainer prunes: `start`, counted from 0, and each `every` after it."""

    start: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        if self.start < 0 or self.every < 1:
            raise OptionError(
                f"start must be at least 0 and every at least 1, not {self.start}, {self.every}"
            )

    def is_due(self, epoch: int) -> bool:
        return epoch >= self.start and (epoch - self.start) % self.every == 0


class Schedule:
    """Prunes a module in place, step by step, between the steps of a user's own training.

    schedule = Schedule(model, example_inputs, flops=0.3, steps=10, optimizer=optimizer)
    for epoch in range(30):
        train(model, optimizer)
        schedule.step()  # after the tenth call nothing changes any more

    The last step is tried when the schedule is made, so that what can't work is told before the
    training. Under torch.distributed every process must step; the first one's plan counts.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        *,
        steps: int = 1,
        ramp: Ramp = "cubic",
        optimizer: Optimizer | None = None,
        **options: Any,
    ) -> None:
        """Prepare to prune.

        Args:
            model: the module that is trained; not one that wraps it.
            example_inputs: as of `prune`.
            steps: how often `step` prunes; 1 is one shot.
            ramp: "linear", "exponential" or "cubic": how much each step leaves.
            optimizer: of the module; what it remembers of each parameter follows.
            options: of `prune`; `flops` or `params` is what is left of the module in the end.

        Raises:
            SpaError: as of `prune`.
        """
        given = [name for name in ("flops", "params") if options.get(name) is not None]
        if len(given) != 1 or "ratio" in options or "return_type" in options:
            raise OptionError("a schedule needs one budget, flops or params, and gives a module")
        self._quantity = given[0]
        self.ratios = ratios(options.pop(self._quantity), steps, ramp)
        self.model, self.optimizer, self.done = model, optimizer, 0
        self._inputs, self._options = example_inputs, options
        if options.get("reconstruct") not in (None, "none"):
            raise OptionError(
                "a schedule prunes amid training, which refits the weights: leave out reconstruct"
            )
        if options.get("calibrate") is not None:
            options["reconstruct"] = "none"
        with in_python():
            chosen = make_options(options | {self._quantity: self.ratios[-1]}, budget=True)
            criterion = chosen_criterion(chosen)
        if isinstance(criterion, FromGradients) and criterion.needs_loss:
            check(chosen.data, chosen.loss)
        # for the trial, weights are enough
        needs_data = (
            "criterion", "data", "loss", "calibrate", "reconstruct", "allocation", "preprocess"
        )  # fmt: skip
        cheap = {key: value for key, value in options.items() if key not in needs_data}
        trial = self._pruned(self.ratios[-1], cheap)
        if optimizer is not None:
            sliced_states(optimizer, model, record_of(trial).step)
        self._whole = self._left = report_of(trial)["before"][self._quantity]

    @property
    def ratio(self) -> float:
        """The share of the cost that is left now."""
        return float(self._left / self._whole)

    def step(self) -> None:
        """Prune to the next ratio of the ramp; nothing if it is reached already, or none is left.

        Raises:
            SpaError: as of `prune`; the module is as it was.
        """
        if self.done == len(self.ratios):
            return
        wanted = self.ratios[self.done] / self.ratio
        if wanted < 1:
            pruned = self._pruned(wanted, self._options)
            apply_plan_(self.model, agree(record_of(pruned).step), self.optimizer)
            done = record_of(self.model)
            remember(self.model, replace(done, report=report_of(pruned)))
            self._left = of_first(report_of(pruned)["after"][self._quantity])
        self.done += 1

    def _pruned(self, ratio: float, options: dict[str, Any]) -> nn.Module:
        budget = {self._quantity: ratio}
        pruned: nn.Module = prune(
            self.model, self._inputs, return_type="module", **budget, **options
        )
        return pruned

    def state_dict(self) -> dict[str, Any]:
        """How far the module was pruned, for a checkpoint next to the weights."""
        plan = json.dumps(plan_of(self.model).to_json()) if was_pruned(self.model) else ""
        return {"done": self.done, "left": self._left, "plan": plan}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint: the module, which is whole, loses what it had lost.

        Load its weights, and the optimizer's state, after this.
        """
        if state["plan"]:
            apply_plan_(self.model, Plan.from_json(json.loads(state["plan"])), self.optimizer)
        self.done, self._left = state["done"], state["left"]
