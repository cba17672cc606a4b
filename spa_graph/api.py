"""The public functions: `prune`, `apply_plan`, `analyze`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from spa_graph.errors import ModelError, OptionError, SpaError, root_cause
from spa_graph.frontends.onnx import files, forms
from spa_graph.passes import pipeline, proof
from spa_graph.passes.calibrated import Calibrated, calibrate, estimated_seconds
from spa_graph.passes.network import Analysis, Pruned, check_budget, prepare, rewrite
from spa_graph.passes.options import Options, Progress, Timer
from spa_graph.passes.reconstruct import reconstruct
from spa_graph.passes.report import calibration_report, file_size, report
from spa_graph.plan import Plan
from spa_graph.runtime.benchmark import Latency, measure
from spa_graph.runtime.inputs import random_inputs

COPIES = ", because copies of shared weights grew it"
"""Why a result may cost more than the cost model said."""


@dataclass(slots=True, eq=False)
class Result:
    """A pruned network.

    model: the pruned model in the form that came in (`onnx_ir.Model` if a path came in).
    plan: which elements of which weights were kept.
    report: what was done, as JSON-ready data.
    """

    model: Any
    plan: Plan
    report: dict[str, Any]

    def __repr__(self) -> str:
        ratios = ", ".join(f"{key} {value:.4f}" for key, value in self.report["ratio"].items())
        return f"Result({type(self.model).__name__}, after / before: {ratios})"


def analyze(model: object, **options: Any) -> Analysis:
    """Find the channel groups of an ONNX model.

    Args:
        model: a path, `onnx.ModelProto`, `onnx_ir.Model` or `onnx_graphsurgeon.Graph`.
        options: `exclude`, `exact`, `attention`, `groups` and `input_shapes` of `prune`.

    Returns:
        The analysis; its `groups` are the channel groups.

    Raises:
        SpaError: the model can't be read, or an option is wrong.
    """
    chosen = _options(options)
    with _blaming(model):
        original, _ = forms.take(model)
        return prepare(original, chosen, Timer())


def prune(
    model: object,
    *,
    output: str | os.PathLike[str] | None = None,
    verify: bool = True,
    latency_seconds: float = 0.0,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Prune an ONNX model to a budget.

    >>> from spa_graph import prune
    >>> from spa_graph.models_zoo.demo import model_path
    >>> result = prune(model_path(), flops=0.5)
    >>> result.report["ratio"]["flops"] <= 0.5
    True

    Args:
        model: a path, `onnx.ModelProto`, `onnx_ir.Model` or `onnx_graphsurgeon.Graph`; it isn't
            changed.
        output: where to write the pruned model, if anywhere.
        verify: prove on random input that the result is the masked original.
        latency_seconds: measure latency before and after for about this long.
        progress: called with (step, done, total, detail); see `passes.options.Progress`.
        options: the fields of `Options`: one of `flops`, `params` (keep at most this share) and
            `ratio` (remove this share of channels everywhere); `criterion`, `aggregate`,
            `normalize`, `seed`, `min_channels`, `round_to`, `exclude`, `exact`, `input_shapes`;
            `scope` (kinds of structures, see `coupling.structures`), `attention` ("heads" or
            "head-dim") and `groups` ("groups" or "within"). With `calibrate` (a file, a folder of
            images, `package.module:function`, "data-free", arrays, an iterable of batches) the
            weights that are left are refitted; then also `samples`, `preprocess`, `reconstruct`,
            `allocation`, `memory_limit` (bytes).

    Raises:
        BudgetError: the budget can't be met.
        VerificationError: the proof failed; nothing was written.
        SpaError: anything else about the model or the options.
    """
    chosen = _options(options)
    if chosen.budget is None and chosen.ratio is None:
        raise OptionError("give a budget: flops, params or ratio")
    timer = Timer(progress)
    wanted = _Wanted(model, chosen, timer, output, verify, latency_seconds)
    with _blaming(model):
        analysis, restore = _prepare(model, chosen, output, timer)
        with wanted.places() as (draft, scratch):
            calibrated = None
            if chosen.calibrate is not None:
                calibrated = calibrate(analysis, chosen, timer, scratch)
            ranking = pipeline.rank(analysis, chosen, timer, calibrated)
            choice = pipeline.choose(ranking, chosen, timer)
            pruned = rewrite(analysis, choice.kept, chosen, timer)
            check_budget(analysis, pruned, chosen, COPIES)
            return wanted.finish(restore, analysis, pruned, draft, scratch, choice, calibrated)


