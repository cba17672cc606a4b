"""Operator rules, one file per family. Importing this package registers all of them."""

from spa_graph.coupling.rules import (
    convolution,
    elementwise,
    indexing,
    linear,
    normalisation,
    recurrent,
    reduction,
    shape,
)

__all__ = [
    "convolution",
    "elementwise",
    "indexing",
    "linear",
    "normalisation",
    "recurrent",
    "reduction",
    "shape",
]
