"""How ATen calls are lowered, one file per family. Importing this package registers all of them."""

from spa_graph.frontends.torch.lowering import elementwise, layers, shape
from spa_graph.frontends.torch.lowering.base import (
    LOWERINGS,
    AtenCall,
    Lowered,
    Slot,
    arguments_by_name,
    is_symbolic,
    is_tensor,
    set_arguments,
)

__all__ = [
    "LOWERINGS",
    "AtenCall",
    "Lowered",
    "Slot",
    "arguments_by_name",
    "elementwise",
    "is_symbolic",
    "is_tensor",
    "layers",
    "set_arguments",
    "shape",
]
