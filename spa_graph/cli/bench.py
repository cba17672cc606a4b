"""`spa-prune bench`: networks next to each other, in time and memory."""

from __future__ import annotations

from typing import Any

import click

from spa_graph import console
from spa_graph.cli.network import Network, NetworkType
from spa_graph.cli.options import answer_options, conditions_options, input_shape_option
from spa_graph.cli.parameters import NamedSize
from spa_graph.runtime.providers import provider_named


@click.command(name="bench")
@click.argument("models", nargs=-1, required=True, type=NetworkType())
@conditions_options
@click.option(
    "--dynamic",
    multiple=True,
    type=NamedSize(),
    help="The size of a dynamic axis, by its name in the file.",
)
@input_shape_option
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="How long to measure, at most 1000 runs of each.",
)
@answer_options
def bench_command(
    models: tuple[Network, ...],
    dynamic: tuple[tuple[str, int], ...],
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure MODELS that take the same inputs: latency, throughput, memory, operators.

    They run in turn, so that what slows the machine down slows all of them down. Ratios are to the
    first one, with 95% confidence intervals. On Linux each one's peak memory is
    measured, in a process of its own.

    \b
    Examples:
      spa-prune bench model.onnx model.pruned.onnx
      spa-prune bench a.onnx b.onnx --threads 1 --batch 8 --json > bench.json
      spa-prune bench a.onnx b.onnx --provider cuda --dynamic sequence=128
    """
    from spa_graph.studies.bench import bench

    provider_named(options["provider"])  # says that it isn't there
    paths = [each.onnx(input_shapes, quiet=quiet) for each in models]
    with console.progress(quiet) as progress:
        found = bench(
            paths,
            dynamic=dict(dynamic),
            input_shapes=dict(input_shapes),
            progress=progress,
            **options,
        )
    console.answer(found, console.show_bench, as_json=as_json, quiet=quiet)
