"""load -> analyze -> score -> allocate -> rewrite -> verify: the steps, in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from numbers import Real
from pathlib import Path

import numpy as np
import onnx_ir as ir

from spa_graph.coupling.analysis import ChannelGroup, Coupling, analyze
from spa_graph.edits import Edits
from spa_graph.errors import ModelError, OptionError, VerificationError
from spa_graph.frontends.onnx import checker, editor, files, masking
from spa_graph.frontends.onnx.sizes import InputShapes
from spa_graph.graph import Graph
from spa_graph.passes.allocate import Budget, Kept, Limits, allocate, allocate_uniform
from spa_graph.passes.canonicalize import canonicalize
from spa_graph.passes.cost import CostModel
from spa_graph.passes.decisions import find_decisions, tipped
from spa_graph.passes.importance import score
from spa_graph.passes.rewrite import plan_edits
from spa_graph.plan import Plan, kept_channels, make_plan
from spa_graph.runtime.inputs import random_inputs
from spa_graph.runtime.sessions import Feeds, Session, open_session, run
from spa_graph.runtime.verify import Agreement, Array, compare, varies

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


@dataclass(slots=True, eq=False)
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
        coupling = analyze(graph, excluded, only_exact=options.exact)
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
        if options.ratio is not None:
            return allocate_uniform(analysis.coupling, scores, options.ratio, limits)
        if options.budget is None:
            raise OptionError("give a budget: --flops, --params or --ratio")
        return allocate(analysis.coupling, analysis.cost, scores, options.budget, limits)


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
        after = CostModel(analyze(graph))
    return Pruned(smaller, graph, kept, edits, plan, after)


def replay(analysis: Analysis, plan: Plan, options: Options, timer: Timer) -> Pruned:
    """Apply a plan that was made before, perhaps on another export of the network."""
    return rewrite(analysis, kept_channels(analysis.coupling, plan), options, timer)


def verify(
    analysis: Analysis, pruned: Pruned, draft: Path, folder: Path, timer: Timer
) -> Agreement:
    """Prove on random input that the written file computes what the masked network computes.

    Args:
        draft: the pruned model's file.
        folder: where the reference network may be written.

    Raises:
        VerificationError: it doesn't.
    """
    with timer.step("verify"):
        _check_interface(analysis.original, pruned.model)
        reference = analysis.model.clone()
        masking.mask(reference, analysis.coupling, pruned.kept, pruned.edits)
        reference.meta["external_data"] = True
        masked = folder / "reference.onnx"
        files.write(reference, masked)
        names = [value.name or "" for value in pruned.model.graph.outputs]
        feeds, want = _reference(masked, analysis.graph)
        with files.openable(draft) as written, _as_proof():
            got = _run_plain(written, feeds)
        _check_file(draft, analysis.original)
        if analysis.changed:
            _check_canonical(analysis, names, feeds, folder)
        try:
            return _worst(names, got, want)
        except VerificationError as error:
            try:
                return _worst(names, got, want, _noise(masked, feeds, want))
            except VerificationError:
                return _compare_grounds(analysis, pruned, draft, masked, feeds, error)


def _worst(
    names: Sequence[str],
    got: Sequence[list[Array]],
    want: Sequence[list[Array]],
    noise: Sequence[list[Array | None]] | None = None,
) -> Agreement:
    noise = noise if noise is not None else [[None] * len(names) for _ in want]
    found = [compare(names, *each) for each in zip(got, want, noise, strict=True)]
    return max(found, key=lambda agreement: (agreement.share, agreement.shown))


def _noise(
    masked: Path, feeds: Sequence[Feeds], want: Sequence[list[Array]]
) -> list[list[Array | None]]:
    """What rounding alone changes in the reference: its inputs moved by one unit, and fused."""
    generator = np.random.default_rng(0)
    moved = [{name: _rounded(value, generator) for name, value in each.items()} for each in feeds]
    others = _run_plain(masked, moved), _run_plain(masked, feeds, plain=False)
    return [
        [_largest_difference(first, *rest) for first, *rest in zip(*outputs, strict=True)]
        for outputs in zip(want, *others, strict=True)
    ]


def _rounded(value: Array, generator: np.random.Generator) -> Array:
    if value.dtype.kind != "f":
        return value
    unit = np.finfo(value.dtype).eps
    return (value * (1 + unit * generator.choice([-1, 1], value.shape))).astype(value.dtype)


def _largest_difference(first: Array, *others: Array) -> Array | None:
    if first.dtype.kind != "f" or any(other.shape != first.shape for other in others):
        return None
    wide = first.astype(np.float64)
    return np.nan_to_num(np.max([np.abs(other - wide) for other in others], 0))


def _check_canonical(
    analysis: Analysis, names: Sequence[str], feeds: Sequence[Feeds], folder: Path
) -> None:
    """The reference was made from the canonical form, so that must equal what came in."""
    outputs = []
    for number, model in enumerate((analysis.model, analysis.original)):
        path = folder / f"form{number}.onnx"
        files.write(model, path)
        with files.openable(path) as opened:
            outputs.append(_run_plain(opened, feeds))
    _worst(names, outputs[0], outputs[1])


def _compare_grounds(
    analysis: Analysis,
    pruned: Pruned,
    draft: Path,
    masked: Path,
    feeds: Sequence[Feeds],
    error: VerificationError,
) -> Agreement:
    """Where a decision between near ties was tipped: compare what it was made on.

    Raises:
        VerificationError: the given one, if that explains nothing.
    """
    decisions = find_decisions(analysis.graph, pruned.edits)
    outputs = [value.name or "" for value in pruned.model.graph.outputs]
    asked = dict.fromkeys(name for d in decisions for name in (*d.grounds, *d.outcomes))
    names = [*outputs, *(name for name in asked if name not in outputs)]
    with files.openable(draft, names[len(outputs) :]) as opened, _as_proof():
        got = _run_plain(opened, feeds)
    with files.openable(masked, names[len(outputs) :]) as opened:
        want = _run_plain(opened, feeds)
    grounds = {*outputs, *(name for decision in decisions for name in decision.grounds)}
    found = []
    for first, second in zip(got, want, strict=True):
        values = dict(zip(names, first, strict=True)), dict(zip(names, second, strict=True))
        behind = tipped(analysis.graph, pruned.edits, decisions, *values)
        told = [name for name in names if name in grounds and name not in (behind or ())]
        if not behind or not told:
            raise error
        found.append(compare(told, *([each[name] for name in told] for each in values)))
    return max(found, key=lambda agreement: agreement.share)


@contextmanager
def _as_proof() -> Iterator[None]:
    """The masked network runs, so if the pruned one doesn't, pruning broke it."""
    try:
        yield
    except ModelError as error:
        raise VerificationError(f"the pruned network is broken: {error}") from error


