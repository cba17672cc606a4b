"""The last step: prove on data that the written file computes what the plan says.

The pruned network is run beside the masked reference (`frontends/onnx/masking.py`) on random input,
at the sizes of the analysis and at one that it never saw. Where they differ by more than is
tolerated, two things may still explain it: rounding, which is then measured on the reference
itself, and decisions between near ties (`decisions.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from spa_graph.errors import ModelError, VerificationError
from spa_graph.frontends.onnx import checker, files, masking
from spa_graph.graph import Graph
from spa_graph.passes.decisions import ROUNDING, find_decisions, tipped
from spa_graph.passes.frugal import Network
from spa_graph.passes.network import Analysis, Pruned
from spa_graph.passes.options import Timer
from spa_graph.runtime import heap
from spa_graph.runtime.inputs import random_inputs, shapes_text
from spa_graph.runtime.sessions import Feeds, open_session
from spa_graph.runtime.verify import Agreement, Array, compare, saturated, varies

AnyArray = TypeVar("AnyArray", Array, Array | None)
SCALES = (1.0, 30.0, 0.1, 0.001)
"""Standard deviations of random inputs to try."""
TRIES = 3
"""How many inputs to try where decisions between near ties hide what lies behind them."""
BLOCK = 32
"""Freed blocks of at least this fraction of the weights are given back to the system at once."""


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
    weights = sum(parameter.nbytes for parameter in analysis.graph.parameters.values())
    with timer.step("verify"), heap.returning(weights // BLOCK):
        _check_interface(analysis.original, pruned.model)
        masked = _write_reference(analysis, pruned, folder)
        _check_file(draft, analysis.original, folder)
        for seed in range(TRIES):
            try:
                found = _prove(analysis, pruned, draft, masked, seed)
                return found if found.alive else replace(found, alive=not _lives(analysis, folder))
            except _HiddenError:
                if seed == TRIES - 1:
                    raise
        raise AssertionError("TRIES is positive")


def _write_reference(analysis: Analysis, pruned: Pruned, folder: Path) -> Path:
    """The masked network's file, with its weights beside it."""
    reference = analysis.model.clone()
    masking.mask(reference, analysis.coupling, pruned.kept, pruned.edits)
    reference.meta["external_data"] = True
    masked = folder / "reference.onnx"
    files.write(reference, masked)
    return masked


class _HiddenError(VerificationError):
    """Outputs differ behind a tipped decision, and so may be right or wrong."""


def _prove(analysis: Analysis, pruned: Pruned, draft: Path, masked: Path, seed: int) -> Agreement:
    """Compare both networks on random input; another seed, another input."""
    names = [value.name or "" for value in pruned.model.graph.outputs]
    feeds, want, rejected = _reference(masked, analysis.graph, seed)
    for sample in rejected:
        _check_that_it_is_rejected(analysis, masked.parent, sample, seed)
    got, alive = _run_pruned(draft, pruned.graph, feeds)
    runs = _Runs(analysis, pruned, draft, masked, feeds, want)
    if analysis.changed:
        _check_canonical(analysis, names, feeds, masked.parent)
    try:
        found = _worst(names, got, want)
    except VerificationError as error:
        found = _explained(runs, names, got, error)
    else:
        found = _confirmed(runs, found)
    return replace(found, alive=alive)


def _run_pruned(
    draft: Path, graph: Graph, feeds: Sequence[Feeds]
) -> tuple[list[list[Array]], bool]:
    """The outputs, and whether outputs change with the input; the network is closed then."""
    with files.openable(draft) as written, _as_proof():
        network = Network(written, graph, written.parent)
        got = list(map(network.run, feeds))
        return got, _responds(network, graph)


@dataclass(frozen=True, slots=True)
class _Runs:
    """The two networks that are compared, on what, and what the reference gives."""

    analysis: Analysis
    pruned: Pruned
    draft: Path
    masked: Path
    feeds: Sequence[Feeds]
    want: Sequence[list[Array]]


