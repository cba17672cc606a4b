"""The time of every node as a function of kept counts, fitted to measured candidates.

ONNX Runtime fuses and renames operators, and says of each node that it runs only the sizes of what
it reads and writes. Which Dims these are is told by fingerprints: over the candidates every Dim has
another sequence of sizes, and an axis with that sequence is one of the Dim.

A node's time is a sum, with coefficients that aren't negative, of a constant and of the volumes of
the tensors that it touches, each a product of Dims: of a convolution's input, weight and output.
Processors work on a few channels at once, so sizes count rounded up to a multiple of their width:
1, 4, 8, 16 or 32, for each type of node what predicts best what it wasn't
fitted to (cross-validation). That is the staircase.

Of some nodes a profile doesn't say what they read and write: of those that only some candidates
have, and of whole parts of a network that a provider compiles (OpenVINO, TensorRT, CoreML), which
may be all of it. Together they are one more node. Its time is a sum of what the file's operators
compute, by type, and of what they read and write, or constant, whatever predicts better.

Profiles say how a candidate's latency is shared out among its nodes; how large it is was measured
without profiling.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from spa_graph.coupling.analysis import Coupling
from spa_graph.coupling.relations import Axes
from spa_graph.passes.cost import Quantity
from spa_graph.passes.latency.laboratory import Observation
from spa_graph.passes.sizes import Counts, Sizes
from spa_graph.runtime.benchmark.profile import NodeTime

Floats = NDArray[np.float64]
Monomial = tuple[int, ...]
"""Rows of `Sizes` whose product it is."""
Feature = dict[Monomial, float]
"""What a time may be proportional to: a sum of monomials with their factors."""
WIDTHS = (1, 4, 8, 16, 32)
FOLDS = 4
_REPACKED = ("MatMul", "Gemm", "LSTM", "GRU", "RNN", "Attention")
"""Nodes of these types may hide their weights, whose volume is that of products of the others."""
_FINEST = 1e-3
"""Times below a microsecond aren't told apart."""


@dataclass(frozen=True, slots=True, eq=False)
class _Node:
    """A node in all candidates.

    ms: its times; (candidates,).
    features: what they depend on, besides the constant.
    """

    type: str
    ms: Floats
    features: list[Feature]


class LatencyModel:
    """Predicts latency, in milliseconds, from kept counts.

    whole_ms: that of the whole network.
    """

    def __init__(self, coupling: Coupling, observations: Sequence[Observation]) -> None:
        self._table = Sizes(coupling)
        rows = [self._table.row(dim) for dim in coupling.channels.of_element]
        counts = np.stack([each.counts for each in observations], axis=1)
        self._sizes = self._table.of(counts)
        self._full = np.array([group.size for group in coupling.groups], np.int64)
        nodes, untold = _nodes(observations, _Fingerprints(self._sizes, rows))
        ways = [_Node("", untold, features) for features in ([], _work(coupling, self._table))]
        nodes.append(min(ways, key=lambda way: float(_errors(way, self._sizes).min())))
        widths = _widths(nodes, self._sizes)
        self._factors, self._terms, self._widths = self._fit(nodes, widths)
        measured = np.array([each.ms for each in observations])
        self._factors *= np.median(measured / self.milliseconds(counts))
        self.whole_ms = float(self.milliseconds(self._full))

    def milliseconds(self, counts: Counts) -> Floats:
        """Latency; `counts` is (groups,), or (groups, m) for m candidates."""
        sizes = self._table.of(counts)
        padded = np.stack([_up(sizes, width) for width in WIDTHS])
        volumes = padded[self._widths.reshape(-1, 1), self._terms].prod(1)
        total: Floats = self._factors @ volumes
        return total

    def cost(self, quantity: Quantity, counts: Counts) -> float:  # noqa: ARG002
        """Milliseconds, see `Costs`."""
        return float(self.milliseconds(counts))

    def costs(self, quantity: Quantity, counts: Counts) -> Floats:  # noqa: ARG002
        return self.milliseconds(counts)

    def ratio(self, quantity: Quantity, counts: Counts) -> float:
        """The share of the whole network's latency."""
        return self.cost(quantity, counts) / self.whole_ms

    def _fit(
        self, nodes: Sequence[_Node], widths: dict[str, int]
    ) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
        """Coefficients, and the monomials that they belong to with their widths; equal ones are
        one."""
        sums: defaultdict[tuple[int, Monomial], float] = defaultdict(float)
        for node in nodes:
            width = widths[node.type]
            found = _relative_fit(_volumes(node.features, self._sizes, width), node.ms)
            features: list[Feature] = [{(): 1.0}, *node.features]
            for feature, factor in zip(features, found.tolist(), strict=True):
                for monomial, own in feature.items() if factor else ():
                    sums[WIDTHS.index(width), monomial] += factor * own
        longest = max((len(monomial) for _, monomial in sums), default=0) or 1
        terms = np.zeros((len(sums), longest), np.int64)
        for place, (_, monomial) in enumerate(sums):
            terms[place, : len(monomial)] = monomial
        places = np.array([width for width, _ in sums], np.int64)
        return np.array(list(sums.values())), terms, places


