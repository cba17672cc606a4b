"""The cost model: FLOPs and parameters of a candidate from its kept channel counts alone.

FLOPs are 2 x multiply-accumulates of convolutions, matrix products, attention and recurrent
operators, for one sample at the sizes of the nominal probe; normalisation, activations and data
movement are not counted (as in torch.utils.flop_counter). Parameters are the elements of stored
floating-point and quantised weights.

The size of a Dim is linear in the kept counts of the groups that run through it, and a cost is a
product of such sizes, so that a candidate costs a handful of array operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

from spa_graph.coupling.analysis import Coupling
from spa_graph.coupling.relations import Axes, Axis
from spa_graph.graph import Parameter

Quantity = Literal["flops", "params"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
Counts = NDArray[np.int64]


def counts_as_weight(parameter: Parameter) -> bool:
    """Whether a constant is a weight, not a size, an index or a flag."""
    return parameter.dtype.kind not in "bSU" and not (
        parameter.dtype.kind in "iu" and parameter.dtype.itemsize >= 4
    )


def _variants(coupling: Coupling) -> dict[str, list[Axes]]:
    """The axes of each parameter; of every use whose Dims are others, where it is shared."""
    found: dict[str, dict[Axes, Axes]] = {}
    for use in coupling.relations.uses:
        if counts_as_weight(coupling.graph.parameters[use.parameter]):
            dims = tuple(coupling.relations.dim(axis) for axis in use.axes)
            found.setdefault(use.parameter, {}).setdefault(dims, use.axes)
    return {name: list(own.values()) for name, own in found.items()}


class CostModel:
    """Sums over operators of products of Dim sizes."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self._rows: dict[Axis, int] = {}
        self._base: list[float] = [1.0]  # row 0 is a dummy of size 1
        self._terms: list[tuple[int, int, int]] = []
        costs = coupling.facts.costs
        self.operators = np.array([cost.operator for cost in costs], np.int64)
        self._flops = self._products([(2.0 * c.factor, c.axes) for c in costs])
        variants = _variants(coupling)
        self._params = self._products([(1.0, axes) for own in variants.values() for axes in own])
        self._owner = np.repeat(np.arange(len(variants)), [len(own) for own in variants.values()])
        unused = [p for name, p in coupling.graph.parameters.items() if name not in variants]
        self._unused = float(
            sum(np.prod(p.shape, dtype=np.int64) for p in unused if counts_as_weight(p))
        )
        rows, groups, per_channel = np.array(self._terms, np.int64).reshape(-1, 3).T
        shape = (len(self._base), len(coupling.groups))
        self._matrix = coo_array((per_channel.astype(float), (rows, groups)), shape=shape).tocsr()
        self._constant = np.array(self._base)
        self.full = np.array([group.size for group in coupling.groups], np.int64)
        self.least = np.array([group.least for group in coupling.groups], np.int64)
        self._whole = self._evaluate(self._params, self._sizes(self.full))
        self._totals = {quantity: self.cost(quantity, self.full) for quantity in QUANTITIES}

    def cost(self, quantity: Quantity, counts: Counts) -> float:
        """The total of a candidate that keeps `counts[g]` channels of group g."""
        if quantity == "flops":
            return float(self.flops_per_cost(counts).sum())
        return self._stored(self._evaluate(self._params, self._sizes(counts))) + self._unused

    def _stored(self, elements: NDArray[np.float64]) -> float:
        """The elements of all parameters: whole uses of one share it, pruned ones are copies.

        An upper bound: copies that end up equal are stored once.
        """
        pruned = elements < self._whole
        kept_whole = np.zeros(self._owner.max(initial=-1) + 1)
        kept_whole[self._owner[~pruned]] = self._whole[~pruned]
        return float(elements[pruned].sum() + kept_whole.sum())

    def flops_per_cost(self, counts: Counts) -> NDArray[np.float64]:
        """FLOPs of each cost term; `operators` says whose they are."""
        return self._evaluate(self._flops, self._sizes(counts))

    def ratio(self, quantity: Quantity, counts: Counts) -> float:
        """The candidate's share of the whole network's cost."""
        whole = self._totals[quantity]
        return self.cost(quantity, counts) / whole if whole else 1.0

    def _sizes(self, counts: Counts) -> NDArray[np.float64]:
        sizes: NDArray[np.float64] = self._constant + self._matrix @ counts
        return sizes

    @staticmethod
    def _evaluate(
        products: tuple[NDArray[np.float64], NDArray[np.int64]], sizes: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        factors, rows = products
        return factors * sizes[rows].prod(1)

    def _products(
        self, terms: Sequence[tuple[float, Sequence[Axis]]]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        width = max((len(axes) for _, axes in terms), default=1) or 1
        rows = np.zeros((len(terms), width), np.int64)
        factors = np.zeros(len(terms))
        for position, (factor, axes) in enumerate(terms):
            factors[position] = factor
            for column, axis in enumerate(axes):
                if self.coupling.channel_of(axis) is None:
                    factors[position] *= self.coupling.size(axis)
                else:
                    rows[position, column] = self._row(axis)
        return factors, rows

    def _row(self, axis: Axis) -> int:
        dim = self.coupling.relations.dim(axis)
        if dim not in self._rows:
            self._rows[dim] = row = len(self._base)
            channel = self.coupling.channels.of_element[dim]
            bounds = self.coupling.channels.bounds
            group = np.searchsorted(bounds, channel[channel >= 0], side="right") - 1
            elements = np.bincount(group, minlength=len(bounds) - 1)
            self._base.append(float((channel < 0).sum()))
            for own in np.flatnonzero(elements).tolist():
                size = int(bounds[own + 1] - bounds[own])
                self._terms.append((row, own, int(elements[own]) // size))
        return self._rows[dim]
