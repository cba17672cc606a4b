"""Which candidates are measured.

Kernels differ by more than a few channels: ONNX Runtime's blocked convolutions, for example, take
only multiples of 16, and others run in layouts that are several times slower. So first a *unit* is
found: the multiple to which counts are rounded that is fastest at equal shares. All candidates that
the model is fitted to, and all that the allocator may choose, are on that grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.analysis import ChannelGroup
from spa_graph.passes.allocate import Limits
from spa_graph.passes.sizes import Counts

Shares = NDArray[np.float64]
UNITS = (1, 8, 16, 32)
LEVELS = (0.35, 0.6)
"""Units are compared where groups keep about these shares."""
CLOSE = 1.03
"""The finest unit is taken that is as fast as the fastest, but for this factor."""
CANDIDATES = 18
SPREAD = 0.35
"""Groups' shares differ from each other by so much, so that their effects can be told apart."""
LEAST_SHARE = 0.1


def unit_designs(
    groups: Sequence[ChannelGroup], whole: NDArray[np.bool_], seed: int = 0
) -> dict[int, list[Counts]]:
    """Kept counts for each unit: equal shares, rounded to it."""
    generator = np.random.default_rng(seed)
    shares = [_shares(generator, level, whole) for level in LEVELS]
    return {unit: [_rounded(groups, own, Limits(aligned=unit)) for own in shares] for unit in UNITS}


def fastest_unit(ms: Mapping[int, Sequence[float]]) -> int:
    """The unit to use, from the latencies of `unit_designs`."""
    means = {unit: float(np.mean(own)) for unit, own in ms.items()}
    return min(unit for unit in means if means[unit] <= CLOSE * min(means.values()))


def designs(
    groups: Sequence[ChannelGroup],
    whole: NDArray[np.bool_],
    limits: Limits,
    count: int = CANDIDATES,
    seed: int = 1,
) -> list[Counts]:
    """Kept counts, (groups,) each: the whole network, the smallest, and what lies between.

    Args:
        whole: groups that lose nothing unless the budget can't be met otherwise; in every second
            candidate they are whole.
    """
    generator = np.random.default_rng(seed)
    none = np.zeros(len(groups))
    found = [_rounded(groups, none + 1, limits), _rounded(groups, np.where(whole, 1, none), limits)]
    levels = generator.permutation(np.linspace(LEAST_SHARE, 1, count - len(found)))
    for number, level in enumerate(levels.tolist()):
        kept_whole = whole & (number % 2 == 0)
        found.append(_rounded(groups, _shares(generator, level, kept_whole), limits))
    return found


def _shares(generator: np.random.Generator, level: float, whole: NDArray[np.bool_]) -> Shares:
    jitter = SPREAD * generator.uniform(-1, 1, len(whole))
    return np.where(whole, 1.0, np.clip(level + jitter, LEAST_SHARE / 2, 1))


def _rounded(groups: Sequence[ChannelGroup], shares: Shares, limits: Limits) -> Counts:
    """The nearest counts that the limits allow."""
    full = np.array([group.size for group in groups], np.int64)
    steps = np.array([limits.step(group) for group in groups], np.int64)
    least = np.array([max(group.least, limits.min_channels) for group in groups], np.int64)
    nearest = np.maximum(np.rint(shares * full / steps), -(-least // steps)).astype(np.int64)
    return np.minimum(nearest * steps, full)
