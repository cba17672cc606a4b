"""The public functions for PyTorch modules."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from spa_graph.errors import OptionError
from spa_graph.frontends.torch import surgery
from spa_graph.frontends.torch.editor import slice_parameters
from spa_graph.frontends.torch.reader import named_state
from spa_graph.frontends.torch.tracing import exported
from spa_graph.passes.network import PrunedGraph
from spa_graph.passes.options import Options, Timer
from spa_graph.passes.pipeline import chosen_criterion
from spa_graph.plan import Plan, kept_channels
from spa_graph.torch.biases import add_zero_biases
from spa_graph.torch.options import ReturnType, check_return_type, in_python, make_options
from spa_graph.torch.pipeline import (
    ModuleAnalysis,
    Outcome,
    choose_channels,
    copied,
    finish,
    make_report,
    prepare,
    warn_about_graph,
    warn_about_unread,
)
from spa_graph.torch.twin import twin

_RECORD = "_spa_record"


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of how a module was pruned; it stands in the module itself.

    plan: what it lost since it was whole, also where it was pruned in several steps.
    step: what the last step removed.
    inputs: what a graph was traced with.
    """

    plan: Plan
    step: Plan
    report: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[Any, ...] = ()


def analyze(
    model: nn.Module, example_inputs: Any, *, dynamic_shapes: Any = None, **options: Any
) -> ModuleAnalysis:
    """Find the channel groups of a module.

    Args:
        model: the module; it isn't changed.
        example_inputs: a tensor, a tuple of arguments, or a mapping of named ones.
        dynamic_shapes: as of torch.export; by default the batch is left free.
        options: `exclude`, `exact`, `attention`, `groups` of `prune`.

    Raises:
        SpaError: the module can't be traced, or an option is wrong.
    """
    with in_python():
        chosen = make_options(options, budget=False)
        return prepare(model, example_inputs, chosen, dynamic_shapes, Timer(), even=True)


def prune(
    model: nn.Module,
    example_inputs: Any,
    *,
    return_type: ReturnType | None = None,
    dynamic_shapes: Any = None,
    **options: Any,
) -> Any:
    """Prune a module to a budget.

    Args:
        model: the module; it isn't changed.
        example_inputs: a tensor, a tuple of arguments, or a mapping of named ones.
        return_type: "module" (of the same class), "graph" (a GraphModule of ATen operators) or
            "exported" (a torch.export.ExportedProgram). By default a module if its `forward` can
            work with the new sizes, else a graph, with a warning that tells why.
        dynamic_shapes: as of torch.export; by default the batch is left free.
        options: one of `flops`, `params` (keep at most this share) and `ratio` (remove this share
            of channels everywhere); `criterion`, `exclude` (patterns of parameter or module
            names), `round_to`, `min_channels`, `scope`, `seed`, `exact`, `attention`, `groups`,
            `aggregate`, `normalize`. With `data` and `loss` (see `torch.objective`) also criteria
            that need gradients, of the first `samples` (512) samples. With `calibrate` (a loader,
            tensors, or whatever `spa_graph.prune` takes; targets are left out) the weights that are
            left are refitted, on an ONNX export in memory; then also `reconstruct`, `allocation`,
            `preprocess`, `memory_limit`. Layers without a bias may get one.

    Raises:
        BudgetError: the budget can't be met.
        VerificationError: the proof failed.
        SpaError: anything else about the module, its inputs or the options.
    """
    timer = Timer()
    with in_python():
        check_return_type(return_type)
        chosen = make_options(options, budget=True)
        even = return_type in (None, "module")
        analysis = prepare(model, example_inputs, chosen, dynamic_shapes, timer, even=even)
        with twin(analysis, chosen, timer) as calibrated:
            if calibrated is None or chosen_criterion(chosen).needs_gradients:
                kept = choose_channels(analysis, chosen, timer)
            else:
                kept = calibrated.choose()
            outcome, pruned = finish(analysis, kept, chosen, return_type, timer)
            told = None if calibrated is None else calibrated.refit(outcome, kept, pruned.plan)
            if calibrated is not None:
                chosen = replace(chosen, reconstruct=calibrated.options.method)
        return _give(analysis, pruned, outcome, chosen, return_type, timer, told)


def apply_plan(
    model: nn.Module,
    plan: Plan,
    example_inputs: Any = None,
    *,
    return_type: ReturnType | None = None,
    dynamic_shapes: Any = None,
    partial: bool = False,
) -> Any:
    """Prune a module by a plan that was made before, here or on an ONNX export.

    A plan that was made by `prune` for a module of this class also tells the attributes to change:
    then it is applied as it is, and layers to which calibration gave a bias get one of zeros. Else,
    or to have it proven again, give `example_inputs`; then a `partial` plan may leave weights out,
    whose losses follow from the others'.

    Raises:
        OptionError: the plan doesn't fit the module.
        VerificationError: the proof failed.
    """
    if example_inputs is None and return_type in (None, "module"):
        return _apply_directly(model, plan)
    if example_inputs is None:
        raise OptionError(f"return_type {return_type} needs example_inputs")
    timer = Timer()
    with in_python():
        check_return_type(return_type)
        blocks: dict[str, Any] = {
            key: plan.model[key] for key in ("attention", "groups") if key in plan.model
        }
        chosen = make_options(blocks, budget=False)
        analysis = prepare(model, example_inputs, chosen, dynamic_shapes, timer, even=False)
        kept = kept_channels(analysis.coupling, plan, partial=partial)
        outcome, pruned = finish(analysis, kept, chosen, return_type, timer)
        return _give(analysis, pruned, outcome, chosen, return_type, timer)


