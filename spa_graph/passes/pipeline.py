"""load -> analyze -> score -> allocate -> rewrite: the steps, in order; `proof.py` verifies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.analysis import Coupling
from spa_graph.coupling.structures import Kind
from spa_graph.errors import BudgetError, ModelError, OptionError
from spa_graph.passes.allocate import (
    Costs,
    Kept,
    Limits,
    allocate,
    allocate_by_distortion,
    allocate_uniform,
    importance_curves,
)
from spa_graph.passes.calibrated import Calibrated
from spa_graph.passes.importance import Criterion, make_criterion, score
from spa_graph.passes.importance.differential import Differentiable, FromGradients, missing
from spa_graph.passes.network import Analysis, Analyzed, Pruned, rewrite
from spa_graph.passes.options import Options, Timer
from spa_graph.passes.reconstruct.heads.orient import Oriented, orient
from spa_graph.passes.sensitivity import Sensitivity, measure
from spa_graph.plan import Plan, kept_channels


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """Which channels stay, shape (channels,), and what was measured to choose them."""

    kept: Kept
    sensitivity: Sensitivity | None = None


NetworkWithout = Callable[[Kept], Differentiable]
"""A network that can be differentiated, whose weights of the channels that aren't kept are zero."""


@dataclass(slots=True, eq=False)
class Ranking:
    """What is known of all channels before a budget is; it serves any number of budgets.

    scores: the importance of each channel; (channels,).
    criterion, network: what tells it anew where channels are gone, for criteria in rounds.
    """

    analysis: Analyzed
    scores: NDArray[np.float64]
    criterion: Criterion
    calibrated: Calibrated | None = None
    network: NetworkWithout | None = None
    _measured: Sensitivity | None = None

    def order(self) -> list[NDArray[np.int64]]:
        """Per group its channels, from most to least important."""
        return [
            g.start + np.argsort(-self.scores[g.start : g.stop], kind="stable")
            for g in self.analysis.groups
        ]

    def sensitivity(self, whole: Kept, options: Options, timer: Timer) -> Sensitivity | None:
        """The groups' curves, each measured once; None without calibration data."""
        if self.calibrated is None:
            return None
        assert isinstance(self.analysis, Analysis)  # only those are calibrated
        known = self._measured
        if known is None or (known.whole & ~whole).any():
            oriented = self._oriented(options, timer)
            with timer.step("measure groups") as progress:
                self._measured = measure(
                    self.analysis,
                    self.scores,
                    self.calibrated.layers,
                    self.calibrated.held_out,
                    whole,
                    progress,
                    padding=self.calibrated.padding,
                    known=known,
                    oriented=oriented,
                )
        return self._measured

    def _oriented(self, options: Options, timer: Timer) -> Oriented | None:
        """How heads are measured that get smaller, if what is left is refitted for each other."""
        if options.attention != "head-dim" or options.method != "ls":
            return None
        assert isinstance(self.analysis, Analysis) and self.calibrated is not None
        with timer.step("measure groups"):
            return orient(self.analysis, self.scores, self.calibrated, options)


def rank(
    analysis: Analyzed,
    options: Options,
    timer: Timer,
    calibrated: Calibrated | None = None,
    network: NetworkWithout | None = None,
) -> Ranking:
    """Score all channels.

    Args:
        calibrated: what calibration data says.
        network: where gradients come from, for criteria that need them.

    Raises:
        ModelError: nothing can be pruned.
    """
    if not analysis.coupling.count:
        raise ModelError(_why_nothing(analysis.coupling, options))
    criterion = calibrated.criterion if calibrated else chosen_criterion(options)
    ranking = Ranking(analysis, np.zeros(0), criterion, calibrated, network)
    return _score(ranking, np.ones(analysis.coupling.count, bool), options, timer)


def _score(ranking: Ranking, kept: Kept, options: Options, timer: Timer) -> Ranking:
    """The ranking of what is left when only some channels are kept; the others come last."""
    criterion, calibrated = ranking.criterion, ranking.calibrated
    if isinstance(criterion, FromGradients) and ranking.network is not None:
        with timer.step("gradients") as progress:
            criterion.differentiate(ranking.network(kept), progress)
    with timer.step("score") as progress:
        scores = score(
            ranking.analysis.coupling,
            criterion,
            aggregate=options.aggregate,
            normalize=options.normalize,
            layers=calibrated.layers if calibrated else None,
            progress=progress,
        )
    return replace(ranking, scores=np.where(kept, scores, -np.inf), _measured=None)


def chosen_criterion(options: Options) -> Criterion:
    """The criterion of the options.

    Raises:
        OptionError: there is none of this name, or it needs data that isn't there.
    """
    criterion = make_criterion(options.criterion_name, options.seed)
    lacking = isinstance(criterion, FromGradients) and criterion.needs_loss
    if lacking and options.data is None:
        raise OptionError(missing(criterion.name))
    return criterion


