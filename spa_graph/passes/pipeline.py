"""load -> analyze -> score -> allocate -> rewrite: the steps, in order; `proof.py` verifies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from numbers import Real
from typing import Literal

import numpy as np
import onnx_ir as ir

from spa_graph.coupling.analysis import ChannelGroup, Coupling, analyze
from spa_graph.coupling.scope import Block
from spa_graph.coupling.structures import KINDS, Kind, Structure, structures
from spa_graph.edits import Edits
from spa_graph.errors import BudgetError, ModelError, OptionError
from spa_graph.frontends.onnx import editor
from spa_graph.frontends.onnx.sizes import InputShapes
from spa_graph.graph import Graph
from spa_graph.passes.allocate import Budget, Kept, Limits, allocate, allocate_uniform
from spa_graph.passes.canonicalize import canonicalize
from spa_graph.passes.cost import CostModel
from spa_graph.passes.importance import score
from spa_graph.passes.rewrite import plan_edits
from spa_graph.plan import Plan, kept_channels, make_plan

Progress = Callable[[str, int, int], None]
"""Called with a step's name, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user can choose; the fields are the options of the command line."""

    flops: float | None = None
    params: float | None = None
    ratio: float | None = None
    criterion: str = "l1"
    aggregate: str = "mean"
    normalize: str = "mean"
    seed: int = 0
    min_channels: int = 1
    round_to: int | None = None
    exclude: tuple[str, ...] = ()
    exact: bool = False
    scope: tuple[Kind, ...] = ()
    attention: Literal["heads", "head-dim"] = "heads"
    groups: Literal["groups", "within"] = "groups"
    input_shapes: InputShapes = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.exclude, str):  # one pattern, not its letters
            object.__setattr__(self, "exclude", (self.exclude,))
        given = {k: v for k in ("flops", "params", "ratio") if (v := getattr(self, k)) is not None}
        for name, value in given.items():
            if not isinstance(value, Real) or not 0 < float(value) < 1:
                raise OptionError(f"--{name} must lie between 0 and 1, not {value}")
        if len(given) > 1:
            raise OptionError(f"give one budget, not {' and '.join('--' + n for n in given)}")
        if self.min_channels < 1 or (self.round_to is not None and self.round_to < 1):
            raise OptionError("--min-channels and --round-to must be at least 1")
        if isinstance(self.scope, str):  # as on the command line
            object.__setattr__(self, "scope", tuple(self.scope.split(",")))
        for name, allowed in (
            ("scope", KINDS),
            ("attention", ("heads", "head-dim")),
            ("groups", ("groups", "within")),
        ):
            value = getattr(self, name)
            for each in value if name == "scope" else (value,):
                if each not in allowed:
                    raise OptionError(f"--{name} {each}: choose among {', '.join(allowed)}")

    @property
    def within(self) -> tuple[Block, ...]:
        """The blocks that keep their number."""
        heads: tuple[Block, ...] = ("heads",) if self.attention == "head-dim" else ()
        return heads + (("groups",) if self.groups == "within" else ())

    @property
    def budget(self) -> Budget | None:
        """The budget on the whole network, or None for a uniform ratio."""
        if self.flops is not None:
            return Budget("flops", self.flops)
        return Budget("params", self.params) if self.params is not None else None


class Timer:
    """Seconds per step."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress or (lambda *_: None)

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[int, int], None]]:
        self._progress(name, 0, 1)
        start = time.perf_counter()
        yield lambda done, total: self._progress(name, done, total)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self._progress(name, 1, 1)


@dataclass(eq=False)
class Analysis:
    """A network, ready to be pruned: its canonical model, graph and coupling."""

    original: ir.Model
    model: ir.Model
    coupling: Coupling
    cost: CostModel
    excluded: dict[str, str]
    changed: list[str]
    """What canonicalisation rewrote."""

    def __repr__(self) -> str:
        groups, channels = len(self.groups), self.coupling.count
        return f"Analysis({self.graph.name}: {groups} groups, {channels} channels)"

    @property
    def graph(self) -> Graph:
        return self.coupling.graph

    @property
    def groups(self) -> list[ChannelGroup]:
        return self.coupling.groups

    @cached_property
    def structures(self) -> list[Structure]:
        """What kind of structure each group is."""
        return structures(self.coupling)


@dataclass(slots=True, eq=False)
class Pruned:
    """The smaller network and what led to it."""

    model: ir.Model
    graph: Graph
    kept: Kept
    edits: Edits
    plan: Plan
    after: CostModel


def prepare(original: ir.Model, options: Options, timer: Timer) -> Analysis:
    """Canonicalise and analyse a model; the original isn't changed."""
    with timer.step("read"):
        model = original.clone()
        model.meta.update(original.meta)
        graph, changed = canonicalize(model, options.input_shapes)
    with timer.step("analyze"):
        excluded = _excluded(graph, options.exclude)
        coupling = analyze(graph, excluded, only_exact=options.exact, within=options.within)
        cost = CostModel(coupling)
    return Analysis(original, model, coupling, cost, excluded, changed)


