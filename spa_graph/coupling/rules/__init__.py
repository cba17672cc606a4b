"""Operator rules, one file per family. Importing this package registers all of them."""

from spa_graph.coupling.rules import (
    attention,
    convolution,
    elementwise,
    fused,
    indexing,
    linear,
    normalisation,
    positional,
    quantisation,
    recurrent,
    reduction,
    shape,
)

__all__ = [
    "attention",
    "convolution",
    "elementwise",
    "fused",
    "indexing",
    "linear",
    "normalisation",
    "positional",
    "quantisation",
    "recurrent",
    "reduction",
    "shape",
]
