"""How ATen calls are lowered, one file per family. Importing this package registers all of them."""

from spa_graph.frontends.torch.lowering import elementwise, layers, shape
from spa_graph.frontends.torch.lowering.base import (
    LOWERINGS,
    AtenCall,
    Lowered,
    Slot,
    arguments_by_name,
    changed_arguments,
    is_symbolic,
    is_tensor,
)

__all__ = [
    "LOWERINGS",
    "AtenCall",
    "Lowered",
    "Slot",
    "arguments_by_name",
    "changed_arguments",
    "elementwise",
    "is_symbolic",
    "is_tensor",
    "layers",
    "shape",
]