def _excluded(graph: Graph, patterns: tuple[str, ...]) -> dict[str, str]:
    """The parameters that patterns name, directly or through their operator."""
    found: dict[str, str] = {}
    for pattern in patterns:
        names = {name for name in graph.parameters if fnmatchcase(name, pattern)}
        for operator in graph.operators:
            if fnmatchcase(operator.name, pattern) or pattern == operator.op_type:
                names.update(name for name in operator.inputs if name in graph.parameters)
        if not names:
            raise OptionError(f"--exclude {pattern}: no weight or operator has such a name")
        found.update(dict.fromkeys(sorted(names), f"excluded by `{pattern}`"))
    return found


def choose(analysis: Analysis, options: Options, timer: Timer) -> Kept:
    """Score and allocate: which channels stay."""
    if not analysis.coupling.count:
        raise ModelError(_why_nothing(analysis.coupling, options))
    with timer.step("score") as progress:
        scores = score(
            analysis.coupling,
            options.criterion,
            aggregate=options.aggregate,
            normalize=options.normalize,
            seed=options.seed,
            progress=progress,
        )
    limits = Limits(round_to=options.round_to, min_channels=options.min_channels)
    with timer.step("allocate"):
        whole, last_resort = _scopes(analysis, options.scope)
        if options.ratio is not None:
            return allocate_uniform(analysis.coupling, scores, options.ratio, limits, whole)
        if options.budget is None:
            raise OptionError("give a budget: --flops, --params or --ratio")
        budget = (analysis.coupling, analysis.cost, scores, options.budget, limits)
        try:
            return allocate(*budget, whole)
        except BudgetError:
            if (last_resort == whole).all():
                raise
            return allocate(*budget, last_resort)


def _scopes(analysis: Analysis, scope: tuple[Kind, ...]) -> tuple[Kept, Kept]:
    """Which groups lose nothing, and which if the budget can't be met so; shape (groups,)."""
    if not scope:
        pre_norm = np.array([structure.pre_norm for structure in analysis.structures])
        return pre_norm & ~pre_norm.all(), np.zeros_like(pre_norm)
    whole = np.array([structure.kind not in scope for structure in analysis.structures])
    if whole.all():
        there = sorted({structure.kind for structure in analysis.structures})
        raise OptionError(
            f"--scope {','.join(scope)}: no such channels can be pruned here; "
            f"there are {', '.join(there)}"
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


def rewrite(analysis: Analysis, kept: Kept, options: Options, timer: Timer) -> Pruned:
    """Build the smaller network; the analysed model isn't changed."""
    with timer.step("rewrite"):
        edits = plan_edits(analysis.coupling, kept)
        smaller = analysis.model.clone()
        smaller.meta.update(analysis.model.meta)
        graph = editor.apply_edits(smaller, analysis.coupling, edits, options.input_shapes)
        plan = make_plan(analysis.coupling, kept)
        plan.model |= {"attention": options.attention, "groups": options.groups}
        after = CostModel(analyze(graph))
    return Pruned(smaller, graph, kept, edits, plan, after)


def replay(analysis: Analysis, plan: Plan, options: Options, timer: Timer) -> Pruned:
    """Apply a plan that was made before, perhaps on another export of the network."""
    return rewrite(analysis, kept_channels(analysis.coupling, plan), options, timer)
