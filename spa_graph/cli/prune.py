"""`spa-prune prune`, the command that runs if none is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import spa_graph
from spa_graph.api import checked
from spa_graph.cli.command import Command
from spa_graph.cli.network import Network
from spa_graph.cli.options import (
    conditions_options,
    criterion_option,
    finetune_options,
    model,
    output_options,
    pruning_options,
)
from spa_graph.cli.target import Target
from spa_graph.passes.pipeline import check_data_taken


@click.command(name="prune", cls=Command)
@model
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
    "--memory",
    type=float,
    metavar="R",
    help="Keep at most this share of the memory for weights, and for features at the worst moment.",
)
@click.option(
    "--latency",
    metavar="R|TIME",
    help="Keep at most this share of the latency, or take at most so long (12ms, 800us), measured "
    "on this machine.",
)
@conditions_options
@criterion_option
@pruning_options
@finetune_options
@click.option(
    "--plan",
    "plan_path",
    type=click.Path(path_type=Path),
    help="Write which channels were kept, for `spa-prune apply`.",
)
@output_options
def prune_command(
    model: Network,
    plan_path: Path | None,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    **options: Any,
) -> None:
    """Prune MODEL to a budget: --flops, --params, --memory, --latency or --ratio.

    The result is proven on data to be the original without those channels, then written. With
    --calibrate the weights that are left are refitted, with --finetune they are trained.

    \b
    Examples:
      spa-prune model.onnx --flops 0.5
      spa-prune model.onnx --flops 0.5 --calibrate samples.npz --html report.html
      spa-prune model.onnx --flops 0.5 --data train.npz --finetune 5 --teacher
      spa-prune model.onnx --latency 0.5 --threads 2
      spa-prune model.onnx --params 0.6 --exclude 'head.*' --round-to 8 --plan plan.json
      spa-prune model.onnx --ratio 0.3 --dry-run --json | jq .ratio
    """
    target = Target.take(model, options, plan_path)
    check_data_taken([checked(options, budget=True)])
    target.run(spa_graph.prune, input_shapes, options)
