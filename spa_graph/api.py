"""The public functions: `prune`, `apply_plan`, `analyze`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from spa_graph.errors import ModelError, OptionError, SpaError, root_cause
from spa_graph.frontends.onnx import files, forms
from spa_graph.passes import pipeline, proof
from spa_graph.passes.calibrated import Calibrated, calibrate, estimated_seconds
from spa_graph.passes.differentiated import differentiable
from spa_graph.passes.finetuned import check_training, finetuner
from spa_graph.passes.importance.base import uncalibrated
from spa_graph.passes.network import Analysis, Pruned, check_budget, prepare, rewrite
from spa_graph.passes.options import BUDGETS, Options, Progress, Timer
from spa_graph.passes.reconstruct import reconstruct
from spa_graph.passes.report import calibration_report, file_size, importance_report, report
from spa_graph.plan import Plan
from spa_graph.runtime.benchmark import PROFILED, Latency, OperatorTime, measure, operator_times
from spa_graph.runtime.calibration import best_calibration, check_source
from spa_graph.runtime.calibration.wanted import wanted, with_batch
from spa_graph.runtime.inputs import Feeds, random_inputs
from spa_graph.runtime.providers import provider_named

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


def analyze(model: object, *, progress: Progress | None = None, **options: Any) -> Analysis:
    """Find the channel groups of an ONNX model.

    Args:
        model: a path, `onnx.ModelProto`, `onnx_ir.Model` or `onnx_graphsurgeon.Graph`.
        progress: as in `prune`.
        options: `exclude`, `exact`, `attention`, `groups` and `input_shapes` of `prune`.

    Returns:
        The analysis; its `groups` are the channel groups.

    Raises:
        SpaError: the model can't be read, or an option is wrong.
    """
    chosen = checked(options)
    with _blaming(model):
        original, _ = forms.take(model)
        return prepare(original, chosen, Timer(progress))


def prune(
    model: object,
    *,
    output: str | os.PathLike[str] | None = None,
    verify: bool = True,
    latency_seconds: float = 0.0,
    profile: bool = False,
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
        profile: if latency is measured, measure that of each operator too.
        progress: called with (step, done, total, detail); see `passes.options.Progress`.
        options: the fields of `Options`: one of `flops`, `params`, `memory` (weights, and features
            at the worst moment), `latency` (keep at most this share; also a time, "12ms") and
            `ratio` (remove this share of channels everywhere); for latency also `provider`,
            `threads` and `batch`; `criterion`, `aggregate`,
            `normalize`, `seed`, `min_channels`, `round_to`, `exclude`, `exact`, `input_shapes`;
            `scope` (kinds of structures, see `coupling.structures`), `attention` ("heads" or
            "head-dim") and `groups` ("groups" or "within"). With `calibrate` (a file, a folder of
            images, `package.module:function`, "data-free", arrays, an iterable of batches) the
            weights that are left are refitted; then also `samples`, `preprocess`, `reconstruct`,
            `allocation`, `memory_limit` (bytes). With `data` (a .npz file, arrays by name, an
            iterable of batches) and `loss` (a name, or a function of torch tensors) also criteria
            that need gradients, which torch computes. With `finetune` (epochs) the pruned network
            is trained on these data in torch; then also `learning_rate`, `teacher` (learn from the
            unpruned network too), and `loss` is cross-entropy by default.

    Raises:
        BudgetError: the budget can't be met.
        VerificationError: the proof failed; nothing was written.
        SpaError: anything else about the model or the options.
    """
    with _ready(model, checked(options, budget=True), output, progress) as network:
        return network.prune(
            output, verify=verify, latency_seconds=latency_seconds, profile=profile
        )


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """A network whose channels are ranked: it can be pruned to any number of budgets."""

    model: object
    options: Options
    analysis: Analysis
    ranking: pipeline.Ranking
    calibrated: Calibrated | None
    _restore: Callable[[ir.Model], Any]
    _scratch: Path
    _timer: Timer

    def prune(
        self,
        output: str | os.PathLike[str] | None = None,
        *,
        verify: bool = True,
        latency_seconds: float = 0.0,
        profile: bool = False,
        **budget: float | str,
    ) -> Result:
        """Prune to a budget, `flops`, `latency`, ..., or the one that was given before.

        Args and errors as those of `prune`.
        """
        chosen = replace(self.options, **self._without_budget(budget))
        timer = self._timer.again()
        wanted = _Wanted(self.model, chosen, timer, output, verify, latency_seconds, profile)
        with _blaming(self.model), wanted.draft(self._scratch) as draft:
            if output is not None:
                _check_output(self.analysis.original, Path(output))
            choice, found = self._choose(chosen, timer)
            pruned = rewrite(self.analysis, choice.kept, chosen, timer)
            check_budget(self.analysis, pruned, chosen, COPIES)
            result = wanted.finish(
                self._restore, self.analysis, pruned, draft, self._scratch, choice, self.calibrated
            )
        result.report["importance"] = importance_report(
            self.analysis, self.ranking.scores, choice.kept
        )
        if found is not None:
            result.report["latency_budget"] = found
        return result

    def _choose(
        self, options: Options, timer: Timer
    ) -> tuple[pipeline.Choice, dict[str, Any] | None]:
        """Which channels stay, and what was measured for a budget of latency."""
        if options.latency is None:
            return pipeline.choose(self.ranking, options, timer), None
        # its least squares would make every other run start later
        from spa_graph.passes.latency import Conditions, Laboratory, within_latency

        feeds, under = _measured_on(self.analysis, options)
        with timer.step("measure"):
            order = self.ranking.order()
            laboratory = Laboratory(
                self.analysis,
                Conditions(feeds, **under),
                self._scratch,
                order,
                options.input_shapes,
            )
        found = within_latency(self.ranking, options, timer, laboratory)
        return found.chosen.choice, found.plain() | {"asked": options.latency, **under}

    @staticmethod
    def _without_budget(budget: dict[str, float | str]) -> dict[str, Any]:
        """The changes that make a budget the only one."""
        return {**dict.fromkeys(BUDGETS), **budget} if budget else {}


