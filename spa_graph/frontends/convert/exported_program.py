"""A file of `torch.export.save` -> ONNX, by torch's own exporter.

    python -m spa_graph.frontends.convert.exported_program SOURCE TARGET

Axes that were exported as dynamic stay dynamic. The names of weights are those of the module. A
module that was exported in training mode is converted as in evaluation mode, as TorchScript is.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from spa_graph.errors import root_cause
from spa_graph.frontends.torch.tracing import short

OFF = {"train": False, "training": False, "dropout_p": 0.0}
"""What ATen's operators take in evaluation mode."""


def main(source: Path, target: Path) -> None:
    """Convert one network."""
    program = torch.export.load(source)
    _evaluate(program)
    try:
        torch.onnx.export(program, (), target, dynamo=True, external_data=False)
    except Exception as error:  # whatever the exporter raises: its last line tells nothing
        sys.exit(short(root_cause(error)))


def _evaluate(program: torch.export.ExportedProgram) -> None:
    """Let dropout drop nothing, and norms take their stored statistics.

    `eval()` of the module no longer helps: operators were told their mode when it was exported.
    """
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        for place, argument in enumerate(schema.arguments if schema is not None else ()):
            if argument.name in OFF and place < len(node.args):
                node.update_arg(place, OFF[argument.name])
            elif argument.name in OFF and argument.name in node.kwargs:
                node.update_kwarg(argument.name, OFF[argument.name])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