def _explained(
    runs: _Runs, names: Sequence[str], got: Sequence[list[Array]], error: VerificationError
) -> Agreement:
    """Why outputs may differ: by rounding, or by a decision between near ties.

    Raises:
        VerificationError: the given one, if nothing explains it.
    """
    noise = _noise(runs.masked, runs.analysis.graph, runs.feeds, runs.want)
    with suppress(VerificationError):
        return _worst(names, got, runs.want, noise)
    explained = _compare_grounds(runs, error)
    if explained is None:
        raise error from None
    return explained


def _confirmed(runs: _Runs, found: Agreement) -> Agreement:
    """What was found, or what is behind it where equal outputs don't show all.

    Raises:
        VerificationError: that differs.
    """
    rounds = any(operator.op_type in ROUNDING for operator in runs.analysis.graph.operators)
    if not rounds and all(map(_shows, zip(*runs.want, strict=True))):
        return found
    try:
        grounds = _compare_grounds(runs)
    except VerificationError:
        grounds = _compare_grounds(runs, noisy=True)
    return max(found, grounds or found, key=_severity)


def _worst(
    names: Sequence[str],
    got: Sequence[list[Array]],
    want: Sequence[list[Array]],
    noise: Sequence[list[Array | None]] | None = None,
) -> Agreement:
    noise = noise if noise is not None else [[None] * len(names) for _ in want]
    found = [compare(names, *each) for each in zip(got, want, noise, strict=True)]
    return max(found, key=_severity)


def _severity(agreement: Agreement) -> tuple[float, bool]:
    return agreement.share, agreement.shown


def _noise(
    masked: Path, graph: Graph, feeds: Sequence[Feeds], want: Sequence[list[Array]]
) -> list[list[Array | None]]:
    """What rounding alone changes in the reference: its inputs moved by one unit, and fused."""
    generator = np.random.default_rng(0)
    moved = [{name: _rounded(value, generator) for name, value in each.items()} for each in feeds]
    others = _run_plain(masked, graph, moved), _run_plain(masked, graph, feeds, plain=False)
    return [
        [_largest_difference(first, *rest) for first, *rest in zip(*outputs, strict=True)]
        for outputs in zip(want, *others, strict=True)
    ]


def _rounded(value: Array, generator: np.random.Generator) -> Array:
    if value.dtype.kind != "f":
        return value
    unit = np.finfo(value.dtype).eps
    moved = value * (1 + unit * generator.choice([-1, 1], value.shape))
    return np.asarray(moved, value.dtype)


def _largest_difference(first: Array, *others: Array) -> Array | None:
    if first.dtype.kind != "f" or any(other.shape != first.shape for other in others):
        return None
    wide = first.astype(np.float64)
    return np.nan_to_num(np.max([np.abs(other - wide) for other in others], 0))


def _check_canonical(
    analysis: Analysis, names: Sequence[str], feeds: Sequence[Feeds], folder: Path
) -> None:
    """The reference was made from the canonical form, so that must equal what came in.

    It may accept sizes that what came in rejects: a part of a list that isn't there is an error,
    and the Slice that it becomes is empty.
    """
    path = folder / "form.onnx"
    accepted, want = [], []
    files.write(analysis.original, path)
    with files.openable(path) as opened:
        network = Network(opened, analysis.graph, folder)
        for each in feeds:
            try:
                want.append(network.run(each))
            except ModelError as error:
                if {name: array.shape for name, array in each.items()} == analysis.graph.samples[0]:
                    raise _fails_itself(error) from error
            else:
                accepted.append(each)
    files.write(analysis.model, path)
    with files.openable(path) as opened:
        _worst(names, _run_plain(opened, analysis.graph, accepted), want)


def _fails_itself(error: ModelError) -> ModelError:
    return ModelError(
        f"the network itself fails on random input, so nothing can be proven: {error}"
    )


def _shows(runs: Sequence[Array]) -> bool:
    """Whether an output would show a difference; labels, marks and counts hide all but the largest.

    Args:
        runs: what it was on each input.
    """
    whole = all(each.dtype.kind != "f" or np.array_equal(each, np.round(each)) for each in runs)
    return not whole and any(map(varies, runs))


