"""The most important network within a latency: predicted, measured, corrected, until they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from spa_graph.errors import BudgetError
from spa_graph.passes.allocate import importance_curves
from spa_graph.passes.latency.cache import Measurements, cached, keep, place
from spa_graph.passes.latency.design import designs, fastest_unit, unit_designs
from spa_graph.passes.latency.laboratory import SECONDS, Conditions, Observation
from spa_graph.passes.latency.model import LatencyModel
from spa_graph.passes.network import Analysis
from spa_graph.passes.options import Options, StepProgress, Timer, milliseconds_or_ratio
from spa_graph.passes.pipeline import (
    Choice,
    Ranking,
    Times,
    choose_once,
    last_round,
    limits_of,
    scopes,
)
from spa_graph.passes.sizes import Counts
from spa_graph.plan import Kept

TOLERANCE = 0.05
"""Measured latency is to lie within this share of the budget."""
ROUNDS = 8
WEIGHT = 3
"""A candidate that was chosen counts as much as so many designed ones."""
LONGER = 5 * SECONDS
"""How long a chosen candidate is measured."""
LEAST_SHARE, HALVINGS = 0.01, 8
"""From where, and how closely, a budget of FLOPs is sought."""
TRIES, LARGER = 6, 1.08
"""So many of them are tried. While none is fast enough, each is so much larger than the last, as
that may even be faster; then the largest that is fast enough is sought by halving."""
DOUBT = 1.25
"""A network isn't worth measuring that is predicted to take so much longer than is wanted."""


class Laboratories(Protocol):
    """What measures candidates, see `Laboratory`."""

    conditions: Conditions
    original_ms: float

    def observe(
        self,
        candidates: Sequence[Counts],
        progress: StepProgress | None = None,
        seconds: float = SECONDS,
    ) -> list[Observation]: ...

    def kept(self, counts: Counts) -> Kept: ...


