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


def check_agreement(
    model: ir.Model, compute: Callable[[dict[str, Array]], Any], framework: str
) -> None:
    """Run both on the same random input.

    Args:
        compute: inputs by the names of the ONNX model -> its outputs in order, or the only one.

    Raises:
        VerificationError: they differ, with how much.
    """
    feeds = dict(random_inputs(read(model.clone())))
    found = compute(feeds)
    got = [np.asarray(each) for each in (found if isinstance(found, tuple | list) else [found])]
    complaint = f"the {framework} model differs from the pruned ONNX model"
    agreement.check_agreement(model, feeds, got, complaint)
