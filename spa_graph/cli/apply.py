"""`spa-prune apply`: replay a plan."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

import spa_graph
from spa_graph.api import checked
from spa_graph.cli.command import Command
from spa_graph.cli.network import Network
from spa_graph.cli.options import analysis_options, calibration_options, model, output_options
from spa_graph.cli.target import Target


@click.command(name="apply", cls=Command)
@model
@click.argument("plan", type=click.Path(path_type=Path))
@calibration_options
@analysis_options
@output_options
def apply_command(
    model: Network,
    plan: Path,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    **options: Any,
) -> None:
    """Prune MODEL by a PLAN made before, on this export or another with the same weight names.

    \b
    Examples:
      spa-prune apply finetuned.onnx plan.json
      spa-prune apply model.onnx plan.json -o small.onnx --calibrate samples.npz
    """
    target = Target.take(model, options, None, inputs=[plan])
    loaded = spa_graph.Plan.load(plan)
    checked(options)
    target.run(partial(spa_graph.apply_plan, plan=loaded), input_shapes, options)
