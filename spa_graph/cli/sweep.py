"""`spa-prune sweep`: what accuracy each size still has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spa_graph import console
from spa_graph.cli.command import Command
from spa_graph.cli.network import Network
from spa_graph.cli.options import (
    LATENCY_SECONDS,
    answer_options,
    conditions_options,
    html_option,
    model,
    pruning_options,
    together,
)
from spa_graph.cli.parameters import Choices, Ratios
from spa_graph.cli.target import beside, check_inputs, check_writable, typed, write_text
from spa_graph.errors import OptionError
from spa_graph.frontends.onnx import files
from spa_graph.passes.cost import NAMES
from spa_graph.passes.importance import CRITERIA
from spa_graph.passes.options import KEPT
from spa_graph.pictures.page import check_pages
from spa_graph.pictures.style import drawable

budget_options = together(*(
    click.option(f"--{name}", type=Ratios(),
                 help=f"Shares of the {NAMES[name]} to keep: first:last:step, or a list.")
    for name in KEPT
))  # fmt: skip


@click.command(name="sweep", cls=Command)
@model
@budget_options
@conditions_options
@click.option(
    "--criterion",
    "criteria",
    type=Choices(sorted(CRITERIA)),
    default=(),
    help="What makes channels important; several are compared [default: that of prune].",
)
@click.option(
    "--eval",
    "evaluation",
    metavar="MODULE:FUNCTION",
    help="Gets the path of a network, returns a number, more is better.",
)
@pruning_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The folder for networks and tables [default: MODEL.sweep beside the input].",
)
@html_option
@click.option(
    "--overwrite",
    is_flag=True,
    help="Start anew: delete the networks that are there, and replace the page.",
)
@click.option("--jobs", type=click.IntRange(1), help="How many at once [default: one per core].")
@click.option(
    "--backend",
    type=click.Choice(["loky", "dask", "ray"]),
    default="loky",
    show_default=True,
    help="Processes of this machine, or an engine that has a cluster, see docs/cluster.md.",
)
@click.option("--cluster", metavar="ADDRESS", help="Of the scheduler of a cluster that runs.")
@click.option(
    "--latency-seconds",
    type=click.FloatRange(0),
    default=LATENCY_SECONDS,
    show_default=True,
    help="How long to measure each network's latency, when all are there; 0 skips it.",
)
@answer_options
def sweep_command(
    model: Network,
    output: Path | None,
    html: Path | None,
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...],
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Prune MODEL to many sizes by several criteria; show which are worth having.

    Quality is what --eval returns, else how little the outputs change on samples that no fit has
    seen: give --eval or --calibrate. A folder gets the networks, sweep.csv and sweep.svg. A sweep
    that was stopped goes on when it is started again, and can be asked for more budgets and
    criteria; networks on which --eval failed are then done again. With --latency networks are
    pruned one after the other, as each is measured: let the machine be idle.

    \b
    Examples:
      spa-prune sweep model.onnx --flops 0.9:0.3:0.1 --calibrate samples.npz
      spa-prune sweep model.onnx --flops 0.8,0.5 --criterion l1,fpgm,obspa --calibrate data-free \\
          --eval mypackage.metrics:accuracy
      spa-prune sweep model.onnx --latency 0.9:0.3:0.1 --threads 2 --calibrate samples.npz
      spa-prune sweep model.onnx --params 0.9:0.5:0.2 --eval metrics:f1 --backend dask \\
          --cluster tcp://head:8786
    """
    from spa_graph.studies.sweep import check, sweep

    budgets = {quantity: options.pop(quantity) for quantity in KEPT}
    given = [(quantity, ratios) for quantity, ratios in budgets.items() if ratios]
    if len(given) != 1:
        kinds = ", ".join(f"--{quantity}" for quantity in KEPT)
        raise OptionError(f"give one kind of budget of {kinds}, for example --flops 0.9:0.3:0.1")
    quantity, ratios = given[0]
    if html is not None:
        check_pages()
        check_inputs([html], model)
        from spa_graph.pictures.sweep_page import is_sweep_page

        # the page is made anew like the table: --overwrite would delete networks
        ours = is_sweep_page(html, model.path.name)
        check_writable(html, options["overwrite"] or ours, "choose another name")
    options |= {"output": output or beside(model, ".sweep"), "quantity": quantity}
    check(ratios, **options)
    path = model.onnx(input_shapes, quiet=quiet)
    try:
        with console.progress(quiet) as progress:
            found = sweep(
                path, ratios, input_shapes=dict(input_shapes), progress=progress, **options
            )
    except KeyboardInterrupt as error:
        raise click.Abort("networks that are finished are kept: run it again to go on") from error
    if drawable():
        _draw(found)
    if html is not None:
        from spa_graph.pictures.sweep_page import sweep_page

        write_text(html, sweep_page(found, typed()))
        found["page"] = str(html)
    console.answer(found, console.show_sweep, as_json=as_json, quiet=quiet)


def _draw(found: dict[str, Any]) -> None:
    from spa_graph.pictures.style import save
    from spa_graph.pictures.sweep import sweep_figure

    picture = Path(found["folder"]) / "sweep.svg"
    with files.staged(picture) as draft:
        save(sweep_figure(found), draft)
    found["picture"] = str(picture)
