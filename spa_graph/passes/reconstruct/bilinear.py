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

That is exact if nothing but moves, factors and averages over positions lies between: no rotary
positions, no normalisation. Whether it is so shows when results of the projections are marked, and
the marks are looked for in the products' operands and in what is read. What the turned network
computes is compared with the dense one, on made-up inputs and on samples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import networkx as nx
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spa_graph.errors import ModelError, VerificationError
from spa_graph.frontends.onnx import files
from spa_graph.frontends.onnx.reader import read
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
)
from spa_graph.passes.statistics.moments import Floats
from spa_graph.passes.statistics.padding import places_in
from spa_graph.passes.statistics.runner import Runner
from spa_graph.runtime.inputs import random_inputs
from spa_graph.runtime.sessions import Feeds, open_session, run
from spa_graph.runtime.verify import Array, compare

Kept = NDArray[np.bool_]
Ints = NDArray[np.int64]
BASE = 16
"""Marks are numbers in digits of this base, which half precision tells apart."""
FLOOR = 1e-4
"""Keys (or a weight's rows) are taken to vary at least so much in every direction, as a share of
their mean: it bounds what numbers are multiplied by."""


class Twin(NamedTuple):
    """A linear operator of a copy of the dense network, and of the pruned one."""

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
    """Heads that share queries, keys or values; which of their channels stay, (channels,)."""

    operator: str
    pairs: Sequence[Pair]
    stays: Kept

    @property
    def sides(self) -> tuple[list[Part], list[Part]]:
        """What is multiplied by A, and by B."""
        first, second = (list(dict.fromkeys(side)) for side in zip(*self.pairs, strict=True))
        return first, second

    @property
    def seen(self) -> list[Part]:
        """The parts of which moments are needed: values are seen by what reads them."""
        first, second = self.sides
        return second if second[0].reads else first + second


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
    model = analysis.model.clone()
    model.meta.update(analysis.model.meta)
    twins = _twins(analysis, model, pruned, adapt)
    try:
        families = list(_families(analysis, products, twins, folder))
    except ModelError:  # marks are no features: an operator need not take them
        return analysis, []
    moments = _moments(analysis, calibrated, families, twins, options.memory_limit, folder)
    errors: dict[str, Floats] = defaultdict(lambda: np.zeros(3))
    changed: set[int] = set()
    for family in families:
        turns, error = _solve(family, twins, moments)
        errors[family.operator] += error
        for parts, turn_ in zip(family.sides, turns or (), strict=False):
            for part in parts:
                _multiply(model, twins[part.twin].dense, part, turn_)
                changed.add(part.twin)
    graph = read(model, options.input_shapes)
    turned = replace(analysis, model=model, coupling=replace(analysis.coupling, graph=graph))
    if not changed or not _alike(analysis, turned, calibrated, folder):
        return analysis, []
    for number in changed:
        _take_over(pruned.model, twins[number])
    shares = {name: sums[1:] / (sums[0] or 1.0) for name, sums in errors.items()}
    return turned, [
        Repair(f"heads in {name}", float(before), float(after), 0.0)
        for name, (before, after) in shares.items()
    ]


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


def _twins(analysis: Analysis, model: ir.Model, pruned: Pruned, adapt: Adapt) -> list[Twin]:
    """The products with a weight of which results or features go, in the network's order.

    Args:
        model: a copy of the dense one, whose weights may be changed.
    """
    coupling, every = analysis.coupling, np.ones(analysis.coupling.count, bool)
    left = find_sites(coupling, pruned.model, pruned.graph, pruned.kept, adapt)
    small = {site.layers[0].key: site for site in left}
    found = []
    for site in find_sites(coupling, model, analysis.graph, every):
        twin, linear = small.get(site.layers[0].key), site.pruned.linear
        plain = (
            linear.form == "matrix" and not site.shared and linear.features == linear.result == -1
        )
        if twin is None or not plain or (bias_of(site) is None) != (bias_of(twin) is None):
            continue
        if not (twin.results.all() and twin.rows.all()):
            found.append(Twin(site, twin))
    return found


