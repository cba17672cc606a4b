"""`spa-prune inspect`: what can be pruned, what can't, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

import spa_graph
from spa_graph import console
from spa_graph.cli.options import analysis_options, block_options, model
from spa_graph.errors import OptionError


@click.command(name="inspect")
@model
@block_options
@analysis_options
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
