"""Quantised weights as the numbers that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.analysis import Coupling, Member
from spa_graph.coupling.scope import Code

Array = NDArray[Any]


def loader(coupling: Coupling, member: Member) -> Callable[[], Array]:
    """What reads a member's weights: (integer - zero point) * scale where they are quantised.

    Integers of channels that have scales of their own can't be compared: each uses its full range.
    """
    load = coupling.graph.parameters[member.parameter].load
    code = coupling.facts.codes.get((member.operator, member.slot))
    if code is None:
        return load
    scale = _setting(coupling, member, code.scale)
    zero = _setting(coupling, member, code.zero_point)
    if scale is None or load().dtype.kind == "f":
        return load

    def decode() -> Array:
        integers = load()
        steps = integers.astype(np.float32)
        if zero is not None:
            steps -= _along(zero, integers, code)
        return steps * _along(scale, integers, code)

    return decode


def _setting(coupling: Coupling, member: Member, slot: int) -> Array | None:
    """A scale or zero point that is stored, or None."""
    inputs = coupling.graph.operators[member.operator].inputs
    parameter = coupling.graph.parameters.get(inputs[slot]) if slot < len(inputs) else None
    return parameter.load() if parameter is not None else None


def _along(setting: Array, integers: Array, code: Code) -> Array:
    """One number, one per position along the code's axis, or one per block, made to broadcast."""
    setting = setting.astype(np.float32)
    if setting.size == 1:
        return setting.reshape(())
    if setting.ndim == integers.ndim:
        for axis, (size, wanted) in enumerate(zip(setting.shape, integers.shape, strict=True)):
            setting = np.repeat(setting, -(-wanted // size), axis)[
                (slice(None),) * axis + (slice(wanted),)
            ]
        return setting
    shape = [1] * integers.ndim
    shape[code.axis] = setting.size
    return setting.reshape(shape)