def _apply_directly(model: nn.Module, plan: Plan) -> nn.Module:
    module = copied(model)
    cut(module, plan)
    add_zero_biases(module, plan.model.get("biases", ()))
    return module


def cut(module: nn.Module, plan: Plan) -> None:
    """Apply a plan that tells attributes, in place.

    Raises:
        OptionError: it doesn't fit the module, which is as it was.
    """
    attributes = plan.model.get("attributes")
    if attributes is None:
        raise OptionError("the plan tells no attributes of modules: give example_inputs")
    check_shapes(module, plan)
    whole = joined(module, plan)
    slice_parameters(module, plan.kept)
    surgery.set_attributes(module, _read_attributes(attributes))
    remember(module, Record(whole, plan))


def fits(module: nn.Module, plan: Plan) -> bool:
    """Whether the weights that a plan names have the shapes that it tells."""
    try:
        check_shapes(module, plan)
    except OptionError:
        return False
    return True


def check_shapes(module: nn.Module, plan: Plan) -> None:
    """Whether a plan is for this module.

    Raises:
        OptionError: it isn't.
    """
    state = dict(named_state(module))
    for name, shape in plan.model.get("shapes", {}).items():
        if name not in state or list(state[name].shape) != shape:
            found = list(state[name].shape) if name in state else "absent"
            raise OptionError(
                f"the plan is for another module: its `{name}` is {shape}, here it is {found}"
            )


def joined(model: nn.Module, step: Plan) -> Plan:
    """The plan of a module that was pruned before, perhaps, and now loses what `step` says.

    Where layers were replaced since, the steps don't fit, and the module counts as whole.
    """
    earlier = plan_of(model) if was_pruned(model) else None
    told = {"attributes", "shapes"}  # plans of graphs, or written by hand, don't have them
    if earlier is None or not told <= earlier.model.keys() & step.model.keys():
        return step
    state = dict(named_state(model))
    for name, shape in earlier.model["shapes"].items():
        if name not in state or list(state[name].shape) != earlier.left(name, shape):
            return step
    return earlier.then(step)


def _read_attributes(data: dict[str, dict[str, Any]]) -> surgery.Attributes:
    """Attributes as JSON holds them: lists stand for tuples."""
    return {
        name: {key: tuple(v) if isinstance(v, list) else v for key, v in own.items()}
        for name, own in data.items()
    }


def _give(
    analysis: ModuleAnalysis,
    pruned: PrunedGraph,
    outcome: Outcome,
    options: Options,
    return_type: str | None,
    timer: Timer,
    calibration: dict[str, Any] | None = None,
) -> Any:
    """The result in the form that was asked for; it remembers its plan."""
    if outcome.why_graph and return_type is None:
        warn_about_graph(analysis.model, outcome.why_graph)
    if outcome.attributes is not None:
        warn_about_unread(analysis)
    if outcome.attributes is not None:
        pruned.plan.model["attributes"] = outcome.attributes
    data = make_report(analysis, pruned, outcome, options, timer)
    if calibration is not None:
        data["calibration"] = calibration
    call = analysis.traced.calls[0]
    if return_type == "exported":
        program = exported(analysis.traced, outcome.module)
        setattr(program, _RECORD, Record(pruned.plan, pruned.plan, data))
        return program
    inputs = () if outcome.attributes is not None else (call.args, call.kwargs)
    whole = joined(analysis.model, pruned.plan)
    remember(outcome.module, Record(whole, pruned.plan, data, inputs))
    return outcome.module


def remember(module: nn.Module, record: Record) -> None:
    """Keep how a module was pruned, in the module."""
    setattr(module, _RECORD, record)


def record_of(pruned: Any) -> Record:
    """What is remembered of a pruned module.

    Raises:
        OptionError: it wasn't pruned here.
    """
    if not was_pruned(pruned):
        raise OptionError(f"this {type(pruned).__name__} is no result of spa_graph.torch.prune")
    record: Record = getattr(pruned, _RECORD)
    return record


def was_pruned(module: Any) -> bool:
    """Whether a module is a result, or was pruned in place."""
    return isinstance(getattr(module, _RECORD, None), Record)


def plan_of(pruned: Any) -> Plan:
    """The plan by which a module was pruned; if in several steps, since it was whole."""
    return record_of(pruned).plan


def report_of(pruned: Any) -> dict[str, Any]:
    """What was done to a module, as JSON-ready data."""
    return record_of(pruned).report