# --- which results meet, and where -----------------------------------------------------------


def _marked(
    analysis: Analysis,
    twins: Sequence[Twin],
    marked: Ints,
    wanted: Collection[str],
    folder: Path,
) -> dict[str, Marks]:
    """The marks in some values, as far as there is nothing but these.

    All results are numbered. In the place of those that are `marked` come, run by run, ones, twos,
    and the numbers' digits; the others are those of the dense network, whatever came before them,
    so that averages by scores are the same in all runs.
    """
    starts = _starts(twins)
    digits = len(np.base_repr(int(starts[-1]), BASE))
    runs = range(2 + digits)
    feeds = random_inputs(analysis.graph)
    dense, runner = (Runner(analysis.model, [feeds] * n, 1 << 28, folder) for n in (1, len(runs)))
    for twin, start, stop in zip(twins, starts, starts[1:], strict=False):
        dense.advance([twin.results])
        runner.advance([twin.results], wanted)
        numbers, value = np.arange(start, stop), dense.value(twin.results, 0)
        marks = [np.ones(len(numbers)), np.full(len(numbers), 2.0)]
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
    """Marks from what became of ones, twos and digits; None if that isn't multiples of them."""
    ones, twos, *others = (value.astype(np.float64) for value in values)
    if ones.ndim < 2 or not ones.all() or not np.array_equal(twos, 2 * ones):
        return None  # something is added, or nothing comes
    numbers = np.zeros(ones.shape, np.int64)
    for place, other in enumerate(others):
        digits = (other / ones - 1) * BASE
        if not np.isclose(digits, np.round(digits), atol=0.1).all():
            return None
        numbers += np.round(digits).astype(np.int64) * BASE**place
    return Marks(numbers, ones)


def _families(
    analysis: Analysis, products: Sequence[Product], twins: Sequence[Twin], folder: Path
) -> Iterator[Family]:
    """The heads that are turned together, of channels that nothing else of them takes.

    Raises:
        ModelError: the network doesn't take marks in the place of features.
    """
    operands = {name for product in products for name in product.operands}
    every = np.arange(_starts(twins)[-1])
    marks = _marked(analysis, twins, every, operands, folder)
    values = [
        marks[each.operands[1]] for each in products if not each.sums and each.operands[1] in marks
    ]
    averaged = np.unique(np.concatenate([each.numbers.ravel() for each in values] or [every[:0]]))
    readers = {twin.features for twin in twins if not twin.small.rows.all()}
    read_ = _marked(analysis, twins, averaged, readers, folder) if len(averaged) else {}
    meetings = nx.Graph()
    for product in products:
        found = (
            _scores(product, twins, marks)
            if product.sums
            else _values(product, twins, marks, read_)
        )
        for pair in found:
            meetings.add_edge(*pair, pair=pair, operator=product.operator)
    taken = Counter((part.twin, part.reads, each) for part in meetings for each in part.columns)
    for parts in nx.connected_components(meetings):
        edges = [data for *_, data in meetings.subgraph(parts).edges(data=True)]
        family = Family(
            edges[0]["operator"], [data["pair"] for data in edges], _stays(twins, next(iter(parts)))
        )
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
    features: Mapping[str, Marks],
) -> Iterator[Pair]:
    """Which heads' values are read by what, after they were averaged.

    Args:
        features: the marks in what is read.
    """
    values = marks.get(product.operands[1])
    rows = _rows(values) if values is not None else None
    if rows is None:
        return
    for row in np.unique(rows.reshape(-1, rows.shape[-1]), axis=0):
        first = _results(row, twins)
        for number, twin in enumerate(twins):
            if first is not None and twin.features in features and not twin.small.rows.all():
                for columns in _readings(row, features[twin.features]):
                    yield first, Part(number, reads=True, columns=columns)


