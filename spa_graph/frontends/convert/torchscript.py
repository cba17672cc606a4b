"""A TorchScript file -> ONNX, by torch's own exporter.

    python -m spa_graph.frontends.convert.torchscript SOURCE TARGET x=1,3,224,224 ...

The file says neither the sizes nor the types of its inputs. Sizes are given; types are tried.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

TYPES = (torch.float32, torch.int64)
"""Zeros of these are tried as inputs, in this order."""


def main(source: Path, target: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Convert one network."""
    module = torch.jit.load(source, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    wanted = [each for each in module.forward.schema.arguments[1:] if not each.has_default_value()]
    names = [each.name for each in wanted]
    if sorted(names) != sorted(shapes):
        unknown = next((name for name in shapes if name not in names), None)
        what = "inputs of unknown sizes" if unknown is None else f"no input `{unknown}`"
        given = " ".join(f"--input-shape {name}=1,3,224,224" for name in names)
        sys.exit(f"it has {what}: give the sizes of all its inputs, as in {given}")
    feeds = _accepted(module, [shapes[name] for name in names])
    torch.onnx.export(module, feeds, target, dynamo=False, input_names=names)


def _accepted(
    module: torch.jit.ScriptModule, shapes: list[tuple[int, ...]]
) -> tuple[torch.Tensor, ...]:
    """Inputs of types that the network takes."""
    error = None
    for types in itertools.product(TYPES, repeat=len(shapes)):
        feeds = tuple(map(torch.zeros, shapes))
        feeds = tuple(each.to(dtype) for each, dtype in zip(feeds, types, strict=True))
        try:
            with torch.no_grad():
                module(*feeds)
        except RuntimeError as raised:
            error = error or raised
        else:
            return feeds
    last = str(error).strip().splitlines()[-1]
    sys.exit(f"it doesn't run on inputs of these sizes: {last}")


if __name__ == "__main__":
    pairs = (text.rpartition("=") for text in sys.argv[3:])
    given = {name: tuple(map(int, sizes.split(","))) for name, _, sizes in pairs}
    main(Path(sys.argv[1]), Path(sys.argv[2]), given)
