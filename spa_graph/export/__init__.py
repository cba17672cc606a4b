"""A Plan that was made on an ONNX export, turned into the smaller model in its own framework.

    result = spa_graph.prune("model.onnx", flops=0.5)
    small = spa_graph.export.to_keras(model, "model.onnx", result.model, result.plan)

The framework is imported by the function that needs it. Exporters rename weights, so these are
found by their values (`stored.py`), and what comes out must compute what the pruned ONNX model does
(`agreement.py`).
"""

from __future__ import annotations

from spa_graph.export.flax import to_flax
from spa_graph.export.keras import to_keras
from spa_graph.export.torch import to_torch

__all__ = ["to_flax", "to_keras", "to_torch"]
