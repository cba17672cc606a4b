"""Heads, as shares of the linear operators that make and read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spa_graph.coupling.relations import Axis
from spa_graph.frontends.onnx.weights import stored_tensor
from spa_graph.passes.network import Analysis, Pruned
from spa_graph.passes.reconstruct.sites import Adapt, Site, bias_of, find_sites, shares_bias
from spa_graph.passes.statistics.moments import Floats

Kept = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Twin(NamedTuple):
    """A linear operator of the dense network, and of the pruned one."""

    dense: Site
    small: Site

    @property
    def results(self) -> str:
        """The value that it computes, with its bias."""
        site = self.dense
        node = site.nodes[0] if site.bias is None else site.bias[0]
        return str(node.outputs[0].name)

    @property
    def features(self) -> str:
        """The value that it reads."""
        return self.dense.sources[0]


class Product(NamedTuple):
    """A product of two computed values.

    sums: whether the channels of which some go are those that it sums over (queries and keys), or
        those of its second operand (values).
    axis: of the channels.
    """

    operator: str
    operands: tuple[str, str]
    sums: bool
    axis: Axis


class Part(NamedTuple):
    """One head's share of a linear operator: its results or, if it `reads`, its features.

    columns: which of them, channel by channel.
    """

    twin: int
    reads: bool
    columns: tuple[int, ...]


Pair = tuple[Part, Part]
"""What is multiplied by A, and by B."""


@dataclass(frozen=True, eq=False)
class Family:
    """Heads that share queries, keys or values; which of their channels stay, (channels,).

    averaged: whether it is values and what reads them.
    """

    operator: str
    pairs: Sequence[Pair]
    stays: Kept
    averaged: bool

    @property
    def sides(self) -> tuple[list[Part], list[Part]]:
        """What is multiplied by A, and by B."""
        first, second = (list(dict.fromkeys(side)) for side in zip(*self.pairs, strict=True))
        return first, second

    @property
    def seen(self) -> list[Part]:
        """The parts of which moments are needed: values are seen by what reads them."""
        first, second = self.sides
        return second if self.averaged else first + second


Turns = tuple[Floats, Floats]
"""A and B of all channels, (channels, channels) each."""


def products_of(analysis: Analysis, kept: Kept) -> Iterator[Product]:
    """The matrix products of two computed values, of whose channels some go."""
    coupling = analysis.coupling
    for index, axis, _ in coupling.facts.contracted:
        operator = coupling.graph.operators[index]
        if operator.op_type != "MatMul" or not coupling.facts.stored.isdisjoint(operator.inputs):
            continue
        operands = operator.inputs[0], operator.inputs[1]
        values = coupling.relations.value(operands[1]) or ()
        if coupling.kept_elements(axis, kept) is not None:
            yield Product(operator.name, operands, True, axis)
        elif values and coupling.kept_elements(values[-1], kept) is not None:
            yield Product(operator.name, operands, False, values[-1])


def twins_of(analysis: Analysis, pruned: Pruned, adapt: Adapt) -> list[Twin]:
    """The products with a weight of which results or features go, in the network's order."""
    left = find_sites(analysis.coupling, pruned.model, pruned.graph, pruned.kept, adapt)
    smaller = {site.layers[0].key: site for site in left}
    found = []
    for key, site in dense_sites(analysis, analysis.model).items():
        small, linear = smaller.get(key), site.pruned.linear
        if small is None or (small.results.all() and small.rows.all()):
            continue
        plain = linear.form == "matrix" and linear.features == linear.result == -1
        own = not site.shared and not shares_bias(site)
        if plain and own and (bias_of(site) is None) == (bias_of(small) is None):
            found.append(Twin(site, small))
    return found


def dense_sites(analysis: Analysis, model: ir.Model) -> dict[tuple[int, int], Site]:
    """The linear operators of the dense network, or of a copy of it."""
    every = np.ones(analysis.coupling.count, bool)
    sites = find_sites(analysis.coupling, model, analysis.graph, every)
    return {site.layers[0].key: site for site in sites}


def matrix_of(site: Site) -> Floats:
    """The stored weight as a matrix (inputs, outputs), in double precision."""
    weight = stored_tensor(site.weight).numpy().astype(np.float64)
    return weight if site.pruned.linear.inputs == 0 else weight.T
