"""Choosing sizes for the dynamic axes of a network's inputs.

Axes that the file names alike (`batch`, `sequence`) always get the same size, and move together;
unnamed ones go by their position, and so do those of one input that a caller gives different sizes
in spite of their name: PaddlePaddle calls all of them `?`. One that is named after a sum
(`past + sequence`, of an attention mask) has the size of the sum. A network is
looked at under two choices, the second with every axis moved that the network lets move; a third
one is for verification only, so that what holds at the sizes of the analysis by coincidence
doesn't pass.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import onnx_ir as ir

from spa_graph.errors import ModelError

InputShapes = Mapping[str, Sequence[int]]
Sizes = dict[str, tuple[int, ...]]
Key = str | int
"""What tells dynamic axes apart: a name, or a position."""

# Sizes to try for the dynamic axes of an input, by rank and position; most networks accept the
# first. The first axis is the batch. 224 and 256 suit windows and strides of image networks,
# 48 x 320 text lines, 1 x 16 token sequences.
_NOMINAL = (
    {2: (1, 16), 3: (1, 16, 64), 4: (1, 3, 224, 224), 5: (1, 3, 16, 112, 112)},
    {2: (1, 1024), 3: (1, 80, 96), 4: (1, 3, 48, 320), 5: (1, 3, 8, 64, 64)},
    {2: (1, 16000), 3: (1, 128, 128), 4: (1, 3, 640, 640), 5: (1, 1, 64, 64, 64)},
    {2: (1, 64), 3: (1, 64, 64), 4: (1, 3, 32, 320), 5: (1, 1, 32, 32, 32)},
)  # fmt: skip
_STEP = (1, 5, 32, 32, 32)
"""How much the second choice adds to a dynamic axis of each position."""
_COARSE = 64
"""Sizes from here on are kept multiples of half of this: windows and strides demand it."""


def free_inputs(model: ir.Model) -> list[ir.Value]:
    """The inputs that a caller must feed: those without an initializer of the same name."""
    return [value for value in model.graph.inputs if value.const_value is None]


def candidates(inputs: Sequence[ir.Value], given: InputShapes) -> Iterator[Sizes]:
    """Choices to try, the likeliest first; `given` sizes are kept.

    Raises:
        ModelError: `given` names an unknown input or has another rank, or an input has no shape.
    """
    _check(inputs, given)
    seen: list[Sizes] = []
    for guess in _NOMINAL:
        chosen: dict[Key, int] = {}
        for value in sorted(inputs, key=lambda value: value.name not in given):
            own = given.get(value.name or "") or guess.get(rank(value, given))
            for position, key in enumerate(keys(value, given)):
                if key is not None:
                    chosen.setdefault(key, int(own[position]) if own else 16 if position else 1)
        told = {key for v in inputs if v.name in given for key in keys(v, given)}
        chosen |= sums(chosen, told)
        sizes = {value.name or "": _with(value, given, chosen) for value in inputs}
        if sizes not in seen:
            seen.append(sizes)
            yield sizes


def _check(inputs: Sequence[ir.Value], given: InputShapes) -> None:
    unknown = set(given) - {value.name for value in inputs}
    if unknown:
        names = ", ".join(value.name or "" for value in inputs)
        raise ModelError(f"no input `{unknown.pop()}`; the inputs are: {names}")
    for value in inputs:
        own = given.get(value.name or "")
        if value.shape is None and own is None:
            raise ModelError(
                f"input `{value.name}` has no shape; give one: "
                f"--input-shape {value.name}=1,3,224,224"
            )
        if value.shape is not None and own is not None and len(own) != len(value.shape):
            raise ModelError(
                f"input `{value.name}` has {len(value.shape)} axes, --input-shape gives {len(own)}"
            )
        for position, dim in enumerate(value.shape if own is not None and value.shape else ()):
            if own is not None and isinstance(dim, int) and 0 < dim != own[position]:
                raise ModelError(
                    f"input `{value.name}` has {dim} elements along axis {position}, "
                    f"--input-shape gives {own[position]}"
                )
    told: dict[Key | None, int] = {}
    for value in inputs:
        for key, size in zip(keys(value, given), given.get(value.name or "", ()), strict=False):
            if isinstance(key, str) and told.setdefault(key, size) != size:
                raise ModelError(
                    f"axes that the file names `{key}` are equally long, --input-shape gives "
                    f"{told[key]} and {size}"
                )


def rank(value: ir.Value, given: InputShapes) -> int:
    return len(value.shape if value.shape is not None else given[value.name or ""])


def keys(value: ir.Value, given: InputShapes) -> list[Key | None]:
    """For each axis of an input, what it is known by; None if its size is fixed."""
    if value.shape is None:
        return list(range(rank(value, given)))
    names = [getattr(dim, "value", None) for dim in value.shape]
    told = set(zip(names, given.get(value.name or "", ()), strict=False))
    misnamed = {name for name, count in Counter(name for name, _ in told).items() if count > 1}
    found: list[Key | None] = []
    for position, (name, dim) in enumerate(zip(names, value.shape, strict=True)):
        if isinstance(dim, int):
            found.append(None if dim > 0 else position)  # some exporters write -1
        else:
            found.append(name if name and name not in misnamed else position)
    return found


def sums(chosen: Mapping[Key, int], told: Collection[Key | None] = ()) -> dict[Key, int]:
    """Sizes of the axes that are named after sums of others, less those that a caller told.

    >>> sums({"past": 3, "sequence": 2, "past + sequence": 7, "past + 1": 7, "rows + columns": 7})
    {'past + sequence': 5, 'past + 1': 4}
    """
    found: dict[Key, int] = {}
    for key in chosen:
        terms = re.split(r"\s*\+\s*", str(key))
        known = [chosen.get(term, int(term) if term.isdigit() else None) for term in terms]
        if len(terms) > 1 and key not in told and None not in known:
            found[key] = sum(size for size in known if size is not None)
    return found


def dynamic_keys(inputs: Sequence[ir.Value], given: InputShapes) -> list[Key]:
    """Every key of the network's inputs, once."""
    return list(dict.fromkeys(k for v in inputs for k in keys(v, given) if k is not None))


