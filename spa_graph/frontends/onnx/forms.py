"""The forms in which people hold an ONNX model, and the way back to the form that came in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from spa_graph.errors import ModelError
from spa_graph.frontends.onnx import checker, files


def take(model: object) -> tuple[ir.Model, Callable[[ir.Model], Any]]:
    """A model in any form -> `onnx_ir.Model`, and what turns the result into that form.

    A path is read; its result stays an `onnx_ir.Model`, whose weights are read when it is saved.

    Raises:
        ModelError: the object is not a model.
    """
    if isinstance(model, str | os.PathLike):
        return files.load(Path(model)), _as_it_is
    if isinstance(model, ir.Model):
        return model, _as_it_is
    if isinstance(model, onnx.ModelProto):
        return files.from_message(model), files.to_message
    surgeon = sys.modules.get("onnx_graphsurgeon")  # not imported: it can't be one of its graphs
    if surgeon is not None and isinstance(model, surgeon.Graph):
        return files.from_message(surgeon.export_onnx(model)), _to_surgeon
    raise ModelError(
        f"a {type(model).__name__} is no ONNX model; give a path, an onnx.ModelProto, an "
        "onnx_ir.Model or an onnx_graphsurgeon.Graph"
    )


def complaint(model: object) -> str | None:
    """What onnx's checker says against a model that came as a file or message, or None."""
    if isinstance(model, str | os.PathLike):
        return checker.complaint(Path(model))
    return checker.complaint_about(model) if isinstance(model, onnx.ModelProto) else None


def _as_it_is(model: ir.Model) -> ir.Model:
    return model


def _to_surgeon(model: ir.Model) -> Any:
    import onnx_graphsurgeon as gs

    return gs.import_onnx(files.to_message(model))
