"""How far a layer's update is to be trusted: what it does for rows that it was not fitted to.

With r what is missing at the outputs and p what an update adds there, a share a of it leaves

    E |r - a p|^2 = E |r|^2 - 2 a E r'p + a^2 E |p|^2

which is least at a = E r'p / E |p|^2. On rows that the update was not fitted to, and kept between
0 and 1, that is what of it carries over to others: stacked regression (Breiman, "Stacked
Regressions", Machine Learning 24, 1996) of two predictors, the layer as it was and as fitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph.passes.statistics.moments import Floats


@dataclass(frozen=True, slots=True)
class Update:
    """What is added to the matrices (groups, inputs, outputs) and the bias (groups, outputs)."""

    matrix: NDArray[Any]
    bias: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The best update, None if none helps; errors are those of rows not fitted to, per position.

    share: what of the fitted update is made.
    """

    update: Update | None
    before: float
    after: float
    damping: float = np.inf
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Trial:
    """Means over rows that an update was not fitted to, summed over outputs.

    missing: E |r|^2; shared: E r'p; added: E |p|^2.
    """

    missing: float
    shared: float
    added: float

    @property
    def share(self) -> float:
        """What of the update is trusted, in [0, 1]."""
        return min(max(self.shared / self.added, 0.0), 1.0) if self.added > 0 else 0.0

    @property
    def left(self) -> float:
        """The error that the trusted share of the update leaves."""
        return self.missing - self.share * (2 * self.shared - self.share * self.added)

    @property
    def helps(self) -> bool:
        return self.left < self.missing

    def outcome(self, matrix: Floats, bias: Floats, damping: float) -> Outcome:
        """The trusted share of an update that is fitted to everything."""
        update = Update(self.share * matrix, self.share * bias)
        return Outcome(update, self.missing, self.left, damping, self.share)

    @property
    def nothing(self) -> Outcome:
        """The layer stays as it is."""
        return Outcome(None, self.missing, self.missing)
