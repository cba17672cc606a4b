"""Values that hold positions in an axis: followed from where they are made to where they index.

A ranking (TopK, ArgMax) returns positions in the axis that it ranked. If elements of that axis go,
it returns other numbers, and whatever the numbers index has lost the same elements: nothing needs a
correction, as long as nobody does anything else with them. Operators that only move them pass the
fact on (`follow`), rules that index with them tie the indexed axis (`Scope.look_up`), and any other
use freezes the ranked axis.
"""

from __future__ import annotations

from spa_graph.coupling.scope import Scope

_MOVE_FIRST_INPUT = frozenset(
    "Cast CastLike Compress Expand Flatten Gather GatherElements GatherND Identity Reshape Slice "
    "Split Squeeze Tile Transpose Unsqueeze".split()
)
_COMBINE = frozenset(("Max", "Min", "Sum"))
"""They return their operand if there is only one."""
_READ_SIZES = frozenset({"Shape", "Size"})
_LEAST_BYTES = 4  # narrower integers may be too small for large numbers, and wrap around


def follow(scope: Scope) -> None:
    """Pass on what an operator's inputs hold positions in, or freeze it; after the rule."""
    operator, held = scope.operator, scope.facts.positions
    if not held or held.keys().isdisjoint(operator.inputs) or operator.op_type in _READ_SIZES:
        return
    ranked = {
        slot: held[name]
        for slot, name in enumerate(operator.inputs)
        if name in held and slot not in scope.looked_up
    }
    if _moves(scope, ranked):
        held.update((name, axis) for axis in ranked.values() for name in operator.outputs if name)
    else:
        why = (operator, "computes with positions in this axis")
        scope.facts.computed_with += [(axis, why) for axis in ranked.values()]


def _moves(scope: Scope, ranked: dict[int, int]) -> bool:
    """Whether all outputs hold nothing but elements of the inputs that hold positions."""
    operator, dtypes = scope.operator, scope.relations.graph.dtypes
    whole = all(
        name in dtypes and dtypes[name].kind in "iu" and dtypes[name].itemsize >= _LEAST_BYTES
        for name in operator.outputs
        if name
    )
    if not whole or operator.domain:
        return False
    if operator.op_type == "Concat":
        dims = {scope.relations.dim(axis) for axis in ranked.values()}
        return len(ranked) == len(operator.inputs) and len(dims) == 1
    if operator.op_type in _COMBINE:
        return len(operator.inputs) == 1
    return operator.op_type in _MOVE_FIRST_INPUT and [*ranked] == [0]
