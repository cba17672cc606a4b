"""The command line: `spa-prune model.onnx --flops 0.5`, and `apply`, `inspect`, `demo`.

Exit codes: 0 done, 1 unexpected, 2 bad input or unreachable budget, 3 verification failed.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

import spa_graph
from spa_graph import console
from spa_graph.coupling.structures import KINDS
from spa_graph.errors import OptionError, RewriteError, SpaError, VerificationError
from spa_graph.frontends.onnx import files
from spa_graph.passes.importance import AGGREGATES, CRITERIA, NORMALIZERS
from spa_graph.passes.options import METHODS

LATENCY_SECONDS = 2.0


class _Prune(click.Group):
    """A group whose default command is `prune`: `spa-prune model.onnx` needs no verb."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {"--help", "-h", "--version"}
        if args and args[0] not in self.commands and args[0] not in own:
            args = ["prune", *args]
        return super().parse_args(ctx, args)

    def format_usage(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(
            "spa-prune", "MODEL.onnx (--flops R | --params R | --ratio R) [OPTIONS]"
        )
        formatter.write_usage("spa-prune", "COMMAND [ARGS]...", prefix="       ")


class _InputShape(click.ParamType[Any]):
    name = "NAME=1,3,224,224"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, tuple[int, ...]]:
        name, separator, sizes = str(value).rpartition("=")
        try:
            shape = tuple(int(size) for size in sizes.replace("x", ",").split(","))
        except ValueError:
            shape = ()
        if not separator or not shape or min(shape) < 1:
            self.fail(f"{value!r} is not of the form {self.name}", param, ctx)
        return name, shape


class _Scope(click.ParamType[Any]):
    name = f"[{'|'.join(KINDS)}],..."

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, ...]:
        kinds = tuple(value.split(",")) if isinstance(value, str) else value
        return tuple(click.Choice(KINDS).convert(kind, param, ctx) for kind in kinds)


class _RoundTo(click.ParamType[Any]):
    name = "auto|N"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | None:
        if value in (None, "auto"):
            return None
        return int(click.IntRange(1).convert(value, param, ctx))


class _Bytes(click.ParamType[Any]):
    name = "4GB"
    _UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}  # noqa: RUF012

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", str(value).strip(), re.IGNORECASE)
        if found is None:
            self.fail(f"{value!r} is not a size such as 4GB or 512MB", param, ctx)
        return int(float(found[1]) * self._UNITS[found[2].upper()])