def ready(
    model: object,
    *,
    output: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> AbstractContextManager[Ready]:
    """Read, analyse and rank a network once; what it needs on disk is gone after the block.

    >>> from spa_graph.models_zoo.demo import model_path
    >>> with ready(model_path()) as network:
    ...     [round(network.prune(flops=r).report["ratio"]["flops"], 1) for r in (0.8, 0.4)]
    [0.8, 0.4]

    Args:
        output: a file beside which there is room for what is needed on disk.
        model, progress, options: as those of `prune`.
    """
    return _ready(model, checked(options), output, progress)


@contextmanager
def _ready(
    model: object,
    chosen: Options,
    output: str | os.PathLike[str] | None,
    progress: Progress | None,
) -> Iterator[Ready]:
    """As `ready`, with options that were checked."""
    criterion = pipeline.chosen_criterion(chosen)
    timer = Timer(progress)
    with ExitStack() as stack:
        with _blaming(model):
            analysis, restore = _prepare(model, chosen, output, timer)
            if chosen.latency is not None or chosen.batch is not None:
                _measured_on(analysis, chosen)  # said before minutes of calibration
            scratch = stack.enter_context(_scratch(output))
            calibrated = None
            if chosen.calibrate is not None:
                calibrated = calibrate(analysis, chosen, timer, scratch)
            network = differentiable(analysis, chosen) if criterion.needs_gradients else None
            ranking = pipeline.rank(analysis, chosen, timer, calibrated, network)
        yield Ready(model, chosen, analysis, ranking, calibrated, restore, scratch, timer)


def apply_plan(
    model: object,
    plan: Plan,
    *,
    output: str | os.PathLike[str] | None = None,
    verify: bool = True,
    latency_seconds: float = 0.0,
    profile: bool = False,
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
    chosen = checked(options | blocks)
    timer = Timer(progress)
    wanted = _Wanted(model, chosen, timer, output, verify, latency_seconds, profile)
    with _blaming(model):
        analysis, restore = _prepare(model, chosen, output, timer)
        with _scratch(output) as scratch, wanted.draft(scratch) as draft:
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


def checked(options: Mapping[str, Any], *, budget: bool = False) -> Options:
    """Options, and all that can be said against them before a network is read.

    Args:
        budget: whether there must be one.

    Raises:
        OptionError: one is unknown or wrong, or what it names isn't there.
    """
    unknown = set(options) - set(Options.__dataclass_fields__)
    if unknown:
        known = ", ".join(sorted(Options.__dataclass_fields__))
        raise OptionError(f"unknown option `{unknown.pop()}`; there are: {known}")
    chosen = Options(**options)
    if budget and all(getattr(chosen, name) is None for name in BUDGETS):
        raise OptionError(f"give a budget: {', '.join(BUDGETS[:-1])} or {BUDGETS[-1]}")
    criterion = pipeline.chosen_criterion(chosen)
    if criterion.needs_data and chosen.calibrate is None:
        raise OptionError(uncalibrated(criterion.name))
    provider_named(chosen.provider)
    if chosen.calibrate is not None:
        check_source(chosen.calibrate, chosen.preprocess)
    check_training(chosen)
    return chosen


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


def _measured_on(analysis: Analysis, options: Options) -> tuple[Feeds, dict[str, Any]]:
    """Inputs to measure latency with; the provider and the number of threads.

    Raises:
        OptionError: there is no such provider, or the network doesn't take such a batch.
    """
    shapes = analysis.graph.samples[0]
    if options.batch is not None:
        wants = wanted(analysis.graph, analysis.original)
        shapes = with_batch(shapes, wants, options.batch)
    under = {"provider": provider_named(options.provider), "threads": options.threads}
    return random_inputs(analysis.graph, shapes=shapes), under


@contextmanager
def _scratch(output: str | os.PathLike[str] | None) -> Iterator[Path]:
    """A folder for what is needed meanwhile.

    It is beside the output, where there is room: the reference network is as large as the original,
    and many systems keep /tmp in memory.
    """
    beside = Path(output).parent if output is not None else None
    try:
        folder = tempfile.TemporaryDirectory(prefix=".spa-prune.", dir=beside)
    except OSError as error:
        raise ModelError(f"cannot write to {beside}: {error.strerror}") from error
    with folder as name:
        yield Path(name)


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """What is wanted of a run, besides the pruned network."""

    model: object
    options: Options
    timer: Timer
    output: str | os.PathLike[str] | None
    verify: bool
    latency_seconds: float
    profile: bool

    @contextmanager
    def draft(self, scratch: Path) -> Iterator[Path]:
        """Where the network is drafted; the draft takes the output's place if the block
        succeeds."""
        if self.output is None:
            yield scratch / "pruned.onnx"
        else:
            with files.staged(Path(self.output)) as draft:
                yield draft

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
        """Write, prove, refit, train, measure."""
        source = Path(self.model) if isinstance(self.model, str | os.PathLike) else None
        agreement = latency = sizes = reconstruction = losses = None
        times: Sequence[Sequence[OperatorTime]] = ()
        options = self.options if calibrated is None else calibrated.settle(self.options)
        self._write(pruned, draft)
        if self.verify:
            agreement = proof.verify(analysis, pruned, draft, scratch, self.timer)
        if calibrated is not None and options.method != "none":
            with self.timer.step("reconstruct") as progress:
                reconstruction = reconstruct(
                    analysis, pruned, calibrated, options, scratch, progress
                )
            self._write(pruned, draft)
        if self.options.finetune is not None:
            with self.timer.step("finetune") as progress:
                losses = finetuner()(analysis, pruned, self.options, progress)
            self._write(pruned, draft)
        if source is not None and draft.exists():
            before = files.size(analysis.original)
            sizes = before, file_size(draft)
        if self.latency_seconds:
            latency, times = self._measure(analysis, source, draft, scratch)
        data = report(
            analysis,
            pruned,
            options=options.plain(),
            seconds=self.timer.seconds,
            agreement=agreement,
            latency=latency,
            sizes=sizes,
            times=times,
        )
        if calibrated is None and latency is not None:
            seconds = estimated_seconds(analysis, latency.before / 1e3)
            data["calibration_estimate"] = round(seconds, 1)
            data["calibrate_with"] = best_calibration(analysis.graph)
        if calibrated is not None:
            data["calibration"] = calibration_report(calibrated, choice, reconstruction)
        if losses is not None:
            data["finetune"] = {"losses": losses}
        return Result(restore(pruned.model), pruned.plan, data)

    def _measure(
        self, analysis: Analysis, source: Path | None, draft: Path, scratch: Path
    ) -> tuple[Latency, Sequence[Sequence[OperatorTime]]]:
        """The latency of both networks, and of their operators if that is wanted."""
        with self.timer.step("measure") as progress:
            if source is None:
                source = scratch / "original.onnx"
                files.write(analysis.original, source)
            feeds, under = _measured_on(analysis, self.options)
            seconds = self.latency_seconds
            latency = measure(source, draft, feeds, seconds=seconds, progress=progress, **under)
            if not self.profile:
                return latency, ()
            return latency, [
                operator_times(path, feeds, seconds=PROFILED * seconds, **under)
                for path in (source, draft)
            ]

    def _write(self, pruned: Pruned, draft: Path) -> None:
        if self.output is not None or self.verify or self.latency_seconds:
            with self.timer.step("write"):
                files.write(pruned.model, draft)
