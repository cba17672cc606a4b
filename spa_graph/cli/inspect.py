"""`spa-prune inspect`: what can be pruned, what can't, and why."""

from __future__ import annotations

import sys
from typing import Any

import click

import spa_graph
from spa_graph import console
from spa_graph.api import checked
from spa_graph.cli.network import Network
from spa_graph.cli.options import analysis_options, answer_options, block_options, model
from spa_graph.errors import OptionError


@click.command(name="inspect")
@model
@block_options
@analysis_options
@click.option("--dot", metavar="GROUP", help="Print why a group's channels go together, as DOT.")
@answer_options
def inspect_command(
    model: Network,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    as_json: bool,
    quiet: bool,
    dot: str | None,
    **options: Any,
) -> None:
    """Show MODEL's channel groups, its cost per operator, what is frozen and why.

    \b
    Examples:
      spa-prune inspect model.onnx
      spa-prune inspect model.onnx --json | jq '.groups[].name'
      spa-prune inspect model.onnx --dot conv1.weight:0 | dot -Tsvg > group.svg
    """
    from spa_graph.passes.report import inspection

    if dot is not None and as_json:
        raise OptionError("--dot prints DOT, not JSON: leave out --dot or --json")
    checked(options)
    path = model.onnx(input_shapes, quiet=quiet)
    # a pipe gets what was asked for alone
    with console.progress(quiet or not sys.stderr.isatty()) as progress:
        analysis = spa_graph.analyze(
            path, input_shapes=dict(input_shapes), progress=progress, **options
        )
    if dot is not None:
        from spa_graph.coupling.explain import group_dot

        group = next((group for group in analysis.groups if group.name == dot), None)
        if group is None:
            raise OptionError(
                f"--dot {dot}: no such group; `spa-prune inspect {model.given}` lists them"
            )
        click.echo(group_dot(analysis.coupling, group))
    else:
        console.answer(inspection(analysis), console.show_inspection, as_json=as_json, quiet=quiet)