def _up(sizes: Floats, width: int) -> Floats:
    """Sizes rounded up; that of the dummy row stays 1."""
    padded: Floats = np.ceil(sizes / width) * width
    padded[0] = 1
    return padded


class _Fingerprints:
    """Which Dim has which sequence of sizes over the candidates."""

    def __init__(self, sizes: Floats, rows: Iterable[int]) -> None:
        self._known: dict[tuple[int, ...], int] = {}
        for width in WIDTHS:
            padded = _up(sizes, width).astype(int)
            for row in rows:
                self._known.setdefault(tuple(padded[row].tolist()), row)
        self._sizes = sizes

    def row(self, sizes: tuple[int, ...]) -> int | None:
        """The row of the Dim of an axis; None if it is the same in all candidates.

        An axis whose Dim isn't known is taken for the one that changes most alike.
        """
        if len(set(sizes)) == 1:
            return None
        if sizes not in self._known:
            varying = self._sizes - self._sizes.mean(1, keepdims=True)
            lengths = np.linalg.norm(varying, axis=1)
            own = np.array(sizes, float) - np.mean(sizes)
            alike = varying @ own / np.where(lengths > 0, lengths, np.inf)
            self._known[sizes] = int(np.argmax(alike))
        return self._known[sizes]


def _nodes(
    observations: Sequence[Observation], fingerprints: _Fingerprints
) -> tuple[list[_Node], Floats]:
    """The nodes that all candidates have, by name and type, of which sizes are known; and how long
    each candidate takes besides."""
    total = np.array([each.ms for each in observations])
    seen: defaultdict[tuple[str, str], dict[int, NodeTime]] = defaultdict(dict)
    for number, observation in enumerate(observations):
        for node in observation.nodes:
            seen[node.name, node.type][number] = node
    profiled = np.array([sum(node.ms for node in each.nodes) for each in observations])
    found = []
    for (_, kind), own in seen.items():
        if len(own) < len(observations):
            continue
        nodes = [own[number] for number in range(len(observations))]
        monomials = _monomials(kind, nodes, fingerprints)
        if monomials:
            ms = np.array([node.ms for node in nodes]) * (total / profiled)
            found.append(_Node(kind, ms, [{monomial: 1.0} for monomial in monomials]))
    return found, total - sum(node.ms for node in found)


