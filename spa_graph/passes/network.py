"""A network on its way through the pipeline: analysed, then smaller."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

import onnx_ir as ir

from spa_graph.coupling.analysis import ChannelGroup, Coupling, analyze
from spa_graph.coupling.guide import Guide
from spa_graph.coupling.structures import Structure, structures
from spa_graph.edits import Edits
from spa_graph.errors import BudgetError, ModelError, OptionError
from spa_graph.frontends.onnx import editor
from spa_graph.frontends.onnx.sizes import InputShapes
from spa_graph.graph import Graph
from spa_graph.passes.allocate import Kept
from spa_graph.passes.canonicalize import canonicalize
from spa_graph.passes.cost import CostModel
from spa_graph.passes.options import Options, Timer
from spa_graph.passes.rewrite import plan_edits
from spa_graph.plan import Plan, make_plan


@dataclass(eq=False, kw_only=True)
class Analyzed:
    """A network of any frontend, ready to be pruned."""

    coupling: Coupling
    cost: CostModel
    excluded: dict[str, str]
    changed: list[str]
    """What canonicalisation rewrote."""

    def __repr__(self) -> str:
        groups, channels = len(self.groups), self.coupling.count
        return f"{type(self).__name__}({self.graph.name}: {groups} groups, {channels} channels)"

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


@dataclass(eq=False, kw_only=True, repr=False)
class Analysis(Analyzed):
    """An ONNX network with its canonical model."""

    original: ir.Model
    model: ir.Model


@dataclass(slots=True, eq=False, kw_only=True)
class PrunedGraph:
    """The smaller network of any frontend, and what led to it."""

    graph: Graph
    kept: Kept
    edits: Edits
    plan: Plan
    after: CostModel


@dataclass(slots=True, eq=False, kw_only=True)
class Pruned(PrunedGraph):
    """The smaller ONNX network."""

    model: ir.Model


def prepare(
    original: ir.Model, options: Options, timer: Timer, guide: Guide | None = None
) -> Analysis:
    """Canonicalise and analyse a model; the original isn't changed.

    Args:
        guide: the channels of another view of the network, to keep to.
    """
    with timer.step("read"):
        model = original.clone()
        model.meta.update(original.meta)
        graph, changed = canonicalize(model, options.input_shapes)
        _check_dropout(graph)
    with timer.step("analyze"):
        coupling, excluded = relate(graph, options, guide)
        cost = CostModel(coupling)
    return Analysis(
        original=original,
        model=model,
        coupling=coupling,
        cost=cost,
        excluded=excluded,
        changed=changed,
    )


def _check_dropout(graph: Graph) -> None:
    """What drops features at random computes something else in each run: nothing can be proven.

    Raises:
        ModelError: the network was exported in training mode.
    """
    for operator in graph.operators:
        if operator.op_type != "Dropout" or len(operator.inputs) < 3:
            continue
        share, training = (graph.known.get(name) for name in operator.inputs[1:3])
        if training is None or not training.nominal.any():
            continue
        if share is None or share.nominal.any():
            raise ModelError(
                f"{operator} drops features at random: the network was exported in training mode; "
                "export it in evaluation mode, as after model.eval()"
            )


def relate(
    graph: Graph, options: Options, guide: Guide | None = None
) -> tuple[Coupling, dict[str, str]]:
    """The coupled channels, and the weights that are excluded, each with the reason."""
    excluded = _excluded(graph, options.exclude)
    coupling = analyze(
        graph, excluded, only_exact=options.exact, within=options.within, guide=guide
    )
    return coupling, excluded


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


def cut(analysis: Analysis, kept: Kept, input_shapes: InputShapes) -> tuple[ir.Model, Graph, Edits]:
    """The smaller model with its graph; the analysed model isn't changed."""
    edits = plan_edits(analysis.coupling, kept)
    smaller = analysis.model.clone()
    smaller.meta.update(analysis.model.meta)
    graph = editor.apply_edits(smaller, analysis.coupling, edits, input_shapes)
    return smaller, graph, edits


def rewrite(analysis: Analysis, kept: Kept, options: Options, timer: Timer) -> Pruned:
    """Build the smaller network; the analysed model isn't changed."""
    with timer.step("rewrite"):
        smaller, graph, edits = cut(analysis, kept, options.input_shapes)
        plan = plan_of(analysis.coupling, kept, options)
        after = CostModel(analyze(graph))
    return Pruned(model=smaller, graph=graph, kept=kept, edits=edits, plan=plan, after=after)


def check_budget(analysis: Analyzed, pruned: PrunedGraph, options: Options, why: str = "") -> None:
    """The recount of the result must agree with the budget, whatever the cost model said.

    Raises:
        BudgetError: it doesn't; `why` it may not is added.
    """
    if options.budget is None or options.budget.quantity == "latency":
        return  # latency is measured, see `passes/latency`
    quantity = options.budget.quantity
    before = analysis.cost.cost(quantity, analysis.cost.full)
    ratio = pruned.after.cost(quantity, pruned.after.full) / before
    if ratio > options.budget.ratio:
        raise BudgetError(
            f"{quantity} {options.budget.ratio:g} was missed: the result has {ratio:.4f}{why}; "
            "ask for slightly less"
        )


def plan_of(coupling: Coupling, kept: Kept, options: Options) -> Plan:
    """The plan that keeps these channels, with the options that decide which there are."""
    plan = make_plan(coupling, kept)
    plan.model |= {"attention": options.attention, "groups": options.groups}
    return plan
