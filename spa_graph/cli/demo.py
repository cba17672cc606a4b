"""`spa-prune demo`: a bundled trained network, before and after."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

import spa_graph
from spa_graph import console
from spa_graph.cli.options import LATENCY_SECONDS, answer_options, overwrite_option
from spa_graph.cli.target import check_writable
from spa_graph.passes.importance import CRITERIA

WITHOUT_LOSS = sorted(name for name, make in CRITERIA.items() if not make(0).needs_gradients)


@click.command(name="demo")
@click.option(
    "--flops",
    type=float,
    default=0.5,
    show_default=True,
    metavar="R",
    help="Keep at most this share of the FLOPs.",
)
@click.option("--criterion", type=click.Choice(WITHOUT_LOSS), help="What makes a channel count.")
@click.option("--calibrate", metavar="DATA", help="Refit what is left, for example on `data-free`.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Keep the pruned network.")
@overwrite_option
@answer_options
def demo_command(
    flops: float,
    criterion: str | None,
    calibrate: str | None,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Prune a bundled trained network and show accuracy and latency before and after.

    It needs no data of yours: a ResNet-20 and 1000 digits that it was not trained on come along.

    \b
    Examples:
      spa-prune demo
      spa-prune demo --flops 0.25 --calibrate data-free -o small.onnx
    """
    from spa_graph.models_zoo import demo

    source = demo.model_path()
    if output is not None:
        check_writable(output, overwrite)
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
    report = result.report | {"accuracy": dict(zip(("before", "after"), accuracy, strict=True))}
    console.answer(report, _show, as_json=as_json, quiet=quiet)
    if output is not None and not as_json and not quiet:
        click.echo(f"wrote {output}")


def _show(report: dict[str, Any]) -> None:
    accuracy = report["accuracy"]
    console.show_result(
        report, [("accuracy on held-out digits", accuracy["before"], accuracy["after"])]
    )