def _readings(row: Ints, marks: Marks) -> Iterator[tuple[int, ...]]:
    """Where features are these results; several times, where heads of queries share values."""
    features = marks.numbers.reshape(-1, marks.numbers.shape[-1])
    factors = marks.factors.reshape(features.shape)
    if not (features == features[0]).all():
        return
    places = [np.flatnonzero(features[0] == each) for each in row]
    if len({len(own) for own in places}) > 1:
        return
    for columns in np.transpose(places):
        if np.isclose(factors[:, columns], factors[:, columns[:1]], rtol=1e-3).all():
            yield tuple(columns.tolist())


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
    runner = Runner(analysis.model, calibrated.batches, limit // 4, folder)
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
) -> tuple[tuple[Floats, Floats] | None, Floats]:
    """A and B, (channels, channels); None if they don't help on held-out data.

    Returns:
        Those, and sums of squares: of what a product gives, and of what is missing of it before
        and after.
    """
    first, second = family.sides
    if second[0].reads:
        weights = (twins[part.twin].dense.matrix[0, list(part.columns)] for part in second)
        rows = np.concatenate([each.T for each in weights]).astype(np.float64)
        queries, keys = (
            _total(moments, second),
            np.broadcast_to(rows.T @ rows, (2, *[len(rows.T)] * 2)),
        )
    else:
        queries, keys = _total(moments, first), _total(moments, second)
    stays = family.stays
    turns = _turns(queries[0], keys[0], stays)

    def missing(a: Floats, b: Floats) -> float:
        lost = np.eye(len(stays)) - a[:, stays] @ b[:, stays].T
        return max(float(np.trace(lost.T @ queries[1] @ lost @ keys[1])), 0.0)  # but for rounding

    whole, before = float(np.trace(queries[1] @ keys[1])), missing(*[np.eye(len(stays))] * 2)
    after = missing(*turns)
    if after < before:
        return turns, np.array([whole, before, after])
    return None, np.array([whole, before, before])


def _total(moments: Mapping[Part, Floats], parts: Sequence[Part]) -> Floats:
    return np.sum([moments[part] for part in parts], axis=0)


def _turns(queries: Floats, keys: Floats, stays: Kept) -> tuple[Floats, Floats]:
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


def _multiply(model: ir.Model, site: Site, part: Part, turn_: Floats) -> None:
    """Multiply a part's results, or what reads its features, with a (channels, channels)."""
    where, matrix = list(part.columns), site.matrix.astype(np.float64)
    if part.reads:
        matrix[:, where] = turn_.T @ matrix[:, where]
        set_weight(site, matrix)
        return
    matrix[..., where] = matrix[..., where] @ turn_
    set_weight(site, matrix)
    bias = bias_of(site)
    if bias is not None:
        change = np.zeros(len(bias))
        change[where] = bias[where] @ turn_ - bias[where]
        add_to_bias(model, site, change[None])


def _take_over(model: ir.Model, twin: Twin) -> None:
    """Give the pruned network what is left of an operator that was turned."""
    set_weight(twin.small, twin.small.left(twin.dense.matrix))
    wanted, bias = bias_of(twin.dense), bias_of(twin.small)
    if wanted is not None and bias is not None:
        add_to_bias(model, twin.small, (wanted[twin.small.results] - bias)[None])


def _alike(first: Analysis, second: Analysis, calibrated: Calibrated, folder: Path) -> bool:
    """Whether two networks compute the same: of random inputs, and of a batch of samples."""
    names = list(first.graph.outputs)
    for feeds in (random_inputs(first.graph, seed=1), next(iter(calibrated.batches))):
        try:
            compare(names, *(_outputs(each.model, feeds, folder) for each in (second, first)))
        except VerificationError:
            return False
    return True


def _outputs(model: ir.Model, feeds: Feeds, folder: Path) -> Sequence[Array]:
    path = folder / "turned.onnx"
    files.write(model, path)
    with files.openable(path) as opened:
        return run(open_session(opened), feeds)
