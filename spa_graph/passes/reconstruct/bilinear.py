"""Attention heads that get smaller: queries and keys, values and what reads them, for each other.

Scores q'k of a head don't change when its queries are multiplied by A and its keys by B, as long as
A B' is the identity. So what r of d channels can express is not bound to the r that stay: of all
pairs of d x r matrices, those of least error

    E (q'k - q'A B'k)^2 = |Cq^1/2 (I - A B') Ck^1/2|^2,    Cq = E q q', Ck = E k k'

are A = L V and B = L'^-1 V, with L L' = Ck and V the r leading eigenvectors of L' Cq L: the best
approximation of this rank (Eckart & Young, "The approximation of one matrix by another of lower
rank", Psychometrika 1, 1936). Both are multiplied into the projections. With all d eigenvectors
scores stay as they are: the dense network is *turned* so, the pruned one has what is left of it,
and other repairs are fitted to the turned one. Values are multiplied by A likewise, and the weight
that reads them by B': there their averages by scores stand for q, and the weight's rows for k.

Where several heads of queries share values, that is the best for the mean of what reads them only.

It is exact if nothing but moves, factors and averages over positions lies between: no rotary
positions, no normalisation. Whether it is so shows when results of the projections are marked, and
the marks are looked for in the products' operands and in what is read. What else could read the
same results isn't looked for: what the turned network computes is compared with the dense one, on
made-up inputs and on samples, and products that change it are left out. Keys aren't centred, though
a Softmax would not mind their mean.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import networkx as nx
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spa_graph.errors import ModelError
from spa_graph.frontends.onnx import files
from spa_graph.frontends.onnx.reader import read
from spa_graph.frontends.onnx.weights import stored_tensor
from spa_graph.passes.calibrated import Calibrated
from spa_graph.passes.network import Analysis, Pruned
from spa_graph.passes.options import Options
from spa_graph.passes.reconstruct.repair import Repair
from spa_graph.passes.reconstruct.sites import (
    Adapt,
    Site,
    add_to_bias,
    bias_of,
    find_sites,
    set_weight,
    shares_bias,
)
from spa_graph.passes.statistics.distortion import distortion
from spa_graph.passes.statistics.moments import Floats
from spa_graph.passes.statistics.padding import places_in
from spa_graph.passes.statistics.runner import Runner
from spa_graph.runtime.inputs import random_inputs
from spa_graph.runtime.sessions import open_session, run
from spa_graph.runtime.verify import Array

Kept = NDArray[np.bool_]
Ints = NDArray[np.int64]
BASE = 16
"""Marks are numbers in digits of this base, which half precision tells apart."""
FLOOR = 1e-4
"""Keys (or a weight's rows) are taken to vary at least so much in every direction, as a share of
their mean: it bounds what numbers are multiplied by."""
ALIKE = 1e-4
"""Outputs whose distortion is less are the same."""
TRIES = 32
"""So many sets of products are tried, to find those that can be turned."""


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
    """

    operator: str
    operands: tuple[str, str]
    sums: bool


class Marks(NamedTuple):
    """Of each element of a value: the number of the result that it is a multiple of; the factor."""

    numbers: Ints
    factors: Floats


class Places(NamedTuple):
    """Where among features each result is, by its number; factors (positions, features)."""

    of: dict[int, list[int]]
    factors: Floats


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


def turn(
    analysis: Analysis,
    pruned: Pruned,
    calibrated: Calibrated,
    options: Options,
    folder: Path,
    adapt: Adapt,
) -> tuple[Analysis, list[Repair]]:
    """Fit what is left of attention heads for each other in the pruned network, in place.

    Args:
        folder: for files that are needed meanwhile.
        adapt: what of the pruned network may change.

    Returns:
        A dense network that computes what the given one does, and of which the pruned one has what
        is left; and what became of each product.
    """
    products = list(_products(analysis, pruned.kept))
    if not products:
        return analysis, []
    limit = options.memory_limit // 4
    twins = _twins(analysis, pruned, adapt)
    try:
        families = list(_families(analysis, products, twins, limit, folder))
        moments = _moments(analysis, calibrated, families, twins, limit, folder)
    except ModelError:  # marks are no features: an operator need not take them
        return analysis, []
    found = {family: _solve(family, twins, moments) for family in families}
    helpful = {family: turns for family, (turns, _) in found.items() if turns is not None}
    compared = _Compared(analysis, calibrated, folder)
    accepted = compared.accepted(
        list(dict.fromkeys(family.operator for family in helpful)),
        lambda some: _turned(analysis, twins, helpful, some)[0],
    )
    if not accepted:
        return analysis, []
    model, sites = _turned(analysis, twins, helpful, accepted)
    for number, site in sites.items():
        _take_over(pruned.model, site, twins[number].small)
    coupling = replace(analysis.coupling, graph=read(model, options.input_shapes))
    return replace(analysis, model=model, coupling=coupling), list(_repairs(found, accepted))


def _repairs(
    found: Mapping[Family, tuple[Turns | None, Floats]], accepted: Collection[str]
) -> Iterator[Repair]:
    """What became of each product."""
    sums: dict[str, Floats] = defaultdict(lambda: np.zeros(3))
    for family, (_, error) in found.items():
        sums[family.operator] += error
    for operator, (whole, before, after) in sums.items():
        whole = whole or 1.0
        if operator in accepted:
            yield Repair(f"heads in {operator}", float(before / whole), float(after / whole), 0.0)
        else:
            yield Repair(
                f"heads in {operator}", float(before / whole), float(before / whole), np.inf
            )


def _products(analysis: Analysis, kept: Kept) -> Iterator[Product]:
    """The matrix products of two computed values, of whose channels some go."""
    coupling = analysis.coupling
    for index, axis, _ in coupling.facts.contracted:
        operator = coupling.graph.operators[index]
        if operator.op_type != "MatMul" or not coupling.facts.stored.isdisjoint(operator.inputs):
            continue
        operands = operator.inputs[0], operator.inputs[1]
        values = coupling.relations.value(operands[1]) or ()
        if coupling.kept_elements(axis, kept) is not None:
            yield Product(operator.name, operands, sums=True)
        elif values and coupling.kept_elements(values[-1], kept) is not None:
            yield Product(operator.name, operands, sums=False)


def _twins(analysis: Analysis, pruned: Pruned, adapt: Adapt) -> list[Twin]:
    """The products with a weight of which results or features go, in the network's order."""
    left = find_sites(analysis.coupling, pruned.model, pruned.graph, pruned.kept, adapt)
    smaller = {site.layers[0].key: site for site in left}
    found = []
    for key, site in _sites(analysis, analysis.model).items():
        small, linear = smaller.get(key), site.pruned.linear
        if small is None or (small.results.all() and small.rows.all()):
            continue
        plain = linear.form == "matrix" and linear.features == linear.result == -1
        own = not site.shared and not shares_bias(site)
        if plain and own and (bias_of(site) is None) == (bias_of(small) is None):
            found.append(Twin(site, small))
    return found


def _sites(analysis: Analysis, model: ir.Model) -> dict[tuple[int, int], Site]:
    """The linear operators of the dense network, or of a copy of it."""
    every = np.ones(analysis.coupling.count, bool)
    sites = find_sites(analysis.coupling, model, analysis.graph, every)
    return {site.layers[0].key: site for site in sites}


# --- which results meet, and where -----------------------------------------------------------


def _marked(
    analysis: Analysis,
    twins: Sequence[Twin],
    marked: Ints,
    wanted: Collection[str],
    limit: int,
    folder: Path,
) -> dict[str, Marks]:
    """The marks in some values, as far as there is nothing but these.

    All results are numbered. In the place of those that are `marked` come, run by run, 1, -1 and
    the numbers' digits; the others are those of the dense network, whatever came before them,
    so that averages by scores are the same in all runs.
    """
    starts = _starts(twins)
    digits = len(np.base_repr(int(starts[-1]), BASE))
    runs = range(2 + digits)
    feeds = random_inputs(analysis.graph)
    dense, runner = (Runner(analysis.model, [feeds] * n, limit, folder) for n in (1, len(runs)))
    for twin, start, stop in zip(twins, starts, starts[1:], strict=False):
        dense.advance([twin.results])
        runner.advance([twin.results], wanted)
        numbers, value = np.arange(start, stop), dense.value(twin.results, 0)
        marks = [np.ones(len(numbers)), -np.ones(len(numbers))]
        marks += [1 + numbers // BASE**digit % BASE / BASE for digit in range(digits)]
        for number, mark in zip(runs, marks, strict=True):
            own = np.where(np.isin(numbers, marked), mark.astype(value.dtype), value)
            runner.store.put(twin.results, number, own)
    runner.advance(wanted)
    found = ((name, _decoded([runner.value(name, run_) for run_ in runs])) for name in wanted)
    return {name: marks for name, marks in found if marks is not None}


def _starts(twins: Sequence[Twin]) -> Ints:
    """The number of each operator's first result, and how many there are of all."""
    return np.cumsum([0, *(len(twin.dense.results) for twin in twins)])


def _decoded(values: Sequence[Array]) -> Marks | None:
    """Marks from what became of 1, -1 and digits; None if that isn't multiples of them."""
    first = values[0].astype(np.float64)
    if first.ndim < 2 or not first.all() or not np.array_equal(values[1], -values[0]):
        return None  # nothing comes, something is added, or signs make a difference
    numbers = np.zeros(first.shape, np.int64)
    for place, value in enumerate(values[2:]):
        digits = (value.astype(np.float64) / first - 1) * BASE
        if not np.isclose(digits, np.round(digits), atol=0.1).all():
            return None
        numbers += np.round(digits).astype(np.int64) * BASE**place
    return Marks(numbers, first)


def _families(
    analysis: Analysis, products: Sequence[Product], twins: Sequence[Twin], limit: int, folder: Path
) -> Iterator[Family]:
    """The heads that are turned together, of channels that nothing else of them takes.

    Raises:
        ModelError: the network doesn't take marks in the place of features.
    """
    operands = {each for product in products for each in product.operands[not product.sums :]}
    every = np.arange(_starts(twins)[-1])
    marks = _marked(analysis, twins, every, operands, limit, folder)
    values = [product.operands[1] for product in products if not product.sums]
    averaged = [np.unique(marks[name].numbers) for name in values if name in marks]
    features = dict[str, Marks]()
    if averaged:
        names = {twin.features for twin in twins if not twin.small.rows.all()}
        features = _marked(analysis, twins, np.concatenate(averaged), names, limit, folder)
    readers = {
        number: _places(features[twin.features])
        for number, twin in enumerate(twins)
        if twin.features in features and not twin.small.rows.all()
    }
    meetings = nx.Graph()
    for product in products:
        found = (
            _scores(product, twins, marks)
            if product.sums
            else _values(product, twins, marks, readers)
        )
        for pair in found:
            meetings.add_edge(*pair, pair=pair, product=product)
    taken = Counter((part.twin, part.reads, each) for part in meetings for each in part.columns)
    for parts in nx.connected_components(meetings):
        pairs, met = zip(
            *((e["pair"], e["product"]) for *_, e in meetings.subgraph(parts).edges(data=True)),
            strict=True,
        )
        family = Family(met[0].operator, pairs, _stays(twins, pairs[0][0]), not met[0].sums)
        alike = all(np.array_equal(family.stays, _stays(twins, part)) for part in parts)
        alone = all(
            taken[part.twin, part.reads, each] == 1 for part in parts for each in part.columns
        )
        if alike and alone and set(family.sides[0]).isdisjoint(family.sides[1]):
            yield family


def _stays(twins: Sequence[Twin], part: Part) -> Kept:
    small = twins[part.twin].small
    return (small.rows[0] if part.reads else small.results)[list(part.columns)]


def _scores(product: Product, twins: Sequence[Twin], marks: Mapping[str, Marks]) -> Iterator[Pair]:
    """Which heads' queries meet which keys."""
    queries, keys = (marks.get(name) for name in product.operands)
    if queries is None or keys is None:
        return
    transposed = Marks(np.swapaxes(keys.numbers, -1, -2), np.swapaxes(keys.factors, -1, -2))
    rows, columns = _rows(queries), _rows(transposed)
    if rows is None or columns is None:
        return
    both = np.stack(np.broadcast_arrays(rows, columns), -2)
    for row in np.unique(both.reshape(-1, *both.shape[-2:]), axis=0):
        first, second = (_results(each, twins) for each in row)
        if first is not None and second is not None:
            yield first, second


def _values(
    product: Product,
    twins: Sequence[Twin],
    marks: Mapping[str, Marks],
    readers: Mapping[int, Places],
) -> Iterator[Pair]:
    """Which heads' values are read by what, after they were averaged."""
    values = marks.get(product.operands[1])
    rows = _rows(values) if values is not None else None
    if rows is None:
        return
    for row in np.unique(rows.reshape(-1, rows.shape[-1]), axis=0):
        first = _results(row, twins)
        if first is None:
            continue
        for number, places in readers.items():
            for columns in _readings(row, places):
                yield first, Part(number, reads=True, columns=columns)


def _places(marks: Marks) -> Places:
    """Where among features each result is, with its factor at every position; none if they move."""
    numbers = marks.numbers.reshape(-1, marks.numbers.shape[-1])
    found = Places({}, marks.factors.reshape(numbers.shape))
    if (numbers == numbers[0]).all():
        for place, number in enumerate(numbers[0].tolist()):
            found.of.setdefault(number, []).append(place)
    return found


def _readings(row: Ints, places: Places) -> Iterator[tuple[int, ...]]:
    """Where these results are read; several times, where heads of queries share values."""
    found = [places.of.get(number, []) for number in row.tolist()]
    if len({len(own) for own in found}) > 1:
        return
    for columns in zip(*found, strict=True):
        factors = places.factors[:, list(columns)]
        if np.isclose(factors, factors[:, :1], rtol=1e-3).all():
            yield columns


def _rows(marks: Marks) -> Ints | None:
    """The results that make up one operand, (..., channels), from marks (..., positions, channels).

    None if positions differ in them, or channels in their factors.
    """
    numbers, factors = marks
    positions = (numbers == numbers[..., :1, :]).all()
    channels = np.isclose(factors, factors[..., :1], rtol=1e-3).all()
    return numbers[..., 0, :] if positions and channels else None


def _results(row: Ints, twins: Sequence[Twin]) -> Part | None:
    """The part whose results have these numbers; None if they are of several operators."""
    starts = _starts(twins)
    (owner, *others) = np.unique(np.searchsorted(starts, row, side="right") - 1).tolist()
    columns = tuple((row - starts[owner]).tolist())
    return None if others else Part(owner, reads=False, columns=columns)


# --- what is multiplied with them ------------------------------------------------------------


def _moments(
    analysis: Analysis,
    calibrated: Calibrated,
    families: Sequence[Family],
    twins: Sequence[Twin],
    limit: int,
    folder: Path,
) -> dict[Part, Floats]:
    """Sums of products of channels: (fitted to or held out, channels, channels)."""
    parts = list(dict.fromkeys(part for family in families for part in family.seen))
    found = {part: np.zeros((2, len(part.columns), len(part.columns))) for part in parts}
    places = places_in(calibrated.padding, calibrated.batches)
    runner = Runner(analysis.model, calibrated.batches, limit, folder)
    for number, twin in enumerate(twins):
        for reads in (True, False):
            own = [part for part in parts if part[:2] == (number, reads)]
            name = twin.features if reads else twin.results
            runner.advance([name] if own else [], [twin.results])
            for batch in range(runner.batches) if own else ():
                value = runner.value(name, batch)
                rows = value.reshape(-1, value.shape[-1])
                some = places(twin.dense.layers[0], batch)
                rows = rows if some is None else rows[some]
                for part in own:
                    channels = rows[:, part.columns].astype(np.float32, copy=False)
                    found[part][int(batch >= len(calibrated.fitting))] += channels.T @ channels
    return found


def _solve(
    family: Family, twins: Sequence[Twin], moments: Mapping[Part, Floats]
) -> tuple[Turns | None, Floats]:
    """A and B; None if they don't help on held-out data.

    Returns:
        Those, and sums of squares: of what a product gives, and of what is missing of it before
        and after.
    """
    stays, identity = family.stays, np.eye(len(family.stays))
    # (pairs, queries or keys, fitted to or held out, channels, channels)
    seen = np.array([_both(pair, family.averaged, twins, moments) for pair in family.pairs])
    queries, keys = seen[:, 0, 1], seen[:, 1, 1]

    def missing(a: Floats, b: Floats) -> float:
        lost = identity - a[:, stays] @ b[:, stays].T
        return max(float(np.trace(lost.T @ queries @ lost @ keys, axis1=1, axis2=2).sum()), 0.0)

    if not np.isfinite(seen).all():
        return None, np.zeros(3)
    whole = float(np.trace(queries @ keys, axis1=1, axis2=2).sum())
    before = missing(identity, identity)
    try:
        turns = _turns(seen[:, 0, 0].sum(0), seen[:, 1, 0].sum(0), stays)
    except np.linalg.LinAlgError:  # numbers are beyond what factorisations take
        return None, np.array([whole, before, before])
    after = missing(*turns)
    return (turns if after < before else None), np.array([whole, before, min(before, after)])


def _both(
    pair: Pair, averaged: bool, twins: Sequence[Twin], moments: Mapping[Part, Floats]
) -> tuple[Floats, Floats]:
    """The moments of queries and keys, or of averages and the rows of what reads them."""
    first, second = pair
    if not averaged:
        return moments[first], moments[second]
    twin = twins[second.twin]
    rows = _matrix(twin.dense)[list(second.columns)][:, twin.small.results]
    return moments[second], np.array([rows @ rows.T] * 2)


def _turns(queries: Floats, keys: Floats, stays: Kept) -> Turns:
    """A and B of all channels, the leading ones in the places of those that stay."""
    size = len(stays)
    floor = FLOOR * np.trace(keys) / size or 1.0
    root = np.linalg.cholesky(keys + floor * np.eye(size))
    leading = np.linalg.eigh(root.T @ queries @ root)[1][:, ::-1]
    vectors = np.empty_like(leading)
    vectors[:, np.flatnonzero(stays)] = leading[:, : stays.sum()]
    vectors[:, np.flatnonzero(~stays)] = leading[:, stays.sum() :]
    first, second = root @ vectors, np.linalg.solve(root.T, vectors)
    balance = np.sqrt(np.linalg.norm(second, axis=0) / np.linalg.norm(first, axis=0))
    return first * balance, second / balance


# --- changing the networks -------------------------------------------------------------------


def _matrix(site: Site) -> Floats:
    """The stored weight as a matrix (inputs, outputs), in double precision."""
    weight = stored_tensor(site.weight).numpy().astype(np.float64)
    return weight if site.pruned.linear.inputs == 0 else weight.T


def _turned(
    analysis: Analysis,
    twins: Sequence[Twin],
    turns: Mapping[Family, Turns],
    operators: Collection[str],
) -> tuple[ir.Model, dict[int, Site]]:
    """A copy of the dense network with some products turned, and its changed operators."""
    model = analysis.model.clone()
    model.meta.update(analysis.model.meta)
    sites = _sites(analysis, model)
    todo: dict[int, list[tuple[Part, Floats]]] = defaultdict(list)
    for family, own in turns.items():
        if family.operator in operators:
            for parts, matrix in zip(family.sides, own, strict=True):
                for part in parts:
                    todo[part.twin].append((part, matrix))
    changed = {number: sites[twins[number].dense.layers[0].key] for number in todo}
    for number, site in changed.items():
        _multiply(model, site, todo[number])
    return model, changed


def _multiply(model: ir.Model, site: Site, todo: Sequence[tuple[Part, Floats]]) -> None:
    """Multiply an operator's results, and what reads its features, with (channels, channels)."""
    matrix, bias = _matrix(site).copy(), bias_of(site)
    change = np.zeros(matrix.shape[1])
    for part, turn_ in todo:
        where = list(part.columns)
        if part.reads:
            matrix[where] = turn_.T @ matrix[where]
            continue
        matrix[:, where] = matrix[:, where] @ turn_
        if bias is not None:
            change[where] = bias[where] @ turn_ - bias[where]
    set_weight(site, matrix[None])
    if bias is not None:
        add_to_bias(model, site, change[None])


def _take_over(model: ir.Model, dense: Site, small: Site) -> None:
    """Give the pruned network what is left of an operator that was turned."""
    set_weight(small, small.left(_matrix(dense)[None]))
    wanted, bias = bias_of(dense), bias_of(small)
    if wanted is not None and bias is not None:
        add_to_bias(model, small, (wanted[small.results] - bias)[None])


class _Compared:
    """Tells whether turned networks compute what the dense one does."""

    def __init__(self, analysis: Analysis, calibrated: Calibrated, folder: Path) -> None:
        self._feeds = random_inputs(analysis.graph, seed=1), next(iter(calibrated.batches))
        self._path, self._tries = folder / "turned.onnx", TRIES
        self._wanted = self._outputs(analysis.model)

    def accepted(
        self, operators: Sequence[str], turned: Callable[[Sequence[str]], ir.Model]
    ) -> list[str]:
        """The products, as many as are found, that can be turned together."""
        if not operators or not self._tries:
            return []
        self._tries -= 1
        if self._alike(self._outputs(turned(operators))):
            return list(operators)
        middle = len(operators) // 2
        halves = operators[:middle], operators[middle:]
        first, second = (self.accepted(half, turned) if middle else [] for half in halves)
        if first and second and not self._alike(self._outputs(turned([*first, *second]))):
            return first
        return [*first, *second]

    def _outputs(self, model: ir.Model) -> list[Sequence[Array]]:
        files.write(model, self._path)
        with files.openable(self._path) as opened:
            session = open_session(opened)
            return [run(session, feeds) for feeds in self._feeds]

    def _alike(self, got: Sequence[Sequence[Array]]) -> bool:
        """But for rounding, which deep networks amplify: what isn't exact shows far more."""
        return all(
            distortion([want], [outputs]) < ALIKE
            and all(
                (x == y).mean() > 1 - ALIKE
                for x, y in zip(want, outputs, strict=True)
                if x.dtype.kind != "f" and x.size
            )
            for want, outputs in zip(self._wanted, got, strict=True)
        )