@dataclass(frozen=True, slots=True)
class Trial:
    """A network that was chosen for the budget and measured; in milliseconds.

    by: the quantity by whose model it was chosen.
    """

    choice: Choice
    observation: Observation
    predicted: float
    by: Literal["latency", "flops"]

    @property
    def counts(self) -> Counts:
        """How many channels each group keeps."""
        return self.observation.counts

    @property
    def measured(self) -> float:
        """In milliseconds."""
        return self.observation.ms


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured to meet a budget of latency; in milliseconds.

    unit: what channel counts were rounded to.
    from_cache: whether the candidates had been measured before.
    """

    wanted: float
    original: float
    unit: int
    from_cache: bool
    trials: list[Trial]
    chosen: Trial

    @property
    def close(self) -> bool:
        """Whether the measured latency is within 5% of the budget."""
        return _close(self.chosen, self.wanted)

    def plain(self) -> dict[str, Any]:
        """For a report."""
        return {
            "budget_ms": self.wanted,
            "original_ms": self.original,
            "predicted_ms": self.chosen.predicted,
            "measured_ms": self.chosen.measured,
            "within_5_percent": self.close,
            "chosen_by": self.chosen.by,
            "unit": self.unit,
            "candidates_from_cache": self.from_cache,
            "trials": [
                {"predicted_ms": each.predicted, "measured_ms": each.measured, "by": each.by}
                for each in self.trials
            ],
        }


def within_latency(
    ranking: Ranking, options: Options, timer: Timer, laboratory: Laboratories
) -> Found:
    """Search the network that keeps most importance within `options.latency`.

    Raises:
        BudgetError: it can't be reached; the text says what can.
    """
    analysis = ranking.analysis
    assert isinstance(analysis, Analysis)  # only ONNX networks are measured so
    measured, from_cache = measurements(analysis, options, timer, laboratory)
    search = _Search(ranking, options, timer, laboratory, measured)
    return search.run(from_cache)


def measurements(
    analysis: Analysis, options: Options, timer: Timer, laboratory: Laboratories
) -> tuple[Measurements, bool]:
    """Measured candidates, and whether they come from the cache."""
    whole, _ = scopes(analysis, options.scope)
    fixed = [options.round_to, options.min_channels, whole.tolist()]
    path = place(analysis, laboratory.conditions, fixed)
    known = cached(path)
    if known is not None:
        return known, True
    with timer.step("measure candidates") as progress:
        unit = options.round_to
        if unit is None:
            trials = unit_designs(analysis.groups, whole)
            observed = laboratory.observe([each for own in trials.values() for each in own])
            ms = iter(each.ms for each in observed)
            unit = fastest_unit({u: [next(ms) for _ in own] for u, own in trials.items()})
        candidates = designs(analysis.groups, whole, limits_of(options, unit))
        observations = laboratory.observe(candidates, progress)
    found = Measurements(unit, laboratory.original_ms, observations)
    keep(path, found)
    return found, False


class _Search:
    def __init__(
        self,
        ranking: Ranking,
        options: Options,
        timer: Timer,
        laboratory: Laboratories,
        measured: Measurements,
    ) -> None:
        self._ranking, self._options, self._timer = ranking, options, timer
        self._laboratory = laboratory
        self._unit = measured.unit
        self._original = laboratory.original_ms
        speed = self._original / measured.original_ms  # of the machine, then and now
        self._observations = [replace(o, ms=o.ms * speed) for o in measured.observations]
        self._model = self._fitted()
        self._trials: list[Trial] = []

    def run(self, from_cache: bool) -> Found:
        wanted = self._wanted()
        self._ranking = self._last_round(wanted)
        self._approach(wanted)
        self._try_flops(wanted)
        chosen = self._best(wanted)
        if chosen is None:
            least = min(trial.measured for trial in self._trials)
            share = np.ceil(1e3 * least / self._original) / 1e3
            raise BudgetError(
                f"latency {self._options.latency} can't be reached: the fastest network that was "
                f"found takes {_told(least)} ({share:.3f} of {_told(self._original)})"
            )
        return Found(wanted, self._original, self._unit, from_cache, self._trials, chosen)

    def _wanted(self) -> float:
        """The budget in milliseconds."""
        asked = self._options.latency
        if isinstance(asked, str):
            milliseconds, _ = milliseconds_or_ratio(asked)
            assert milliseconds is not None  # shares are numbers
            if milliseconds >= self._original:
                raise BudgetError(
                    f"the network takes {_told(self._original)} already, less than --latency "
                    f"{asked}: there is nothing to remove"
                )
            return milliseconds
        assert asked is not None
        return float(asked) * self._original

    def _last_round(self, wanted: float) -> Ranking:
        """What a criterion in rounds leaves for the last one serves all that is tried."""
        try:
            return last_round(self._ranking, self._budget(wanted), self._timer, self._times())
        except BudgetError:
            return self._ranking

    def _approach(self, wanted: float) -> None:
        """Ask the model, measure, correct the model, until the latency is close."""
        aim, low, high = wanted, 0.0, np.inf  # what the model is asked for; too fast, too slow
        for _ in range(ROUNDS):
            known = len(self._trials)
            trial = self._measured(self._choice(aim), "latency")
            if _close(trial, wanted):
                break
            if len(self._trials) > known:
                self._observations += [trial.observation] * WEIGHT
                self._model = self._fitted()
            if trial.measured < wanted:
                low = aim
            else:
                high = aim
            aim = wanted * float(self._model.milliseconds(trial.counts)) / trial.measured
            if not low < aim < high:
                if not low or not np.isfinite(high):
                    break
                aim = float(np.sqrt(low * high))

    def _try_flops(self, wanted: float) -> None:
        """Measure what budgets of FLOPs lead to that lose less than all that is fast enough.

        Where times jump, or hardly depend on counts, the model of latency can be worse than none;
        and there are counts that aren't multiples of the unit, which very small networks need.
        """
        best = self._best(wanted)
        share, fast, slow = self._cheapest(self._lost(best.choice) if best else np.inf), 0.0, 1.0
        for _ in range(TRIES):
            met = self._meets(share, wanted, np.inf if best is None else DOUBT * wanted)
            if met:
                fast = share
            elif fast:
                slow = share
            elif met is None:
                break
            else:
                share *= LARGER
                continue
            share = float(np.sqrt(fast * slow))

    def _meets(self, share: float, wanted: float, worth: float) -> bool | None:
        """Whether what a budget of FLOPs leads to is fast enough.

        Args:
            worth: it isn't measured if it is predicted to take longer than this; None, then.
        """
        choice = self._within_flops(share)
        if choice is None or float(self._model.milliseconds(self._counts(choice))) > worth:
            return None
        return self._measured(choice, "flops").measured <= (1 + TOLERANCE) * wanted

    def _cheapest(self, most: float) -> float:
        """The smallest share of the FLOPs that loses less than `most`; 1 if there is none."""
        low, high = LEAST_SHARE, 1.0
        for _ in range(HALVINGS):
            middle = float(np.sqrt(low * high))
            choice = self._within_flops(middle)
            if choice is not None and self._lost(choice) < most:
                high = middle
            else:
                low = middle
        return high

    def _within_flops(self, share: float) -> Choice | None:
        """What `--flops` chooses; None where nothing is to be removed, or too much."""
        if share >= 1:
            return None
        options = replace(self._options, latency=None, flops=share)
        try:
            return choose_once(self._ranking, options, self._timer)
        except BudgetError:
            return None

    def _choice(self, aim: float) -> Choice:
        """What is predicted to take `aim`; the smallest network where that takes longer."""
        try:
            return choose_once(self._ranking, self._budget(aim), self._timer, self._times())
        except BudgetError:
            return Choice(self._laboratory.kept(self._smallest()))

    def _budget(self, ms: float) -> Options:
        """The options with a latency as a share of what the model says that the whole takes."""
        ratio = float(np.clip(ms / self._model.whole_ms, 1e-9, 1 - 1e-9))
        return replace(self._options, latency=ratio)

    def _times(self) -> Times:
        return Times(self._model, self._unit)

    def _fitted(self) -> LatencyModel:
        return LatencyModel(self._ranking.analysis.coupling, self._observations)

    def _smallest(self) -> Counts:
        analysis = self._ranking.analysis
        assert isinstance(analysis, Analysis)
        _, whole = scopes(analysis, self._options.scope)
        limits = limits_of(self._options, self._unit)
        return designs(analysis.groups, whole, limits)[1]

    def _measured(self, choice: Choice, by: Literal["latency", "flops"]) -> Trial:
        """Measure a network, unless it was before."""
        counts = self._counts(choice)
        for trial in self._trials:
            if np.array_equal(counts, trial.counts):
                return trial
        predicted = float(self._model.milliseconds(counts))
        with self._timer.step("measure"):
            observation = self._laboratory.observe([counts], seconds=LONGER)[0]
        self._trials.append(Trial(choice, observation, predicted, by))
        return self._trials[-1]

    def _best(self, wanted: float) -> Trial | None:
        """What loses least of all that is fast enough, and is slowest of these."""
        within = [t for t in self._trials if t.measured <= (1 + TOLERANCE) * wanted]
        return min(within, key=lambda t: (self._lost(t.choice), -t.measured), default=None)

    def _lost(self, choice: Choice) -> float:
        """What the allocator makes least: distortion if it is measured, else importance."""
        if choice.sensitivity:
            curves = choice.sensitivity.curves
        elif self._ranking.calibrated and self._options.allocation != "global":
            return np.inf  # the smallest network, which no curves were needed for
        else:
            curves = importance_curves(self._ranking.analysis.coupling, self._ranking.scores)
        counts = self._counts(choice)
        return sum(float(c[len(c) - 1 - n]) for c, n in zip(curves, counts, strict=True))

    def _counts(self, choice: Choice) -> Counts:
        groups = self._ranking.analysis.groups
        return np.array([choice.kept[g.start : g.stop].sum() for g in groups], np.int64)


def _close(trial: Trial, wanted: float) -> bool:
    return abs(trial.measured / wanted - 1) <= TOLERANCE


def _told(ms: float) -> str:
    return f"{ms:.3g} ms"
