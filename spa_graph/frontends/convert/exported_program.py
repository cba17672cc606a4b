"""A file of `torch.export.save` -> ONNX, by torch's own exporter.

    python -m spa_graph.frontends.convert.exported_program SOURCE TARGET

Axes that were exported as dynamic stay dynamic. The names of weights are those of the module.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def main(source: Path, target: Path) -> None:
    """Convert one network."""
    program = torch.export.load(source)
    torch.onnx.export(program, (), target, dynamo=True, external_data=False)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
