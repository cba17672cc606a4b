"""Keeping to the coupled channels that another view of the same network has.

A module and its ONNX export are one network, of which two frontends may see other couplings: an
exporter takes operators apart, and canonical forms free what a module's own `forward` ties. What is
chosen by one view must be possible in the other. So the other view's channels are an index space
here as well, and each position of a weight is one with the channel that it belongs to there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.relations import Axis, IndexMap, Relations
from spa_graph.coupling.solver import Channels, without
from spa_graph.graph import Extent

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Guide:
    """The channels of the other view.

    count: how many there are.
    channels: by weight, for each of its axes: the channel of each position (-1: it stays), or None
        if all of them stay.
    """

    count: int
    channels: Mapping[str, tuple[Ints | None, ...]]


def keep_to(relations: Relations, guide: Guide) -> Axis:
    """Tie the weights to the guide's channels, whose axis is returned; other weights are free."""
    axis = relations.new_axis(Extent(guide.count, guide.count), "guide", "channels")
    for use in relations.uses:
        for own, channels in zip(use.axes, guide.channels.get(use.parameter, ()), strict=False):
            if channels is None:
                relations.freeze((own,), "stays in the other view of the network")
            else:
                relations.add(IndexMap(own, axis, channels))
    return axis


def only_guided(channels: Channels, guided: Ints) -> Channels:
    """The channels that have one of the guide's; `guided` is the channel of each of those."""
    unguided = np.ones(int(channels.bounds[-1]), bool)
    unguided[guided[guided >= 0]] = False
    return without(channels, unguided) if unguided.any() else channels
