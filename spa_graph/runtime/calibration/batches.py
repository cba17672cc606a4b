"""Calibration samples, cut into batches that can be walked through again and again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from spa_graph.errors import OptionError
from spa_graph.graph import Graph
from spa_graph.runtime.calibration.wanted import Wanted
from spa_graph.runtime.inputs import Feeds

Indices = NDArray[np.int64]
Kind = Literal["data", "data-free", "random tokens"]

LARGEST_VALUE = 2**26
"""A batch is chosen so that no value within the network takes more than about this many bytes."""
MOST_SAMPLES = 32
"""... and has at most this many samples."""
LONGEST_SEQUENCE = 256
"""... or, where they may be the steps of a sequence that starts from a given state, this many."""


class Reader(Protocol):
    """Samples by their number."""

    def read(self, indices: Indices) -> Feeds:
        """Feeds for one run with these samples, in this order."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Samples that can share a run: they have the same shape.

    batch: how many go into a run.
    ordered: whether they may be the steps of a sequence, so that neighbours must stay neighbours.
    """

    indices: Indices
    batch: int
    ordered: bool = False

    def batches(self) -> Iterator[Indices]:
        """The samples of each run."""
        for start in range(0, len(self.indices), self.batch):
            yield self.indices[start : start + self.batch]


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Calibration samples: every iteration gives the same batches in the same order.

    label: where they come from.
    kind: whether they are data, or made from the network alone; if so, whether at random from a
        vocabulary, which says little of what layers see.
    unit: how many samples a network of fixed batch size takes at once, else 1.
    shared: whether it is both parts of a split, because there was only one batch to split.
    """

    label: str
    kind: Kind
    reader: Reader
    groups: tuple[Group, ...]
    unit: int = 1
    seed: int = 0
    shared: bool = False

    @property
    def count(self) -> int:
        """How many samples there are."""
        return sum(len(group.indices) for group in self.groups)

    @property
    def source(self) -> str:
        """Where the samples come from and how many there are, for people."""
        return f"{self.label} ({self.count} sample{'' if self.count == 1 else 's'})"

    def __len__(self) -> int:
        return sum(-(-len(group.indices) // group.batch) for group in self.groups)

    def __iter__(self) -> Iterator[Feeds]:
        for group in self.groups:
            for indices in group.batches():
                yield self.reader.read(indices)

    def __repr__(self) -> str:
        return f"Calibration({self.source}, {len(self)} batches)"

    def split(self, share: float) -> tuple[Calibration, Calibration]:
        """Two disjoint parts, the first with about this share of the samples: to fit, and to judge.

        What can't be split, a single sample or batch of fixed size, is both parts; they are then
        `shared`.

        Raises:
            OptionError: the share doesn't lie between 0 and 1.
        """
        if not 0 < share < 1:
            raise OptionError(f"a share must lie between 0 and 1, not {share}")
        if any(group.ordered for group in self.groups):
            parts = self._split_sequences(share)
        else:
            parts = self._split_samples(share)
        if not all(parts):
            both = self._with(self.groups, shared=True)
            return both, both
        return self._with(parts[0]), self._with(parts[1])

    def _with(self, groups: Sequence[Group], shared: bool = False) -> Calibration:
        return Calibration(
            self.label, self.kind, self.reader, tuple(groups), self.unit, self.seed, shared
        )

    def _split_samples(self, share: float) -> tuple[list[Group], list[Group]]:
        """Choose units at random over all groups, so that sorted samples are mixed."""
        units = [
            (number, group.indices[start : start + self.unit])
            for number, group in enumerate(self.groups)
            for start in range(0, len(group.indices), self.unit)
        ]
        chosen = self._choose(len(units), share)
        parts: tuple[list[Group], list[Group]] = ([], [])
        for number, group in enumerate(self.groups):
            for part, wanted in zip(parts, (True, False), strict=True):
                own = [
                    indices
                    for (owner, indices), first in zip(units, chosen, strict=True)
                    if owner == number and first == wanted
                ]
                if own:
                    part.append(Group(np.concatenate(own), group.batch))
        return parts

    def _split_sequences(self, share: float) -> tuple[list[Group], list[Group]]:
        """Whole sequences go to either part; a single one is cut in two."""
        groups = self.groups
        if len(groups) > 1:
            chosen = self._choose(len(groups), share)
            return (
                [group for group, first in zip(groups, chosen, strict=True) if first],
                [group for group, first in zip(groups, chosen, strict=True) if not first],
            )
        indices, batch = groups[0].indices, groups[0].batch
        cut = min(max(round(share * len(indices)), 1), len(indices) - 1)
        ends = [0, cut, len(indices)] if cut else [0, len(indices), len(indices)]
        first, second = (
            [Group(indices[start:stop], batch, ordered=True)] if stop > start else []
            for start, stop in pairwise(ends)
        )
        return first, second

    def _choose(self, count: int, share: float) -> NDArray[np.bool_]:
        """Which of `count` things go to the first part: at least one to each, if there are two."""
        first = min(max(round(share * count), 1), max(count - 1, 1))
        chosen = np.zeros(count, bool)
        chosen[np.random.default_rng(self.seed).permutation(count)[:first]] = True
        return chosen


def in_units(indices: Indices, unit: int) -> Indices:
    """Whole units of samples: too few are repeated to fill one, what is over is left out."""
    if len(indices) < unit:
        return np.resize(indices, unit)
    return indices[: len(indices) // unit * unit]


def batch_size(
    graph: Graph,
    wants: Sequence[Wanted],
    batch: int | None = None,
    *,
    growth: float = 1.0,
    ordered: bool = False,
) -> tuple[int, int]:
    """How many samples go into a run, and of how many it must be a multiple.

    Args:
        batch: what the user wants.
        growth: how much larger samples are than at the graph's nominal sizes.
        ordered: whether the samples may be the steps of a sequence.

    Raises:
        OptionError: the network's batch is fixed at another size.
    """
    fixed = next((want.batch for want in wants if want.batch is not None), None)
    if fixed is not None:
        if batch not in (None, fixed):
            raise OptionError(f"batch {batch}: the network's batch is fixed at {fixed}")
        return fixed, fixed
    if batch is not None:
        if batch < 1:
            raise OptionError(f"batch {batch}: it must be at least 1")
        return batch, 1
    if all(want.axis is None for want in wants):
        return 1, 1
    largest = max(_largest_value(graph, wants) * max(growth, 1.0), 1.0)
    most = LONGEST_SEQUENCE if ordered else MOST_SAMPLES
    return int(np.clip(LARGEST_VALUE // largest, 1, most)), 1


def _largest_value(graph: Graph, wants: Sequence[Wanted]) -> float:
    """Bytes per sample of the largest value within the network, at nominal sizes."""
    return max(value_sizes(graph, wants), default=1.0)


def value_sizes(graph: Graph, wants: Sequence[Wanted]) -> list[float]:
    """Bytes per sample of each value within the network that depends on inputs' sizes."""
    nominal = next((want.nominal[want.axis] for want in wants if want.axis is not None), 1)
    return [
        float(np.prod([float(extent.nominal) for extent in shape]))
        * graph.dtypes.get(name, np.dtype(np.float32)).itemsize
        / max(nominal, 1)
        for name, shape in graph.shapes.items()
        if name not in graph.parameters and not all(extent.static for extent in shape)
    ]
