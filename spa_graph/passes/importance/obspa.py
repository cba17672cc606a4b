"""OBSPA: the error that a channel's removal leaves when the other channels take over.

For a layer y = x M with H = E[x x'], removing the inputs S and refitting the rest by least squares
changes the results by tr(M_S' ((H^-1)_SS)^-1 M_S): optimal brain surgery (Hassibi & Stork, NIPS
1992) on the weights of whole channels, summed over all layers that read them (SPA, arXiv
2403.18955). Channels are removed greedily, the least damaging first; H^-1 and M follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.analysis import ChannelGroup
from spa_graph.passes.importance.base import Criterion, Floats, criterion
from spa_graph.passes.statistics.layers import Layer
from spa_graph.passes.statistics.readers import Reader, separate, variance

Ints = NDArray[np.int64]
ROUNDS = 32
"""In so many rounds all channels of a group are removed; more cost time and change little."""


@criterion
class OBSPA(Criterion):
    """The error of the layers that read a channel, after the others have taken over."""

    name = "obspa"
    needs_data = True

    def rows(self, layer: Layer) -> Floats:
        """Where no matrix has rows for all channels (`Layer.blocks`): what each loses alone."""
        return separate(layer) / variance(layer)

    def group(self, found: Sequence[Reader], group: ChannelGroup) -> Floats | None:
        if not found:
            return None
        order, errors = eliminate(
            [_Alone(r) if r.layer.moments.wide else _Surgery(r) for r in found],
            group.size,
        )
        scores = np.empty(group.size)
        scores[order] = np.maximum.accumulate(np.diff(errors, prepend=0.0))
        return scores


class _Surgery:
    """H^-1 and M of one reader, as channels leave it."""

    def __init__(self, reader: Reader) -> None:
        self.inverse = np.linalg.inv(reader.gram)
        self.matrix = reader.matrix
        self.rows = reader.rows

    def losses(self, channels: Ints) -> Floats:
        """The error of removing each channel alone."""
        rows = self.rows[channels]
        own = self.matrix[rows]  # (channels, k, outputs)
        if rows.shape[1] == 1:
            diagonal = self.inverse[rows[:, 0], rows[:, 0]]
            return np.square(own[:, 0]).sum(1) / diagonal
        blocks = self.inverse[rows[:, :, None], rows[:, None, :]]
        return np.asarray((own * np.linalg.solve(blocks, own)).sum((1, 2)))

    def remove(self, channels: Ints) -> float:
        """Remove channels together; returns the error that this adds."""
        gone = self.rows[channels].reshape(-1)
        columns, own = self.inverse[:, gone], self.matrix[gone]
        solved = np.linalg.solve(columns[gone], np.concatenate([own, columns.T], 1))
        update, downdate = solved[:, : own.shape[1]], solved[:, own.shape[1] :]
        error = float((own * update).sum())
        self.matrix -= columns @ update
        self.inverse -= columns @ downdate
        self.matrix[gone] = 0
        self.inverse[gone] = 0
        self.inverse[:, gone] = 0
        return error


class _Alone:
    """A reader too wide for its Gram matrix: each channel is lost as if it were the only one."""

    def __init__(self, reader: Reader) -> None:
        self._lost = reader.separate

    def losses(self, channels: Ints) -> Floats:
        return self._lost[channels]

    def remove(self, channels: Ints) -> float:
        return float(self._lost[channels].sum())


def eliminate(surgeries: Sequence[_Surgery | _Alone], count: int) -> tuple[Ints, Floats]:
    """The order in which channels go, and the error when each is gone; (count,)."""
    left = np.arange(count)
    order: list[int] = []
    errors: list[float] = []
    total = 0.0
    while len(left):
        losses = np.sum([surgery.losses(left) for surgery in surgeries], axis=0)
        ranked = np.argsort(losses, kind="stable")[: max(1, count // ROUNDS)]
        gone = left[ranked]
        last = len(ranked) == len(left)
        added = losses[ranked].sum() if last else sum(s.remove(gone) for s in surgeries)
        shares = np.cumsum(losses[ranked] + np.finfo(float).tiny)
        errors += (total + added * shares / shares[-1]).tolist()
        total += float(added)
        order += gone.tolist()
        left = np.delete(left, ranked)
    return np.array(order), np.array(errors)