def check_data_taken(options: Sequence[Options]) -> None:
    """Whether one of these runs takes the samples with targets that are given, and their number.

    Raises:
        OptionError: none does.
    """
    criteria = [chosen_criterion(each) for each in options]
    if any(isinstance(each, FromGradients) and each.needs_loss for each in criteria):
        return
    names = ", ".join(dict.fromkeys(each.name for each in criteria))
    by_gradients = f"for criteria by gradients of a loss, such as taylor; this is {names}"
    if any(each.data is not None and each.finetune is None for each in options):
        raise OptionError(f"--data has no effect: it is for --finetune, and {by_gradients}")
    if any(each.samples is not None and each.calibrate is None for each in options):
        raise OptionError(
            f"--samples has no effect: --finetune trains on all of --data; it is for --calibrate, "
            f"and {by_gradients}"
        )


@dataclass(frozen=True, slots=True)
class Times:
    """What candidates cost in time: a model of the network on this machine, and its grid of counts.

    unit: what counts are multiples of; kernels for others are slower.
    """

    costs: Costs
    unit: int


def choose(ranking: Ranking, options: Options, timer: Timer, times: Times | None = None) -> Choice:
    """Allocate: which channels stay within the budget.

    A criterion in rounds removes some in each, and the next looks at the network without them.

    Args:
        times: for a budget of latency.

    Raises:
        BudgetError: no choice is within it.
    """
    return choose_once(last_round(ranking, options, timer, times), options, timer, times)


def last_round(
    ranking: Ranking, options: Options, timer: Timer, times: Times | None = None
) -> Ranking:
    """The ranking of what a criterion in rounds has left before its last one, else the same.

    Raises:
        BudgetError: a round can't be met.
    """
    rounds = ranking.criterion.rounds
    for number in range(1, rounds):
        kept = choose_once(ranking, options.towards(number / rounds), timer, times).kept
        ranking = _score(ranking, kept, options, timer)
    return ranking


def limits_of(options: Options, unit: int | None = None) -> Limits:
    """The counts that are allowed; `unit` is what measurements say they should be multiples of."""
    limits = Limits(round_to=options.round_to, min_channels=options.min_channels)
    return limits if unit is None else replace(limits, aligned=unit, finest=unit)


def choose_once(
    ranking: Ranking, options: Options, timer: Timer, times: Times | None = None
) -> Choice:
    """Allocate by a ranking as it is, without rounds.

    Raises:
        BudgetError: no choice is within the budget.
    """
    analysis, scores = ranking.analysis, ranking.scores
    limits = limits_of(options, times.unit if times else None)
    first_choice, last_resort = scopes(analysis, options.scope)
    whole = first_choice
    if options.ratio is not None:
        return Choice(allocate_uniform(analysis.coupling, scores, options.ratio, limits, whole))
    if options.budget is None:
        raise OptionError("give a budget: --flops, --params, --memory, --latency or --ratio")
    if options.budget.quantity == "latency" and times is None:
        raise OptionError("--latency is a budget of ONNX networks; give --flops or another one")
    coupling, budget = analysis.coupling, (options.budget, limits)
    costs: Costs = times.costs if times else analysis.cost
    with timer.step("allocate"):
        try:
            kept = allocate(coupling, costs, scores, *budget, whole)
        except BudgetError:
            if (last_resort == whole).all():
                raise
            whole = last_resort
            kept = allocate(coupling, costs, scores, *budget, whole)
    sensitivity = None
    if options.allocation != "global":
        # first those that are always measured, so that earlier budgets make no difference
        for scope in (first_choice, whole):
            sensitivity = ranking.sensitivity(scope, options, timer)
    if sensitivity is None and times is None:
        return Choice(kept)
    curves = sensitivity.curves if sensitivity else importance_curves(coupling, scores)
    with timer.step("allocate"):
        kept = allocate_by_distortion(coupling, costs, scores, curves, *budget, whole)
    return Choice(kept, sensitivity)


def scopes(analysis: Analyzed, scope: tuple[Kind, ...]) -> tuple[Kept, Kept]:
    """Which groups lose nothing, and which if the budget can't be met so; shape (groups,)."""
    if not scope:
        pre_norm = np.array([structure.pre_norm for structure in analysis.structures])
        return pre_norm & ~pre_norm.all(), np.zeros_like(pre_norm)
    whole = np.array([structure.kind not in scope for structure in analysis.structures])
    if whole.all():
        there = sorted({structure.kind for structure in analysis.structures})
        raise OptionError(
            f"--scope {','.join(scope)}: no such channels can be pruned here; "
            f"there are {', '.join(there)}; `spa-prune inspect` says what stays as it is, and why"
        )
    return whole, whole


def _why_nothing(coupling: Coupling, options: Options) -> str:
    if options.exact:
        return "no prunable channel: none can be removed exactly; try without --exact"
    reasons = list(coupling.facts.frozen_operators.values()) or list(
        coupling.frozen_reasons.values()
    )
    why = max(dict.fromkeys(reasons), key=reasons.count) if reasons else "it has no weights"
    return f"no prunable channel: {why}; `spa-prune inspect` lists all reasons"


def replay(analysis: Analysis, plan: Plan, options: Options, timer: Timer) -> Pruned:
    """Apply a plan that was made before, perhaps on another export of the network."""
    return rewrite(analysis, kept_channels(analysis.coupling, plan), options, timer)
