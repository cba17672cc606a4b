"""Criteria that run the network with gates on its channels, and look at nothing but its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from spa_graph.coupling.analysis import ChannelGroup
from spa_graph.passes.importance.base import Criterion, Floats, Gated
from spa_graph.passes.statistics.readers import Reader

Progress = Callable[[int, int], None]
LEAST = 4
"""Every group is probed at least so often."""


class Probed(Criterion):
    """Base of criteria that need the network's outputs: implement `measured`.

    They say of all channels, in the same unit, what the outputs lose: `--normalize none` compares
    groups by it.
    """

    needs_data = True
    probes = True

    def __init__(self, seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)
        self._scores: Floats = np.zeros(0)
        self._gated = np.zeros(0, bool)

    def measured(self, network: Gated, progress: Progress) -> Floats:
        """The importance of every channel; (channels,)."""
        raise NotImplementedError

    def probe(self, network: Gated, progress: Progress) -> None:
        self._gated = network.gated
        self._scores = self.measured(network, progress)

    def group(self, found: Sequence[Reader], group: ChannelGroup) -> Floats | None:  # noqa: ARG002
        own = slice(group.start, group.stop)
        return self._scores[own] if self._gated[own].any() else None


def shared_out(network: Gated, probes: int) -> list[tuple[slice, int]]:
    """The groups that have gates, and how many probes each gets: by its size, but `LEAST`."""
    groups = [own for own in network.groups if network.gated[own].any()]
    total = sum(own.stop - own.start for own in groups)
    return [(own, max(LEAST, round(probes * (own.stop - own.start) / total))) for own in groups]
