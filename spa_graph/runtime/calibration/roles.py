"""What an input is for, read from the operators that consume it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from spa_graph.graph import Graph, Operator
from spa_graph.runtime.calibration.images import image_shape
from spa_graph.runtime.calibration.wanted import Wanted
from spa_graph.runtime.inputs import table_size

Role = Literal["image", "sound", "texture", "numbers", "state", "tokens", "mask", "flag"]
"""image: 1, 3 or 4 channels; sound: goes into a convolution along its last axis; texture: other
things with two axes of neighbours; numbers: no axis of neighbours is known; state: what a recurrent
layer starts from; tokens: indices of a table; mask: other integers; flag: booleans."""

# Operators behind which a value is still what it was, only at other places or on another scale.
_PASSING = frozenset(
    """Cast Identity Reshape Squeeze Unsqueeze Flatten Transpose Slice Expand Pad Concat Mul Add Sub
    Div Split Gather BatchNormalization InstanceNormalization LayerNormalization Resize""".split()
)
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_SHORTEST_SOUND = 64


def role(graph: Graph, want: Wanted) -> Role:
    """What an input is for."""
    shape = image_shape(want)
    if want.dtype.kind == "b":
        return "flag"
    if want.dtype.kind in "iu":
        if table_size(graph, want.name):
            return "tokens"
        return "image" if shape is not None and want.dtype.itemsize == 1 else "mask"
    consumers = list(_consumers(graph, want.name))
    if any(op.op_type in _RECURRENT and slot in (5, 6) for op, slot in consumers):
        return "state"
    if shape is not None:
        return "image"
    convolved = any(op.op_type == "Conv" and slot == 0 for op, slot in consumers)
    if convolved and len(want.nominal) in (2, 3) and want.nominal[-1] >= _SHORTEST_SOUND:
        narrow = len(want.nominal) == 2 or want.nominal[1] <= 8
        return "sound" if narrow else "texture"
    return "texture" if convolved and len(want.nominal) > 2 else "numbers"


def _consumers(graph: Graph, name: str) -> Iterator[tuple[Operator, int]]:
    """The operators that read a value, directly or through passing ones."""
    uses = graph.uses()
    waiting, seen = [name], {name}
    while waiting:
        for operator, slot in uses.get(waiting.pop(), ()):
            yield operator, slot
            if operator.op_type in _PASSING:
                fresh = [out for out in operator.outputs if out and out not in seen]
                seen.update(fresh)
                waiting.extend(fresh)
