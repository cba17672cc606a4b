"""Whether what another framework computes is what a network that is to be written does."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from spa_graph.errors import VerificationError
from spa_graph.frontends.onnx import files
from spa_graph.runtime.sessions import Feeds, open_session, run
from spa_graph.runtime.verify import Array, compare


def check_agreement(model: ir.Model, feeds: Feeds, got: Sequence[Array], complaint: str) -> None:
    """Compare outputs with those of a network, as ONNX Runtime runs its file.

    Args:
        got: what the other framework gives for the same inputs.
        complaint: the beginning of the message if they differ.

    Raises:
        VerificationError: an output differs.
    """
    with tempfile.TemporaryDirectory(prefix=".spa-prune.") as folder:
        path = Path(folder) / "network.onnx"
        files.write(model, path)
        with files.openable(path) as opened:
            want = run(open_session(opened, plain=True), feeds)
    try:
        compare([str(value.name) for value in model.graph.outputs], got, want)
    except VerificationError as error:
        raise VerificationError(f"{complaint}: {error}") from error
