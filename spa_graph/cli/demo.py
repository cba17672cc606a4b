"""`spa-prune demo`: a bundled trained network, before and after."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

import spa_graph
from spa_graph import console
from spa_graph.cli.options import LATENCY_SECONDS
from spa_graph.cli.target import check_writable
from spa_graph.passes.importance import CRITERIA


@click.command(name="demo")
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
    console.show_result(result.report, [("accuracy on held-out digits", *accuracy)])
    if output is not None:
        click.echo(f"wrote {output}")