def _together(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


_model = click.argument("model", type=click.Path(path_type=Path))
_analysis_options = _together(
    click.option("--exclude", multiple=True, metavar="PATTERN",
                 help="Leave weights alone: a glob of weight or operator names, or a type."),
    click.option("--exact", is_flag=True,
                 help="Prune only channels whose removal equals zeroing their weights."),
    click.option("--input-shape", "input_shapes", multiple=True, type=_InputShape(),
                 help="Sizes for an input with dynamic axes, where the guess does not fit."),
)  # fmt: skip
_block_options = _together(
    click.option("--attention", type=click.Choice(["heads", "head-dim"]), default="heads",
                 show_default=True, help="Prune whole heads, or the same elements of each."),
    click.option("--groups", type=click.Choice(["groups", "within"]), default="groups",
                 show_default=True,
                 help="Prune whole groups of a convolution, or the same channels of each."),
)  # fmt: skip
_calibration_options = _together(
    click.option("--calibrate", metavar="DATA",
                 help="Refit the weights that are left on samples: a .npz or .npy file, a folder "
                 "of images, package.module:function, or `data-free` to make them up."),
    click.option("--samples", type=click.IntRange(1),
                 help="Use at most so many.  [default: 256 to 1024, more for small networks]"),
    click.option("--preprocess", metavar="STEPS",
                 help="How images become inputs: imagenet, or resize=256,crop=224,scale=1/255,..."),
    click.option("--reconstruct", type=click.Choice(METHODS),
                 help="How to refit [default: ls with --calibrate]: means (bias), means and "
                 "variances (bn), least squares (ls), the paper's sweep (obspa)."),
    click.option("--memory-limit", type=_Bytes(), default=4 << 30, show_default="4GB",
                 help="Statistics and features beyond this wait on disk."),
)  # fmt: skip
_gradient_options = _together(
    click.option("--data", metavar="FILE",
                 help="For criteria that need gradients: a .npz with an array for each input, by "
                 "its name, and one more for the targets."),
    click.option("--loss", metavar="NAME",
                 help="Of the outputs and targets: cross-entropy (of logits), nll (of "
                 "probabilities), mse, l1, bce."),
)  # fmt: skip
_output_options = _together(
    click.option("-o", "--output", type=click.Path(path_type=Path),
                 help="The file to write [default: MODEL.pruned.onnx beside the input]."),
    click.option("--report", "report_path", type=click.Path(path_type=Path),
                 help="Write what was done as JSON."),
    click.option("--overwrite", is_flag=True, help="Replace files that exist."),
    click.option("--dry-run", is_flag=True, help="Do everything but write files."),
    click.option("--quiet", is_flag=True, help="No progress and no table."),
    click.option("--latency-seconds", type=click.FloatRange(0), default=LATENCY_SECONDS,
                 show_default=True, help="How long to measure latency; 0 skips it."),
)  # fmt: skip


@click.group(cls=_Prune, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(spa_graph.__version__, prog_name="spa-prune")
def cli() -> None:
    """Make a trained ONNX network smaller and faster by removing whole channels.

    \b
    spa-prune model.onnx --flops 0.5            writes model.pruned.onnx with half the FLOPs
    spa-prune model.onnx --params 0.6 -o small.onnx --round-to 8 --plan plan.json
    spa-prune apply other.onnx plan.json        replays that plan
    spa-prune model.onnx --flops 0.5 --calibrate samples.npz    refits what is left
    spa-prune inspect model.onnx                what can be pruned, what can't, and why
    spa-prune demo                              a bundled trained network, before and after

    `spa-prune prune --help` lists the options of pruning.
    """


@cli.command(name="prune")
@_model
@click.option(
    "--flops", type=float, metavar="R", help="Keep at most this share of the FLOPs (0 < R < 1)."
)
@click.option(
    "--params", type=float, metavar="R", help="Keep at most this share of the parameters."
)
@click.option(
    "--ratio", type=float, metavar="R", help="Remove this share of channels in every group."
)
@click.option(
    "--criterion",
    type=click.Choice(sorted(CRITERIA)),
    help="What makes a channel important [default: l1; with --calibrate obspa].",
)
@click.option(
    "--allocation",
    type=click.Choice(["global", "distortion"]),
    help="Rank the channels of all groups together, or distort the outputs least, as measured "
    "group by group [default: global; with --calibrate distortion].",
)
@click.option(
    "--aggregate",
    type=click.Choice(sorted(AGGREGATES)),
    default="mean",
    show_default=True,
    help="How a group's parameters become one importance.",
)
@click.option(
    "--normalize",
    type=click.Choice(sorted(NORMALIZERS)),
    default="mean",
    show_default=True,
    help="How groups are made comparable.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random choice.")
@click.option(
    "--min-channels",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Keep at least this many channels in every group.",
)
@click.option(
    "--round-to",
    type=_RoundTo(),
    default="auto",
    show_default=True,
    help="Kept channel counts are multiples of this; auto: of 8, less in small groups.",
)
@click.option(
    "--scope",
    type=_Scope(),
    default=(),
    help="What to prune [default: all but the residual width of pre-norm transformers, "
    "unless the budget can't be met without it].",
)
@_calibration_options
@_gradient_options
@_block_options
@_analysis_options
@click.option(
    "--plan",
    "plan_path",
    type=click.Path(path_type=Path),
    help="Write which channels were kept, for `spa-prune apply`.",
)
@_output_options
def prune_command(
    model: Path,
    plan_path: Path | None,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    **options: Any,
) -> None:
    """Prune MODEL to a budget: --flops, --params or --ratio."""
    target = _Target.take(model, options, plan_path)
    result = _run(
        target,
        lambda progress: spa_graph.prune(
            model,
            output=target.output,
            latency_seconds=target.latency_seconds,
            progress=progress,
            input_shapes=dict(input_shapes),
            **options,
        ),
    )
    target.show(result)


@cli.command(name="apply")
@_model
@click.argument("plan", type=click.Path(path_type=Path))
@_calibration_options
@_analysis_options
@_output_options
def apply_command(
    model: Path,
    plan: Path,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    **options: Any,
) -> None:
    """Prune MODEL by a PLAN made before, on this export or another with the same weight names."""
    target = _Target.take(model, options, None, inputs=[plan])
    loaded = spa_graph.Plan.load(plan)
    result = _run(
        target,
        lambda progress: spa_graph.apply_plan(
            model,
            loaded,
            output=target.output,
            latency_seconds=target.latency_seconds,
            progress=progress,
            input_shapes=dict(input_shapes),
            **options,
        ),
    )
    target.show(result)


@cli.command(name="inspect")
@_model
@_block_options
@_analysis_options
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--dot", metavar="GROUP", help="Print why a group's channels go together, as DOT.")
def inspect_command(
    model: Path,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    as_json: bool,
    dot: str | None,
    **options: Any,
) -> None:
    """Show MODEL's channel groups, its cost per operator, what is frozen and why."""
    from spa_graph.passes.report import inspection

    analysis = spa_graph.analyze(model, input_shapes=dict(input_shapes), **options)
    if dot is not None:
        from spa_graph.coupling.explain import group_dot

        group = next((group for group in analysis.groups if group.name == dot), None)
        if group is None:
            raise OptionError(f"--dot {dot}: no such group; `spa-prune inspect {model}` lists them")
        click.echo(group_dot(analysis.coupling, group))
    elif as_json:
        click.echo(json.dumps(inspection(analysis), indent=1))
    else:
        console.show_inspection(inspection(analysis))


@cli.command(name="demo")
@click.option(
    "--flops",
    type=float,
    default=0.5,
    show_default=True,
    metavar="R",
    help="Keep at most this share of the FLOPs.",
)
@click.option(
    "--criterion", type=click.Choice(sorted(CRITERIA)), help="What makes a channel count."
)
@click.option("--calibrate", metavar="DATA", help="Refit what is left, for example on `data-free`.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Keep the pruned network.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option("--quiet", is_flag=True, help="No progress.")  # fmt: skip
def demo_command(
    flops: float,
    criterion: str | None,
    calibrate: str | None,
    output: Path | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Prune a bundled trained network and show accuracy and latency before and after."""
    import tempfile

    from spa_graph.models_zoo import demo

    source = demo.model_path()
    if output is not None:
        _check_writable(output, overwrite)
    with tempfile.TemporaryDirectory() as folder:
        target = output or Path(folder) / "demo.pruned.onnx"
        with console.progress(quiet) as progress:
            result = spa_graph.prune(
                source,
                output=target,
                flops=flops,
                criterion=criterion,
                calibrate=calibrate,
                latency_seconds=LATENCY_SECONDS,
                progress=progress,
            )
        accuracy = (demo.accuracy(source), demo.accuracy(target))
    console.show_result(result.report, [("accuracy on held-out digits", *accuracy)])
    if output is not None:
        click.echo(f"wrote {output}")


class _Target:
    """Where a run writes to; everything about it is checked before any work is done."""

    def __init__(
        self,
        output: Path | None,
        plan: Path | None,
        report: Path | None,
        *,
        quiet: bool,
        latency_seconds: float,
    ) -> None:
        self.output = output
        self.plan = plan
        self.report = report
        self.quiet = quiet
        self.latency_seconds = latency_seconds

    @classmethod
    def take(
        cls, model: Path, options: dict[str, Any], plan: Path | None, inputs: Sequence[Path] = ()
    ) -> _Target:
        """Take the output options out of `options` and check them; `inputs` are read as well."""
        output = options.pop("output") or model.with_name(f"{model.stem}.pruned.onnx")
        report, overwrite = options.pop("report_path"), options.pop("overwrite")
        dry_run, quiet = options.pop("dry_run"), options.pop("quiet")
        latency_seconds = options.pop("latency_seconds")
        weights = output.with_name(f"{output.name}.data")
        paths = [path for path in (output, weights, plan, report) if path is not None]
        for path in paths:
            if sum(_same_file(path, other) for other in paths) > 1:
                raise OptionError(
                    f"{path} is named twice; each output needs its own file "
                    f"({weights} is for weights)"
                )
        _check_inputs(paths, model, inputs)
        if not dry_run:
            for path in paths:
                _check_writable(path, overwrite)
        if dry_run:
            output = plan = report = None
        return cls(output, plan, report, quiet=quiet, latency_seconds=latency_seconds)

    def show(self, result: spa_graph.Result) -> None:
        """Write plan and report, print the table."""
        if self.plan is not None:
            with files.staged(self.plan) as draft:
                result.plan.save(draft)
        if self.report is not None:
            with files.staged(self.report) as draft:
                draft.write_text(json.dumps(result.report, indent=1) + "\n", encoding="utf-8")
        if self.quiet:
            return
        console.show_result(result.report)
        click.echo(
            "this proves the surgery, not the accuracy: measure your metric on the pruned network"
        )
        written = [str(path) for path in (self.output, self.plan, self.report) if path]
        click.echo(f"wrote {', '.join(written)}" if written else "dry run: nothing was written")


def _check_inputs(outputs: Sequence[Path], model: Path, others: Sequence[Path]) -> None:
    """No output takes the place of a file that is read: the model, its weights, a plan."""
    taken = [path for path in outputs if path.exists()]
    # only a file that exists can hold the model's weights, so most runs needn't look for them
    read = [model, *others, *(files.sources(files.load(model)) if taken else ())]
    for path in outputs:
        if any(_same_file(path, source) for source in read):
            raise OptionError(
                f"{path} is part of the input; inputs are never modified: choose another"
            )


def _same_file(first: Path, second: Path) -> bool:
    if first.exists() and second.exists():
        return first.samefile(second)  # also where they are hard links
    return first.resolve() == second.resolve()


def _check_writable(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise OptionError(f"{path} is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise OptionError(f"cannot write {path}: it is a device, not a file")
    if not path.parent.is_dir():
        raise OptionError(f"cannot write {path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK):
        raise OptionError(f"cannot write {path}: no permission to write in {path.parent}")
    if path.exists() and not overwrite:
        raise OptionError(f"{path} exists; choose another name, or pass --overwrite")


def _run(target: _Target, work: Callable[[Any], spa_graph.Result]) -> spa_graph.Result:
    with console.progress(target.quiet) as progress:
        return work(progress)


@contextmanager
def _exit_codes() -> Iterator[None]:
    """Errors of ours are one line and an exit code; anything else is a bug, and says so."""
    try:
        yield
    except (VerificationError, RewriteError) as error:
        _fail(f"{error}; nothing was written", 3)
    except SpaError as error:
        _fail(str(error), 2)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except click.Abort:
        _fail("interrupted; nothing was written", 1)
    except (MemoryError, OSError) as error:
        _fail(f"{type(error).__name__}: {error}", 1)
    except Exception as error:
        if os.environ.get("SPA_PRUNE_DEBUG"):
            raise
        _fail(
            f"unexpected {type(error).__name__}: {error}; this is a bug in spa-prune: please "
            "report it (SPA_PRUNE_DEBUG=1 shows where)",
            1,
        )


def _fail(message: str, code: int) -> None:
    click.echo("spa-prune: " + " ".join(message.split()), err=True)
    sys.exit(code)


def main() -> None:
    """The console entry point."""
    with _exit_codes():
        sys.exit(cli(prog_name="spa-prune", standalone_mode=False))
