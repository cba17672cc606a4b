"""Whether a model in its own framework computes what the pruned ONNX model does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from spa_graph.export.stored import Array
from spa_graph.frontends.onnx.reader import read
from spa_graph.passes import agreement
from spa_graph.runtime.inputs import random_inputs

SCALES = (1.0, 0.1, 0.01)
"""Of random inputs: a softmax that large ones saturate hides what is before it, small ones show."""


def check_agreement(
    model: ir.Model, compute: Callable[[dict[str, Array]], Any], framework: str
) -> None:
    """Run both on the same random inputs.

    Args:
        compute: inputs by the names of the ONNX model -> its outputs in order, or the only one.

    Raises:
        VerificationError: they differ, with how much.
    """
    drawn = dict(random_inputs(read(model.clone())))
    complaint = f"the {framework} model differs from the pruned ONNX model"
    for scale in SCALES:
        feeds = {name: _scaled(value, scale) for name, value in drawn.items()}
        found = compute(feeds)
        got = [np.asarray(each) for each in (found if isinstance(found, tuple | list) else [found])]
        agreement.check_agreement(model, feeds, got, complaint)


def _scaled(value: Array, scale: float) -> Array:
    return (scale * value).astype(value.dtype) if value.dtype.kind == "f" else value
