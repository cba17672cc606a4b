"""trace -> analyze -> score -> allocate -> rewrite -> prove, for PyTorch modules."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from spa_graph.coupling.analysis import analyze
from spa_graph.errors import ModelError, RewriteError, SpaWarning, VerificationError
from spa_graph.frontends.torch import surgery
from spa_graph.frontends.torch.calls import as_call
from spa_graph.frontends.torch.editor import (
    CallEdits,
    clear,
    fill_zeros,
    prune_graph,
    put,
    slice_parameters,
)
from spa_graph.frontends.torch.masking import Reference
from spa_graph.frontends.torch.reader import Reading, read
from spa_graph.frontends.torch.surgery import Attributes
from spa_graph.frontends.torch.tracing import Traced, check_module, trace
from spa_graph.passes.cost import CostModel
from spa_graph.passes.importance.differential import FromGradients
from spa_graph.passes.network import Analyzed, PrunedGraph, check_budget, plan_of, relate
from spa_graph.passes.options import Options, Timer
from spa_graph.passes.pipeline import choose, chosen_criterion, rank
from spa_graph.passes.report import report
from spa_graph.passes.rewrite import plan_edits
from spa_graph.plan import Kept
from spa_graph.runtime.verify import Agreement
from spa_graph.torch.gradients import Differentiated, Gradients
from spa_graph.torch.modes import in_mode
from spa_graph.torch.objective import make_objective
from spa_graph.torch.options import excluded
from spa_graph.torch.proof import Proof, check_sizes, make_proof
from spa_graph.torch.watching import watched

TRIES = 24
"""How many choices of attributes are tried before the module is given up."""


@dataclass(eq=False, kw_only=True)
class ModuleAnalysis(Analyzed):
    """A module, ready to be pruned; `model` is the user's, which isn't changed."""

    model: nn.Module
    traced: Traced
    reading: Reading


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """The pruned network, and why it is not of the module's class, if it isn't."""

    module: nn.Module
    attributes: Attributes | None
    why_graph: str | None
    agreement: Agreement


def prepare(
    model: nn.Module,
    example_inputs: Any,
    options: Options,
    dynamic_shapes: Any,
    timer: Timer,
    *,
    even: bool,
) -> ModuleAnalysis:
    """Trace and analyse a module; it isn't changed.

    even: whether what is cut into equal parts must stay so, as a module's `chunk` demands.
    """
    with timer.step("trace"):
        traced = trace(copied(model).eval(), as_call(example_inputs), dynamic_shapes)
        reading = read(traced, type(model).__name__, even=even)
    with timer.step("analyze"):
        names = excluded(model, options.exclude, reading.tied)
        used = tuple(name for name in names if name in reading.graph.parameters)
        coupling, why = relate(reading.graph, replace(options, exclude=used))
        cost = CostModel(coupling)
    reading.graph.samples = [_shapes(traced)]
    return ModuleAnalysis(
        model=model,
        traced=traced,
        reading=reading,
        coupling=coupling,
        cost=cost,
        excluded=why,
        changed=[],
    )


def copied(model: nn.Module) -> nn.Module:
    """A copy; whatever the module keeps besides its state comes along.

    Raises:
        ModelError: it can't be copied, or is none that can be pruned.
    """
    check_module(model)
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever the user's module holds
        raise ModelError(f"{type(model).__name__} can't be copied: {error}") from error


def _shapes(traced: Traced) -> dict[str, tuple[int, ...]]:
    flat = traced.flat(traced.calls[0])
    names = [node.name for node in traced.module.graph.nodes if node.op == "placeholder"]
    both = zip(names, flat, strict=True)
    return {name: tuple(leaf.shape) for name, leaf in both if isinstance(leaf, torch.Tensor)}


def choose_channels(analysis: ModuleAnalysis, options: Options, timer: Timer) -> Kept:
    """Score and allocate: which channels stay within the budget; (channels,)."""
    criterion, network = chosen_criterion(options), None
    if isinstance(criterion, FromGradients):
        objective = None
        if criterion.needs_loss:
            objective = make_objective(options.data, options.loss, options.samples)
        network = partial(Gradients, differentiated(analysis), objective, seed=options.seed)
    return choose(rank(analysis, options, timer, network=network), options, timer).kept


def differentiated(analysis: ModuleAnalysis) -> Differentiated:
    """What derivatives of a module are computed from."""
    return Differentiated(
        analysis.model,
        analysis.coupling,
        partial(watched, analysis.traced, analysis.reading),
        analysis.traced.calls[0],
    )


def rewrite(
    analysis: ModuleAnalysis, kept: Kept, options: Options, timer: Timer
) -> tuple[PrunedGraph, fx.GraphModule]:
    """The smaller graph, recounted."""
    with timer.step("rewrite"):
        traced, reading, coupling = analysis.traced, analysis.reading, analysis.coupling
        edits = plan_edits(coupling, kept)
        smaller = traced.copied()
        metas = {node.name: dict(node.meta) for node in smaller.graph.nodes}
        prune_graph(smaller, reading, edits, traced.sizes)
        check_sizes(traced, smaller, edits.expected)
        after = CostModel(analyze(_recounted(smaller, metas, analysis, edits.expected)))
    plan = plan_of(coupling, kept, options)
    tied = {name: names for name in plan.kept if len(names := reading.tied.get(name, ())) > 1}
    plan.model |= {"tied": tied} if tied else {}
    pruned = PrunedGraph(graph=after.coupling.graph, kept=kept, edits=edits, plan=plan, after=after)
    return pruned, smaller


def _recounted(
    smaller: fx.GraphModule,
    metas: dict[str, dict[str, Any]],
    analysis: ModuleAnalysis,
    expected: dict[str, Any],
) -> Any:
    """The graph of the pruned module; values have the sizes that were just checked."""
    for node in smaller.graph.nodes:
        node.meta.update(metas.get(node.name, {}))
        if node.op == "get_attr" and "val" not in node.meta:
            node.meta["val"] = getattr(smaller, str(node.target).partition(".")[0], None)
    traced = Traced(smaller, analysis.traced.sizes, analysis.traced.calls)
    graph = read(traced, analysis.graph.name, expected).graph
    for node in smaller.graph.nodes:
        node.meta.pop("val", None)
        node.meta.pop("tensor_meta", None)
    return graph


def prove(
    analysis: ModuleAnalysis, pruned: PrunedGraph, smaller: fx.GraphModule, timer: Timer
) -> tuple[Proof, Agreement]:
    """Prove the pruned graph; the proof serves for the module too."""
    with timer.step("verify"):
        traced = analysis.traced
        reference = Reference(
            traced.module, analysis.reading, analysis.coupling, pruned.kept, pruned.edits,
            traced.sizes,
        )  # fmt: skip
        proof = make_proof(traced, reference)
        return proof, proof.of(smaller)


def into_module(
    analysis: ModuleAnalysis,
    pruned: PrunedGraph,
    proof: Proof,
    drawn: dict[str, Tensor],
    timer: Timer,
) -> tuple[nn.Module, Attributes, Agreement]:
    """The module itself, made smaller and proven.

    drawn: the parameters that are zero, with what they hold during the proof.

    Raises:
        RewriteError: its `forward` states sizes that can't be corrected: which and where.
    """
    with timer.step("module"):
        module = copied(analysis.model)
        with in_mode(module, training=False):
            calls = CallEdits(analysis.reading, pruned.edits, analysis.traced.sizes)
            changes = list(surgery.new_arguments(analysis.reading, calls))
            arguments = surgery.by_module(changes)
            stated = surgery.layer_attributes(module, pruned.plan.kept, arguments)
            optional = surgery.candidates(module, analysis.reading, pruned.edits, changes)
            put(module, drawn)
            slice_parameters(module, pruned.plan.kept)
            surgery.set_attributes(module, stated)
            attributes, agreement = _settle(module, stated, list(optional.values()), proof)
            clear(module, drawn)
    return module, attributes, agreement


def _settle(
    module: nn.Module, stated: Attributes, optional: list[Attributes], proof: Proof
) -> tuple[Attributes, Agreement]:
    """Find attributes with which the module is right: all candidates, none, or some.

    Those without which it is right as well stay as they were: a limit or a number of classes may
    happen to equal a size, and matter where random inputs don't come.
    """
    before = {
        (name, key): getattr(module.get_submodule(name), key)
        for group in optional
        for name, own in group.items()
        for key in own
    }

    def proven(chosen: list[Attributes]) -> tuple[Attributes, Agreement]:
        for (name, key), value in before.items():
            setattr(module.get_submodule(name), key, value)
        merged: Attributes = {name: dict(own) for name, own in stated.items()}
        for group in chosen:
            for name, own in group.items():
                merged.setdefault(name, {}).update(own)
        surgery.set_attributes(module, merged)
        return merged, proof.of(module)

    failure: VerificationError | None = None
    for chosen in islice(_choices(optional), TRIES):
        try:
            found = proven(chosen)
        except VerificationError as error:
            failure = failure or error
            continue
        for group in [group for group in chosen if not surgery.are_sizes(group)]:
            rest = [each for each in chosen if each is not group]
            with suppress(VerificationError):
                found, chosen = proven(rest), rest
        surgery.set_attributes(module, found[0])
        return found
    raise RewriteError(str(failure))


def _choices(optional: list[Attributes]) -> Iterator[list[Attributes]]:
    yield optional
    if optional:
        yield []
    if len(optional) > 1:
        yield from ([*optional[:i], *optional[i + 1 :]] for i in range(len(optional)))
        yield from ([each] for each in optional if len(optional) > 2)


def finish(
    analysis: ModuleAnalysis,
    kept: Kept,
    options: Options,
    return_type: str | None,
    timer: Timer,
) -> tuple[Outcome, PrunedGraph]:
    """Rewrite, prove, and choose the form of the result."""
    drawn = fill_zeros(analysis.traced.module)
    pruned, smaller = rewrite(analysis, kept, options, timer)
    check_budget(analysis, pruned, options)
    proof, agreement = prove(analysis, pruned, smaller, timer)
    clear(smaller, drawn)
    why = None
    if return_type in (None, "module"):
        try:
            module, attributes, agreement = into_module(analysis, pruned, proof, drawn, timer)
        except RewriteError as error:
            why = str(error)
            if return_type == "module":
                name = type(analysis.model).__name__
                raise RewriteError(
                    f"{name}.forward states sizes that can't be corrected ({why}); "
                    'return_type="graph" works'
                ) from error
        else:
            return Outcome(module, attributes, None, agreement), pruned
    _check_trace(analysis, proof, drawn)
    return Outcome(smaller, None, why, agreement), pruned


def _check_trace(analysis: ModuleAnalysis, proof: Proof, drawn: dict[str, Tensor]) -> None:
    """The reference was made from the traced graph, so that must equal the module that came in."""
    original = copied(analysis.model).eval()
    put(original, drawn)
    traced = [pytree.tree_leaves(call.run(analysis.traced.module)) for call in proof.calls]
    try:
        Proof(proof.calls, traced).of(original)
    except VerificationError as error:
        raise VerificationError(f"the traced graph is not the module: {error}") from error


def make_report(
    analysis: ModuleAnalysis,
    pruned: PrunedGraph,
    outcome: Outcome,
    options: Options,
    timer: Timer,
) -> dict[str, Any]:
    """What a run did."""
    data = report(
        analysis,
        pruned,
        options=options.plain(),
        seconds=timer.seconds,
        agreement=outcome.agreement,
        latency=None,
        sizes=None,
    )
    data["versions"]["torch"] = torch.__version__
    data["returned"] = "graph" if outcome.attributes is None else "module"
    if outcome.why_graph:
        data["why_graph"] = outcome.why_graph
    return data


def warn_about_unread(analysis: ModuleAnalysis) -> None:
    """Tell which weights the traced call doesn't reach: what they read may have become smaller."""
    read, tied = analysis.reading.graph.parameters, analysis.reading.tied
    trained = (name for name, _ in analysis.model.named_parameters())
    left = [name for name in trained if not read.keys() & {name, *tied.get(name, ())}]
    if left:
        warnings.warn(
            f"the example inputs don't reach {len(left)} weights of "
            f"{type(analysis.model).__name__} in evaluation mode, such as `{left[0]}`: they keep "
            "their sizes, and may no longer fit the layers before them. If training or other "
            "inputs need them, exclude those layers, or give inputs that reach them",
            SpaWarning,
            stacklevel=4,
        )


def warn_about_graph(model: nn.Module, why: str) -> None:
    """Tell the user once why the result is of another class."""
    warnings.warn(
        f"{type(model).__name__}.forward states sizes that can't be corrected ({why}), so the "
        "result is a GraphModule, which stays in evaluation mode (no dropout, stored statistics); "
        'return_type="graph" asks for that without this warning',
        stacklevel=4,
    )
