"""Head importance: how much the loss minds a gate on a channel.

Michel, Levy & Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019, section 4.1: the
mean over samples of |dL/dg|, with g a gate on the output of an attention head. A layer that reads
channel c as W_c x_c has dL/dg_c = x_c dL/dx_c = the sum of w dL/dw over W_c, so that weights tell
it, for heads and all other channels alike. The paper divides the importances of one layer by their
Euclidean norm; here `--normalize` does that.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from spa_graph.passes.importance.base import Floats, criterion
from spa_graph.passes.importance.differential import Differentiable, Effects, PerChannel


@criterion
class HeadImportance(PerChannel):
    """Mean over samples of |dL/dg|, with g a gate where layers read the channel."""

    name = "head-importance"
    reads = True

    def effects(self, network: Differentiable) -> Iterator[Effects]:
        return network.effects("sample")

    def of(self, effects: Floats) -> Floats:
        return np.abs(effects)