def _compare_grounds(
    runs: _Runs, error: VerificationError | None = None, *, noisy: bool = False
) -> Agreement | None:
    """Compare what decisions were made on.

    Where one between near ties was tipped, outputs may differ; and where a detector finds nothing,
    or a network gives nothing but labels, they show little.

    Args:
        error: how the outputs differ, if they do.
        noisy: whether to tolerate more where rounding alone is seen to change more; it is where
            outputs differ.

    Raises:
        VerificationError: the given one, if tipped decisions don't explain it; or what decisions
            were made on differs.
        _HiddenError: operators that pruning changed lie behind a tipped decision.
    """
    graph, edits = runs.analysis.graph, runs.pruned.edits
    decisions = find_decisions(graph, edits)
    outputs = [value.name or "" for value in runs.pruned.model.graph.outputs]
    asked = dict.fromkeys(name for d in decisions for name in (*d.grounds, *d.outcomes))
    names = [*outputs, *(name for name in asked if name not in outputs)]
    with files.openable(runs.draft, names[len(outputs) :]) as opened, _as_proof():
        got = _run_plain(opened, runs.pruned.graph, runs.feeds)
    noise: Sequence[list[Array | None]] = [[None] * len(names) for _ in runs.feeds]
    with files.openable(runs.masked, names[len(outputs) :]) as opened:
        want = _run_plain(opened, graph, runs.feeds)
        if noisy or error is not None:
            noise = _noise(opened, graph, runs.feeds, want)
    grounds = {*outputs, *(name for decision in decisions for name in decision.grounds)}
    found = []
    for first, second, moved in zip(got, want, noise, strict=True):
        second, moved = [*_left(runs, names, second)], [*_left(runs, names, moved)]
        values = dict(zip(names, first, strict=True)), dict(zip(names, second, strict=True))
        other = tipped(graph, edits, decisions, *values)
        by_rounding = dict(zip(names, moved, strict=True))
        shaky = _shaky(by_rounding, values[1]) if noisy or error is not None else set()
        told = [name for name in names if name in grounds - other.behind - shaky]
        if error is not None and (not other.behind or not told):
            raise error
        if told:
            mine, theirs = ([each[name] for name in told] for each in values)
            found.append(compare(told, mine, theirs, [by_rounding[name] for name in told]))
        if error is not None and (other.hides or shaky):
            raise _HiddenError(str(error)) from error
    return max(found, key=_severity, default=None)


def _left(runs: _Runs, names: Sequence[str], values: Sequence[AnyArray]) -> Iterator[AnyArray]:
    """What the pruned network has of the reference's values; some are cut there already."""
    coupling = runs.analysis.coupling
    for name, value in zip(names, values, strict=True):
        for position, axis in enumerate(coupling.relations.value(name) or ()):
            stays = coupling.kept_elements(axis, runs.pruned.kept)
            if stays is not None and value is not None and value.shape[position] == len(stays):
                value = value.compress(stays, position)
        yield value


def _shaky(by_rounding: Mapping[str, Array | None], values: Mapping[str, Array]) -> set[str]:
    """Values of the reference whose size rounding alone changes: another number of boxes."""
    return {n for n, moved in by_rounding.items() if moved is None and values[n].dtype.kind == "f"}


@contextmanager
def _as_proof() -> Iterator[None]:
    """The masked network runs, so if the pruned one doesn't, pruning broke it."""
    try:
        yield
    except ModelError as error:
        raise VerificationError(f"the pruned network is broken: {error}") from error


def _check_file(draft: Path, original: ir.Model, folder: Path) -> None:
    """What onnx's checker and ONNX Runtime's optimiser reject, they rejected in the original.

    The comparison itself runs without optimiser, which looks at more than what is needed to run.
    """
    complaint = checker.complaint(draft)
    source = original.meta.get("files")
    if complaint and not (source and checker.complaint(source[0])):
        raise VerificationError(f"onnx's checker rejects the pruned network: {complaint}")
    try:
        _open(draft)
    except ModelError as error:
        if not source:
            source = [folder / "given.onnx"]
            files.write(original, source[0])
        with suppress(ModelError):
            _open(source[0])
            raise VerificationError(f"the pruned network is broken: {error}") from error


def _open(path: Path) -> None:
    with files.openable(path) as opened:
        open_session(opened)


