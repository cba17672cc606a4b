"""Whether a model in its own framework computes what the pruned ONNX model does."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from spa_graph.errors import VerificationError
from spa_graph.export.stored import Array
from spa_graph.frontends.onnx import files
from spa_graph.runtime.sessions import open_session, run
from spa_graph.studies.opened import open_network

_TOLERANCE = 1e-3  # of the largest result: frameworks sum in other orders


def check_agreement(
    model: ir.Model, compute: Callable[[dict[str, Array]], Sequence[Array]], framework: str
) -> None:
    """Run both on the same random input.

    Args:
        compute: inputs by the names of the ONNX model -> outputs in its order.

    Raises:
        VerificationError: they differ, with how much.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.onnx"
        files.save(model, path)
        feeds = open_network(path).random_feeds()
        want = run(open_session(path), feeds)
    got = compute(feeds)
    for expected, found in zip(want, got, strict=True):
        if expected.shape != found.shape:
            raise VerificationError(
                f"the {framework} model returns {list(found.shape)}, the pruned ONNX model "
                f"{list(expected.shape)}: weights were not found, or are used otherwise there"
            )
        spread = float(np.abs(expected).max(initial=1e-6))
        error = float(np.abs(expected - found).max(initial=0)) / spread
        if not error <= _TOLERANCE:
            raise VerificationError(
                f"the {framework} model differs from the pruned ONNX model by {error:.1e} of the "
                "largest result: the exporter changed weights in a way that is not understood"
            )