def _work(coupling: Coupling, table: Sizes) -> list[Feature]:
    """What the file's operators compute, for each type; the volumes of features, and of weights."""
    relations, graph = coupling.relations, coupling.graph
    sums: defaultdict[str, list[tuple[float, Axes]]] = defaultdict(list)
    for cost in coupling.facts.costs:
        sums[graph.operators[cost.operator].kind].append((cost.factor, cost.axes))
    for operator in graph.operators:
        values = (relations.value(name) for name in operator.outputs if name not in graph.known)
        sums["features"] += [(1.0, axes) for axes in values if axes]
    sums["weights"] += [(1.0, use.axes) for use in relations.uses]
    return [feature for own in sums.values() if (feature := _feature(own, table))]


def _feature(terms: Iterable[tuple[float, Axes]], table: Sizes) -> Feature:
    """The sum of products of axes with their factors, less what is constant."""
    found: Feature = {}
    for factor, axes in terms:
        fixed, rows = table.product(axes)
        if rows:
            monomial = tuple(sorted(rows))
            found[monomial] = found.get(monomial, 0.0) + factor * fixed
    return found


def _monomials(kind: str, own: list[NodeTime], fingerprints: _Fingerprints) -> list[Monomial]:
    """The volumes of what a node reads and writes, as far as they change."""
    inputs = _tensors([node.inputs for node in own], fingerprints)
    outputs = _tensors([node.outputs for node in own], fingerprints)
    found = dict.fromkeys([*inputs, *outputs])
    if any(name in kind for name in _REPACKED) and inputs and outputs:
        found |= dict.fromkeys(tuple(sorted(inputs[0] + out)) for out in outputs)
        if kind in ("LSTM", "GRU", "RNN"):
            found |= dict.fromkeys(tuple(sorted(out + out)) for out in outputs)
    return [monomial for monomial in found if monomial]


def _tensors(
    shapes: Sequence[tuple[tuple[int, ...], ...]], fingerprints: _Fingerprints
) -> list[Monomial]:
    """The varying Dims of each tensor; those whose rank isn't always the same are left out."""
    found = []
    for tensor in zip(*shapes, strict=False):
        if len({len(shape) for shape in tensor}) > 1:
            continue
        rows = (fingerprints.row(sizes) for sizes in zip(*tensor, strict=True))
        found.append(tuple(sorted(row for row in rows if row is not None)))
    return found


def _volumes(features: Sequence[Feature], sizes: Floats, width: int) -> Floats:
    """The features of a node in all candidates, (candidates, 1 + features)."""
    padded = _up(sizes, width)
    columns = [
        sum(factor * padded[list(monomial)].prod(0) for monomial, factor in feature.items())
        for feature in features
    ]
    return np.stack([np.ones(sizes.shape[1]), *columns], axis=1)


def _relative_fit(features: Floats, ms: Floats) -> Floats:
    """Coefficients that aren't negative; errors count relative to the square root of the time."""
    weights = 1 / np.sqrt(np.maximum(ms, _FINEST))
    scale = np.maximum(features.max(0), 1e-30)
    found, _ = nnls(features / scale * weights[:, None], ms * weights)
    coefficients: Floats = found / scale
    return coefficients


def _widths(nodes: Sequence[_Node], sizes: Floats) -> dict[str, int]:
    """For each type the width that predicts best what was not fitted to."""
    errors: defaultdict[str, Floats] = defaultdict(lambda: np.zeros(len(WIDTHS)))
    for node in nodes:
        errors[node.type] += _errors(node, sizes)
    return {kind: WIDTHS[int(np.argmin(own))] for kind, own in errors.items()}


def _errors(node: _Node, sizes: Floats) -> Floats:
    """How far predictions are from times that were not fitted to, for each width; (widths,)."""
    folds = np.arange(len(node.ms)) % FOLDS
    weights = 1 / np.maximum(node.ms, _FINEST)
    errors = np.zeros(len(WIDTHS))
    for place, width in enumerate(WIDTHS):
        features = _volumes(node.features, sizes, width)
        for fold in range(FOLDS):
            out = folds == fold
            fitted = _relative_fit(features[~out], node.ms[~out])
            errors[place] += weights[out] @ (features[out] @ fitted - node.ms[out]) ** 2
    return errors