def _check_file(draft: Path, original: ir.Model) -> None:
    """onnx's checker accepts the pruned file, or rejected the original already."""
    complaint = checker.complaint(draft)
    source = original.meta.get("files")
    if complaint and not (source and checker.complaint(source[0])):
        raise VerificationError(f"onnx's checker rejects the pruned network: {complaint}")


def _reference(masked: Path, graph: Graph) -> tuple[list[Feeds], list[list[Array]]]:
    """Inputs on which the reference network's outputs vary, if there are any, and the outputs.

    Small inputs can drown in biases, or leave every unit of a badly scaled network at rest. The
    network must run at the first samples' sizes; others it may reject.
    """
    session = open_session(masked, plain=True)
    feeds: list[Feeds] = []
    want: list[list[Array]] = []
    for sample in range(len(graph.samples)):
        try:
            given, found = _informative(session, graph, sample)
        except ModelError:
            if not feeds:
                raise
            continue
        feeds.append(given)
        want.append(found)
    return feeds, want


def _informative(session: Session, graph: Graph, sample: int) -> tuple[Feeds, list[Array]]:
    for scale in (1.0, 30.0):
        given = random_inputs(graph, sample=sample, scale=scale)
        found = run(session, given)
        if all(varies(output) for output in found):
            break
    return given, found


def _run_plain(path: Path, feeds: Sequence[Feeds], *, plain: bool = True) -> list[list[Array]]:
    """The outputs of one network for several inputs; it is closed before another is opened."""
    session = open_session(path, plain=plain)
    return [run(session, each) for each in feeds]


def _check_interface(before: ir.Model, after: ir.Model) -> None:
    """Names, types and shapes of inputs and outputs, opsets and metadata are the same."""
    pairs = (
        ("inputs", _signature(before.graph.inputs), _signature(after.graph.inputs)),
        ("outputs", _signature(before.graph.outputs), _signature(after.graph.outputs)),
        ("opsets", dict(before.opset_imports), dict(after.opset_imports)),
        ("metadata", dict(before.metadata_props), dict(after.metadata_props)),
    )
    for what, old, new in pairs:
        if old != new:
            raise VerificationError(f"the network's {what} changed: {old} became {new}")


def _signature(values: object) -> list[tuple[str | None, str, str]]:
    return [
        (value.name, str(value.type), str(value.shape))
        for value in values  # type: ignore[attr-defined]
        if value.const_value is None
    ]