def apply_plan(
    model: object,
    plan: Plan,
    *,
    output: str | os.PathLike[str] | None = None,
    verify: bool = True,
    latency_seconds: float = 0.0,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Prune a model by a plan that was made before, perhaps on another export of the network.

    Args and returns as in `prune`.

    Raises:
        OptionError: the plan doesn't fit the model.
        VerificationError: the proof failed; nothing was written.
    """
    blocks = {key: plan.model[key] for key in ("attention", "groups") if key in plan.model}
    chosen = _options(options | blocks)
    timer = Timer(progress)
    wanted = _Wanted(model, chosen, timer, output, verify, latency_seconds)
    with _blaming(model):
        analysis, restore = _prepare(model, chosen, output, timer)
        with wanted.places() as (draft, scratch):
            calibrated = None
            if chosen.calibrate is not None:
                calibrated = calibrate(analysis, chosen, timer, scratch)
            pruned = pipeline.replay(analysis, plan, chosen, timer)
            return wanted.finish(restore, analysis, pruned, draft, scratch, None, calibrated)


@contextmanager
def _blaming(model: object) -> Iterator[None]:
    """An unexpected failure is the model's fault if onnx's checker rejects the model."""
    try:
        yield
    except (SpaError, OSError, MemoryError):
        raise
    except Exception as error:
        cause = root_cause(error)
        complaint = str(cause) if isinstance(cause, UnicodeError) else forms.complaint(model)
        if complaint is None:
            raise
        raise ModelError(f"the model is not valid ONNX: {complaint}") from error


def _options(given: dict[str, Any]) -> Options:
    unknown = set(given) - set(Options.__dataclass_fields__)
    if unknown:
        known = ", ".join(sorted(Options.__dataclass_fields__))
        raise OptionError(f"unknown option `{unknown.pop()}`; there are: {known}")
    return Options(**given)


def _prepare(
    model: object, options: Options, output: str | os.PathLike[str] | None, timer: Timer
) -> tuple[Analysis, Any]:
    with timer.step("load"):
        original, restore = forms.take(model)
    if output is not None:
        _check_output(original, Path(output))
    return prepare(original, options, timer), restore


def _check_output(original: ir.Model, output: Path) -> None:
    """Neither the model's own file nor one of its weights may be written over."""
    for target in (output, output.with_name(f"{output.name}.data")):
        if target.exists() and any(target.samefile(source) for source in files.sources(original)):
            raise OptionError(
                f"{target} is part of the input; inputs are never modified: choose another output"
            )


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """What is wanted of a run, besides the pruned network."""

    model: object
    options: Options
    timer: Timer
    output: str | os.PathLike[str] | None
    verify: bool
    latency_seconds: float

    @contextmanager
    def places(self) -> Iterator[tuple[Path, Path]]:
        """Where the network is drafted, and a folder for all else; the draft takes the output's
        place if the block succeeds."""
        with ExitStack() as stack:
            draft = None
            if self.output is not None:
                draft = stack.enter_context(files.staged(Path(self.output)))
            # Beside the output, where there is room: the reference network is as large as the
            # original, and many systems keep /tmp in memory.
            beside = draft.parent if draft is not None else None
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=beside)))
            yield draft or scratch / "pruned.onnx", scratch

    def finish(
        self,
        restore: Any,
        analysis: Analysis,
        pruned: Pruned,
        draft: Path,
        scratch: Path,
        choice: pipeline.Choice | None,
        calibrated: Calibrated | None,
    ) -> Result:
        """Write, prove, refit, measure."""
        source = Path(self.model) if isinstance(self.model, str | os.PathLike) else None
        agreement = latency = sizes = reconstruction = None
        self._write(pruned, draft)
        if self.verify:
            agreement = proof.verify(analysis, pruned, draft, scratch, self.timer)
        if calibrated is not None and self.options.method != "none":
            with self.timer.step("reconstruct") as progress:
                reconstruction = reconstruct(
                    analysis, pruned, calibrated, self.options, scratch, progress
                )
            self._write(pruned, draft)
        if source is not None and draft.exists():
            before = sum(path.stat().st_size for path in files.sources(analysis.original))
            sizes = before, file_size(draft)
        if self.latency_seconds:
            latency = _measure(analysis, source, draft, scratch, self.latency_seconds, self.timer)
        data = report(
            analysis,
            pruned,
            options=self.options.plain(),
            seconds=self.timer.seconds,
            agreement=agreement,
            latency=latency,
            sizes=sizes,
        )
        if calibrated is None and latency is not None:
            seconds = estimated_seconds(analysis, latency.before / 1e3)
            data["calibration_estimate"] = round(seconds, 1)
        if calibrated is not None:
            data["calibration"] = calibration_report(calibrated, choice, reconstruction)
        return Result(restore(pruned.model), pruned.plan, data)

    def _write(self, pruned: Pruned, draft: Path) -> None:
        if self.output is not None or self.verify or self.latency_seconds:
            with self.timer.step("write"):
                files.write(pruned.model, draft)


def _measure(
    analysis: Analysis,
    source: Path | None,
    draft: Path,
    scratch: Path,
    seconds: float,
    timer: Timer,
) -> Latency:
    with timer.step("measure"):
        if source is None:
            source = scratch / "original.onnx"
            files.write(analysis.original, source)
        return measure(source, draft, random_inputs(analysis.graph), seconds=seconds)
