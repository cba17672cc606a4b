"""`spa-prune prune`, the command that runs if none is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import spa_graph
from spa_graph import console
from spa_graph.cli.options import (
    analysis_options,
    block_options,
    calibration_options,
    criterion_option,
    model,
    output_options,
    seed_option,
)
from spa_graph.cli.parameters import RoundTo, Scope
from spa_graph.cli.target import Target
from spa_graph.passes.importance import AGGREGATES, NORMALIZERS


@click.command(name="prune")
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
@criterion_option
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
@seed_option
@click.option(
    "--min-channels",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Keep at least this many channels in every group.",
)
@click.option(
    "--round-to",
    type=RoundTo(),
    default="auto",
    show_default=True,
    help="Kept channel counts are multiples of this; auto: of 8, less in small groups.",
)
@click.option(
    "--scope",
    type=Scope(),
    default=(),
    help="What to prune [default: all but the residual width of pre-norm transformers, "
    "unless the budget can't be met without it].",
)
@calibration_options
@block_options
@analysis_options
@click.option(
    "--plan",
    "plan_path",
    type=click.Path(path_type=Path),
    help="Write which channels were kept, for `spa-prune apply`.",
)
@output_options
def prune_command(
    model: Path,
    plan_path: Path | None,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    **options: Any,
) -> None:
    """Prune MODEL to a budget: --flops, --params or --ratio."""
    target = Target.take(model, options, plan_path)
    with console.progress(target.quiet) as progress:
        result = spa_graph.prune(
            model,
            output=target.output,
            latency_seconds=target.latency_seconds,
            progress=progress,
            input_shapes=dict(input_shapes),
            **options,
        )
    target.show(result)
