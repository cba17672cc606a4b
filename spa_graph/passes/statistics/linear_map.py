"""Linear operators as matrix products: y = x M, one row of x per position.

A position is a row of a matrix, or a window that a convolution looks at (im2col). With g groups:

    rows      (groups, positions, inputs)     weights that meet a position, in x
    matrix    (groups, inputs, outputs)
    results   (groups, positions, outputs)

A transposed convolution is a convolution over its input with zeros put in between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from spa_graph.coupling.scope import Linear
from spa_graph.graph import Operator

Array = NDArray[Any]
Rows = NDArray[np.float32]
Ints = NDArray[np.int64]
CONVOLUTIONS = ("convolution", "transposed convolution")


@dataclass(frozen=True, slots=True)
class LinearMap:
    """How one operator's features, weight and results are laid out as matrices.

    kernel, strides, dilations: per spatial axis; empty for a matrix product.
    """

    linear: Linear
    shape: tuple[int, ...]
    groups: int
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    auto_pad: str = "NOTSET"

    @classmethod
    def of(cls, linear: Linear, operator: Operator, shape: Sequence[int]) -> LinearMap:
        """The map of an operator whose weight has this shape."""
        rank = len(shape) - 2 if linear.form in CONVOLUTIONS else 0
        given = operator.attributes
        return cls(
            linear,
            tuple(shape),
            int(given.get("group", 1)),
            tuple(given.get("strides") or (1,) * rank),
            tuple(given.get("dilations") or (1,) * rank),
            tuple(given.get("pads") or (0,) * 2 * rank),
            tuple(given.get("output_padding") or (0,) * rank),
            str(given.get("auto_pad") or "NOTSET"),
        )

    @property
    def kernel(self) -> tuple[int, ...]:
        return self.shape[2:] if self.linear.form in CONVOLUTIONS else ()

    @property
    def window(self) -> int:
        """How many positions of the features one result sees."""
        return math.prod(self.kernel)

    @property
    def transposed(self) -> bool:
        return self.linear.form == "transposed convolution"

    @property
    def inputs(self) -> int:
        """The rows of each group's matrix."""
        channels = self.shape[self.linear.inputs]
        return (channels // self.groups if self.transposed else channels) * self.window

    @property
    def outputs(self) -> int:
        """The columns of each group's matrix."""
        channels = self.shape[self.linear.outputs]
        return channels if self.transposed or not self.kernel else channels // self.groups

    @property
    def elements(self) -> Ints:
        """The position along the features' axis of each row of the matrices; (groups, inputs)."""
        channels = self.groups * self.inputs // self.window
        return np.repeat(np.arange(channels), self.window).reshape(self.groups, -1)

    @property
    def results(self) -> Ints:
        """The position along the results' axis of each column of the matrices, group by group."""
        return np.arange(self.groups * self.outputs)

    # --- weights --------------------------------------------------------------------------------

    def matrix(self, weight: Array) -> Rows:
        """A weight as matrices."""
        weight = weight.astype(np.float32, copy=False)
        if not self.kernel:
            return (weight if self.linear.inputs == 0 else weight.T)[None]
        if self.transposed:
            split = weight.reshape(self.groups, -1, self.outputs, self.window)[..., ::-1]
            return split.transpose(0, 1, 3, 2).reshape(self.groups, self.inputs, self.outputs)
        split = weight.reshape(self.groups, self.outputs, self.inputs)
        return split.transpose(0, 2, 1)

    def weight(self, matrix: Array) -> Array:
        """Matrices as a weight: the inverse of `matrix`."""
        if not self.kernel:
            return matrix[0] if self.linear.inputs == 0 else matrix[0].T
        if self.transposed:
            split = matrix.reshape(self.groups, -1, self.window, self.outputs)
            return split.transpose(0, 1, 3, 2)[..., ::-1].reshape(self.shape)
        return matrix.transpose(0, 2, 1).reshape(self.shape)

    def bias(self, results: Array) -> Array:
        """Something per result, (groups, outputs), laid out like a bias."""
        return results.reshape(-1)

    def features_by_group(self, channels: Array) -> Array:
        """Something per channel of the features, (channels,), as (groups, channels)."""
        return channels.reshape(self.groups, -1)

    def grouped(self, channels: Array) -> Array:
        """Something per output channel, (..., channels), as (groups, ..., outputs)."""
        split = channels.reshape(*channels.shape[:-1], self.groups, self.outputs)
        return np.moveaxis(split, -2, 0)

    # --- features -------------------------------------------------------------------------------

    def positions(self, features: Array) -> tuple[int, ...]:
        """How many positions there are along each axis of the results but the channels'."""
        if not self.kernel:
            return (features.size // features.shape[self.linear.features],)
        before, after = self._padding(features.shape[2:])
        sizes = []
        for axis, size in enumerate(features.shape[2:]):
            stride = 1 if self.transposed else self.strides[axis]
            filled = (size - 1) * self.strides[axis] + 1 if self.transposed else size
            reach = self.dilations[axis] * (self.kernel[axis] - 1) + 1
            sizes.append((filled + before[axis] + after[axis] - reach) // stride + 1)
        return (features.shape[0], *sizes)

    def rows(self, features: Array, positions: Ints) -> Rows:
        """What the operator sees at some positions, numbered as in its results."""
        if not self.kernel:
            moved = np.moveaxis(features, self.linear.features, -1)
            return moved.reshape(-1, moved.shape[-1])[positions].astype(np.float32)[None]
        where = np.unravel_index(positions, self.positions(features))
        windows = self._windows(features)[(where[0], slice(None), *where[1:])]  # type: ignore[arg-type]
        split = windows.astype(np.float32, copy=False).reshape(len(positions), self.groups, -1)
        return np.ascontiguousarray(split.transpose(1, 0, 2))

    def maps(self, features: Array) -> Array:
        """A view: (samples, channels, *positions); a matrix product may have no positions."""
        moved = np.moveaxis(features, 1 if self.kernel else self.linear.features, -1)
        return np.moveaxis(np.atleast_2d(moved), -1, 1)

    def places(self, features: Array) -> int:
        """How many positions the features themselves have."""
        channels = features.shape[1 if self.kernel else self.linear.features]
        return features.size // channels

    def at(self, features: Array, places: Ints) -> Rows:
        """All channels at some positions of the features; (groups, places, channels)."""
        moved = np.moveaxis(self.maps(features), 1, -1)
        where = np.unravel_index(places, moved.shape[:-1])
        split = moved[where].astype(np.float32, copy=False).reshape(len(places), self.groups, -1)
        return np.ascontiguousarray(split.transpose(1, 0, 2))

    def _windows(self, features: Array) -> Array:
        """A view: (batch, channels, *positions, *kernel)."""
        before, after = self._padding(features.shape[2:])
        if self.transposed:
            features = _spread(features, self.strides)
        amount = [(0, 0), (0, 0), *zip(before, after, strict=True)]
        if any(map(any, amount)):
            crop = tuple(slice(max(-b, 0), a if a < 0 else None) for b, a in amount)
            features = np.pad(features[crop], [(max(b, 0), max(a, 0)) for b, a in amount])
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]
        axes = tuple(range(2, features.ndim))
        view = sliding_window_view(features, reach, axes)
        strides = (1,) * len(axes) if self.transposed else self.strides
        steps = (slice(None, None, step) for step in (*strides, *self.dilations))
        return view[:, :, *steps]

    def _padding(self, sizes: Sequence[int]) -> tuple[list[int], list[int]]:
        """The zeros before and after each spatial axis; of a transposed one, where it is spread."""
        rank = len(self.kernel)
        before, after = list(self.pads[:rank]), list(self.pads[rank:])
        if self.auto_pad == "VALID":
            before, after = [0] * rank, [0] * rank
        if self.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            for axis, size in enumerate(sizes):
                reach = self.dilations[axis] * (self.kernel[axis] - 1) + 1
                outputs = -(-size // self.strides[axis])
                total = max((outputs - 1) * self.strides[axis] + reach - size, 0)
                small, large = total // 2, total - total // 2
                upper = self.auto_pad == "SAME_UPPER"
                before[axis], after[axis] = (small, large) if upper else (large, small)
        if self.transposed:
            edges = [d * (k - 1) for d, k in zip(self.dilations, self.kernel, strict=True)]
            before = [edge - b for edge, b in zip(edges, before, strict=True)]
            more = zip(edges, after, self.output_padding, strict=True)
            after = [edge - a + extra for edge, a, extra in more]
        return before, after


def _spread(features: Array, strides: Sequence[int]) -> Array:
    """Put zeros between neighbours along the spatial axes."""
    sizes = [(n - 1) * s + 1 for n, s in zip(features.shape[2:], strides, strict=True)]
    spread = np.zeros((*features.shape[:2], *sizes), features.dtype)
    spread[:, :, *(slice(None, None, step) for step in strides)] = features
    return spread
