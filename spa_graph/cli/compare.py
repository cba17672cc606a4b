"""`spa-prune compare`: what differs between two networks."""

from __future__ import annotations

from typing import Any

import click

from spa_graph import console
from spa_graph.cli.command import Command
from spa_graph.cli.network import Network, NetworkType
from spa_graph.cli.options import answer_options, input_shape_option, seed_option


@click.command(name="compare", cls=Command, needs={"samples": ("data",), "preprocess": ("data",)})
@click.argument("before", type=NetworkType())
@click.argument("after", type=NetworkType())
@click.option(
    "--data",
    metavar="DATA",
    help="Compare outputs on samples: a .npz or .npy file, a folder of images, or "
    "package.module:function  [default: random input].",
)
@click.option("--samples", type=click.IntRange(1), default=256, show_default=True, help="At most.")
@click.option("--preprocess", metavar="STEPS", help="How images become inputs.")
@seed_option
@input_shape_option
@answer_options
def compare_command(
    before: Network,
    after: Network,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Show what differs between BEFORE and AFTER: weights, size, FLOPs, outputs.

    \b
    Examples:
      spa-prune compare model.onnx model.pruned.onnx
      spa-prune compare model.onnx model.pruned.onnx --data samples.npz
      spa-prune compare a.onnx b.onnx --json | jq .ratio
    """
    from spa_graph.studies.compare import check, compare

    check(options["data"], options["preprocess"])
    paths = [each.onnx(input_shapes, quiet=quiet) for each in (before, after)]
    with console.progress(quiet) as progress:
        found = compare(*paths, input_shapes=dict(input_shapes), progress=progress, **options)
    console.answer(found, console.show_comparison, as_json=as_json, quiet=quiet)
