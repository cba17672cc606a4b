"""The cost model: FLOPs, parameters and memory of a candidate from its kept channel counts alone.

FLOPs are 2 x multiply-accumulates of convolutions, matrix products, attention and recurrent
operators, for one sample at the sizes of the nominal probe; normalisation, activations and data
movement are not counted (as in torch.utils.flop_counter). Parameters are the elements of stored
floating-point and quantised weights. Memory is the bytes of these, and of the values that are
alive together at most when operators run in the order of the file (see `memory.py`).

A cost is a product of sizes of Dims (`sizes.py`), so that a candidate costs a handful of array
operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from spa_graph.coupling.analysis import Coupling
from spa_graph.coupling.relations import Axes, Axis
from spa_graph.graph import Parameter
from spa_graph.passes.memory import lifetimes
from spa_graph.passes.sizes import Counts, Sizes

Quantity = Literal["flops", "params", "memory", "latency"]
QUANTITIES: tuple[Quantity, ...] = ("flops", "params", "memory")
"""What follows from the network alone; latency is measured, see `passes/latency`."""
NAMES: dict[Quantity, str] = {
    "flops": "FLOPs", "params": "parameters", "memory": "memory", "latency": "latency",
}  # fmt: skip
Products = tuple[NDArray[np.float64], NDArray[np.int64]]


def counts_as_weight(parameter: Parameter) -> bool:
    """Whether a constant is a weight, not a size, an index or a flag."""
    return parameter.dtype.kind not in "bSU" and not (
        parameter.dtype.kind in "iu" and parameter.dtype.itemsize >= 4
    )


def _item(parameter: Parameter) -> float:
    """Bytes of an element; those of 4 bits have half of one."""
    return parameter.nbytes / max(int(np.prod(parameter.shape, dtype=np.int64)), 1)


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
        self._table = Sizes(coupling)
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
        self.full = np.array([group.size for group in coupling.groups], np.int64)
        self.least = np.array([group.least for group in coupling.groups], np.int64)
        self._whole = self._evaluate(self._params, self._sizes(self.full))
        self._bytes = np.array([_item(coupling.graph.parameters[n]) for n in variants])[self._owner]
        self._unused_bytes = float(sum(p.nbytes for p in unused if counts_as_weight(p)))
        self._totals: dict[Quantity, float] = {}

    def cost(self, quantity: Quantity, counts: Counts) -> float:
        """The total of a candidate that keeps `counts[g]` channels of group g."""
        if quantity == "flops":
            return float(self.flops_per_cost(counts).sum())
        if quantity == "memory":
            return self._memory(counts)
        return self._stored(counts, np.ones(len(self._owner))) + self._unused

    def costs(self, quantity: Quantity, counts: Counts) -> NDArray[np.float64]:
        """The totals of candidates; `counts` is (groups, candidates)."""
        return np.array([self.cost(quantity, own) for own in counts.T])

    def _stored(self, counts: Counts, weights: NDArray[np.float64]) -> float:
        """The weighted elements of all parameters: whole uses of one share it, pruned ones are
        copies.

        An upper bound: copies that end up equal are stored once.
        """
        elements = self._evaluate(self._params, self._sizes(counts))
        pruned = elements < self._whole
        kept_whole = np.zeros(self._owner.max(initial=-1) + 1)
        kept_whole[self._owner[~pruned]] = (weights * self._whole)[~pruned]
        return float((weights * elements)[pruned].sum() + kept_whole.sum())

    def _memory(self, counts: Counts) -> float:
        """Bytes of weights, and of values at the worst moment."""
        live, values = self._alive
        peak = (live @ self._evaluate(values, self._sizes(counts))).max(initial=0.0)
        return self._stored(counts, self._bytes) + self._unused_bytes + float(peak)

    @cached_property
    def _alive(self) -> tuple[csr_array, Products]:
        """Which values are alive at each operator, and the bytes of each."""
        names, live = lifetimes(self.coupling.graph)
        dtypes = self.coupling.graph.dtypes
        value = self.coupling.relations.value
        items = [float(dtypes[name].itemsize) if name in dtypes else 4.0 for name in names]
        own = [(item, value(name) or ()) for item, name in zip(items, names, strict=True)]
        return live, self._products(own)

    def flops_per_cost(self, counts: Counts) -> NDArray[np.float64]:
        """FLOPs of each cost term; `operators` says whose they are."""
        return self._evaluate(self._flops, self._sizes(counts))

    def ratio(self, quantity: Quantity, counts: Counts) -> float:
        """The candidate's share of the whole network's cost."""
        if quantity not in self._totals:
            self._totals[quantity] = self.cost(quantity, self.full)
        whole = self._totals[quantity]
        return self.cost(quantity, counts) / whole if whole else 1.0

    def _sizes(self, counts: Counts) -> NDArray[np.float64]:
        return self._table.of(counts)

    @staticmethod
    def _evaluate(products: Products, sizes: NDArray[np.float64]) -> NDArray[np.float64]:
        factors, rows = products
        return factors * sizes[rows].prod(1)

    def _products(self, terms: Sequence[tuple[float, Sequence[Axis]]]) -> Products:
        width = max((len(axes) for _, axes in terms), default=1) or 1
        rows = np.zeros((len(terms), width), np.int64)
        factors = np.zeros(len(terms))
        for position, (factor, axes) in enumerate(terms):
            fixed, own = self._table.product(axes)
            factors[position] = factor * fixed
            rows[position, : len(own)] = own
        return factors, rows