def _with(value: ir.Value, given: InputShapes, chosen: Mapping[Key, int]) -> tuple[int, ...]:
    shape = value.shape if value.shape is not None else given[value.name or ""]
    return tuple(
        chosen[key] if key is not None else int(str(dim))
        for key, dim in zip(keys(value, given), shape, strict=True)
    )


def moved(
    inputs: Sequence[ir.Value], given: InputShapes, sizes: Sizes, which: Sequence[Key]
) -> Sizes:
    """The choice with some keys moved."""
    return _changed(inputs, given, sizes, which, lambda size, position: size + _STEP[position])


def third(inputs: Sequence[ir.Value], given: InputShapes, sizes: Sizes) -> Sizes:
    """Another choice, which has nothing to do with the steps of the second."""

    def choose(size: int, position: int) -> int:
        if position == 0:
            return size + 2
        if size < _COARSE:
            return max(size // 3, 1)
        return max(size * 5 // 7 // (_COARSE // 2), 1) * (_COARSE // 2)

    return _changed(inputs, given, sizes, dynamic_keys(inputs, given), choose)


def extremes(inputs: Sequence[ir.Value], given: InputShapes, sizes: Sizes) -> list[Sizes]:
    """Choices far from the others, to see which sizes are equal elsewhere by coincidence.

    What a stride or a crop makes of an axis is often the same at sizes that are close.
    """
    choices: tuple[Callable[[int], int], ...] = (
        lambda size: size * 4,
        lambda size: max(size // 4, 1),
        lambda size: min(size, 2),
    )
    dynamic = dynamic_keys(inputs, given)

    def far(choose: Callable[[int], int]) -> Sizes:
        def change(size: int, position: int) -> int:
            return choose(size) if position else size + 2

        return _changed(inputs, given, sizes, dynamic, change)

    return [far(choose) for choose in choices]


def _changed(
    inputs: Sequence[ir.Value],
    given: InputShapes,
    sizes: Sizes,
    which: Sequence[Key],
    change: Callable[[int, int], int],
) -> Sizes:
    chosen: dict[Key, int] = {}
    for value in inputs:
        own = sizes[value.name or ""]
        for position, key in enumerate(keys(value, given)):
            if key is not None:
                step = min(position, len(_STEP) - 1)
                chosen.setdefault(
                    key, change(own[position], step) if key in which else own[position]
                )
    chosen |= sums(chosen)
    return {value.name or "": _with(value, given, chosen) for value in inputs}
