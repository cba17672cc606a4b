"""Normalisation scales as importance.

Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017.
Groups without a normalisation layer are ranked by the size of their weights in the same units
(multiples of the group's mean).
"""

from __future__ import annotations

from spa_graph.passes.importance.base import criterion
from spa_graph.passes.importance.magnitude import L1


@criterion
class NormScale(L1):
    """Absolute scale of the normalisation that follows the channel."""

    name = "bn-scale"
    roles = frozenset({"scale"})
