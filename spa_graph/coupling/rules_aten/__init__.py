"""Rules for ATen operators that no ONNX operator corresponds to, one file per family.

All other ATen operators are lowered to ONNX operators by the frontend, and share their rules.
"""

from spa_graph.coupling.rules_aten import linear, recurrent, shape

__all__ = ["linear", "recurrent", "shape"]
