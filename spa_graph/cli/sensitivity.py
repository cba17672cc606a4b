"""`spa-prune sensitivity`: what each group's channels are worth to the outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spa_graph import console
from spa_graph.cli.command import Command
from spa_graph.cli.network import Network
from spa_graph.cli.options import (
    analysis_options,
    answer_options,
    block_options,
    criterion_option,
    data_options,
    gradient_options,
    model,
    overwrite_option,
    picture_option,
    seed_option,
)
from spa_graph.cli.parameters import Shares
from spa_graph.cli.target import check_picture
from spa_graph.frontends.onnx import files


@click.command(name="sensitivity", cls=Command)
@model
@click.option(
    "--levels",
    type=Shares(),
    default="0.25,0.5,0.75",
    show_default=True,
    help="The shares of its channels that each group goes without.",
)
@criterion_option
@seed_option
@data_options
@gradient_options
@block_options
@analysis_options
@picture_option
@overwrite_option
@answer_options
def sensitivity_command(
    model: Network,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    picture: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Prune each group of MODEL alone, and show what the outputs lose.

    The layers that read a group are refitted each time. Give as many samples as you can spare time
    for; nothing is written but the picture.

    \b
    Examples:
      spa-prune sensitivity model.onnx --calibrate samples.npz
      spa-prune sensitivity model.onnx --calibrate data-free --picture groups.svg
      spa-prune sensitivity model.onnx --calibrate photos/ --preprocess imagenet --json
    """
    from spa_graph.studies.sensitivity import check, sensitivity

    check_picture(picture, model, overwrite)
    check(**options)
    path = model.onnx(input_shapes, quiet=quiet)
    with console.progress(quiet) as progress:
        found = sensitivity(path, input_shapes=dict(input_shapes), progress=progress, **options)
    if picture is not None:
        from spa_graph.pictures.sensitivity import sensitivity_figure
        from spa_graph.pictures.style import save

        with files.staged(picture) as draft:
            save(sensitivity_figure(found), draft)
    console.answer(found, console.show_sensitivity, as_json=as_json, quiet=quiet)
    if picture is not None and not (as_json or quiet):
        click.echo(f"wrote {picture}")