RESPONSE = 1e-6
"""An output that changes by less than this share of its largest number doesn't depend on inputs."""


def _lives(analysis: Analysis, folder: Path) -> bool:
    """Whether outputs of the unpruned network depend on the input."""
    whole = folder / "whole.onnx"
    files.write(analysis.model, whole)
    with files.openable(whole) as opened:
        return _responds(Network(opened, analysis.graph, folder), analysis.graph)


def _responds(network: Network, graph: Graph) -> bool:
    """Whether an output differs for two inputs; a network that fails on such input may.

    They are drawn apart from each other: one that is the other in another order says nothing of a
    network that is, or became, symmetric.
    """
    try:
        first, second = (network.run(random_inputs(graph, seed=seed)) for seed in range(2))
    except ModelError:
        return True
    return any(map(_differ, first, second))


def _differ(first: Array, second: Array) -> bool:
    if first.shape != second.shape or first.dtype.kind != "f":
        return first.shape != second.shape or bool((first != second).any())
    change = np.abs(first - second).max(initial=0)
    return bool(change > RESPONSE * np.abs(first).max(initial=0))


def _reference(
    masked: Path, graph: Graph, seed: int
) -> tuple[list[Feeds], list[list[Array]], list[int]]:
    """Inputs on which the reference network's outputs vary, if there are any, and the outputs.

    Small inputs can drown in biases, or leave every unit of a badly scaled network at rest; large
    ones saturate. Last come the samples whose sizes the reference rejects, which the network itself
    must reject too.

    The largest inputs come first: weights are mapped, and stay in memory once they were read, so
    the large features of first layers don't stand beside all weights then.
    """
    network = Network(masked, graph, masked.parent)
    feeds: list[Feeds] = []
    want: list[list[Array]] = []
    rejected: list[int] = []
    sizes = [sum(map(math.prod, shapes.values())) for shapes in graph.samples]
    for sample in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        try:
            given, found = _informative(network, graph, sample, seed)
        except ModelError:
            rejected.append(sample)
            continue
        feeds.append(given)
        want.append(found)
    return feeds, want, sorted(rejected)


def _informative(
    network: Network, graph: Graph, sample: int, seed: int
) -> tuple[Feeds, list[Array]]:
    """The first input on which all outputs vary between more than the ends of a range.

    Else one on which most do; some networks refuse others. A detector that finds nothing may
    fail, and none of its outputs vary.
    """
    tried: list[tuple[Feeds, list[Array]]] = []
    failure: ModelError | None = None
    for scale in SCALES:
        given = random_inputs(graph, sample=sample, seed=seed, scale=scale)
        try:
            found = network.run(given)
        except ModelError as error:
            failure = failure or error
            continue
        tried.append((given, found))
        if all(map(_tells, found)):
            break
    if not tried:
        raise failure or ModelError("the network was not run")
    return max(tried, key=lambda each: (sum(map(varies, each[1])), sum(map(_tells, each[1]))))


def _tells(output: Array) -> bool:
    return varies(output) and not saturated(output)


def _check_that_it_is_rejected(analysis: Analysis, folder: Path, sample: int, seed: int) -> None:
    """The network that came in rejects the sizes that the reference rejects.

    Raises:
        ModelError: it doesn't even run at the sizes that were chosen for it.
        VerificationError: it accepts them.
    """
    path = folder / "original.onnx"
    files.write(analysis.original, path)
    try:
        with files.openable(path) as opened:
            _informative(Network(opened, analysis.graph, folder), analysis.graph, sample, seed)
    except ModelError as error:
        if sample == 0:
            raise _fails_itself(error) from error
        return
    sizes = shapes_text(analysis.graph.samples[sample])
    raise VerificationError(
        f"the network runs for input {sizes}, but its masked form doesn't: what the analysis took "
        "for constant depends on the sizes of its inputs"
    )


def _run_plain(
    path: Path, graph: Graph, feeds: Sequence[Feeds], *, plain: bool = True
) -> list[list[Array]]:
    """The outputs of one network for several inputs; it is closed before another is opened."""
    network = Network(path, graph, path.parent, plain=plain)
    return list(map(network.run, feeds))


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
