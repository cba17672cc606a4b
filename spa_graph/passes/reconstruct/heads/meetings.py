"""Which results meet in products, and what reads them: marks are sent through the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import networkx as nx
import numpy as np

from spa_graph.passes.network import Analysis
from spa_graph.passes.reconstruct.heads.parts import Family, Ints, Kept, Pair, Part, Product, Twin
from spa_graph.passes.statistics.moments import Floats
from spa_graph.passes.statistics.runner import Runner
from spa_graph.runtime.inputs import random_inputs
from spa_graph.runtime.verify import Array

BASE = 16
"""Marks are numbers in digits of this base, which half precision tells apart."""


class Marks(NamedTuple):
    """Of each element of a value: the number of the result that it is a multiple of; the factor."""

    numbers: Ints
    factors: Floats


class Places(NamedTuple):
    """Where among features each result is, by its number; factors (positions, features)."""

    of: dict[int, list[int]]
    factors: Floats


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


def families_of(
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
