"""The best pair of matrices for each family of heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from spa_graph.errors import ModelError
from spa_graph.passes.calibrated import Calibrated
from spa_graph.passes.network import Analysis, Pruned
from spa_graph.passes.options import Options
from spa_graph.passes.reconstruct.heads.meetings import families_of
from spa_graph.passes.reconstruct.heads.parts import (
    Family,
    Ints,
    Pair,
    Part,
    Turns,
    Twin,
    matrix_of,
    products_of,
    twins_of,
)
from spa_graph.passes.reconstruct.sites import Adapt
from spa_graph.passes.statistics.moments import Floats
from spa_graph.passes.statistics.padding import places_in
from spa_graph.passes.statistics.runner import Runner

FLOOR = 1e-4
"""Keys (or a weight's rows) are taken to vary at least so much in every direction, as a share of
their mean: it bounds what numbers are multiplied by."""


class Search(NamedTuple):
    """The families of heads in a pruned network, of which operators, and what was seen of them."""

    twins: Sequence[Twin]
    families: Sequence[Family]
    moments: Mapping[Part, Floats]


def search(
    analysis: Analysis,
    pruned: Pruned,
    calibrated: Calibrated,
    options: Options,
    adapt: Adapt,
) -> Search:
    """Find the families, and run the dense network for them; args as those of `turn`."""
    products = list(products_of(analysis, pruned.kept))
    if not products:
        return Search([], [], {})
    limit, twins = options.memory_limit // 4, twins_of(analysis, pruned, adapt)
    try:
        families = list(families_of(analysis, products, twins, limit, calibrated.folder))
    except ModelError:  # marks are no features: an operator need not take them
        return Search([], [], {})
    moments = _moments_of(analysis, calibrated, families, twins, limit) if families else {}
    return Search(twins, families, moments)


def _moments_of(
    analysis: Analysis,
    calibrated: Calibrated,
    families: Sequence[Family],
    twins: Sequence[Twin],
    limit: int,
) -> dict[Part, Floats]:
    """Sums of products of channels: (fitted to or held out, channels, channels)."""
    parts = list(dict.fromkeys(part for family in families for part in family.seen))
    found = {part: np.zeros((2, len(part.columns), len(part.columns))) for part in parts}
    places = places_in(calibrated.padding, calibrated.batches)
    runner = Runner(analysis.model, calibrated.batches, limit, calibrated.folder)
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
                    with np.errstate(over="ignore", invalid="ignore"):  # `solve` looks
                        products = channels.T @ channels
                    found[part][int(batch >= len(calibrated.fitting))] += products
    return found


def solve(
    family: Family, twins: Sequence[Twin], moments: Mapping[Part, Floats]
) -> tuple[Turns | None, Floats]:
    """A and B; None if they don't help on held-out data.

    Returns:
        Those, and sums of squares: of what a product gives, and of what is missing of it before
        and after.
    """
    stays, identity = family.stays, np.eye(len(family.stays))
    seen = moments_in(family, twins, moments)
    queries, keys = seen[:, 0, 1], seen[:, 1, 1]

    def missing(a: Floats, b: Floats) -> float:
        lost = identity - a[:, stays] @ b[:, stays].T
        return max(float(np.trace(lost.T @ queries @ lost @ keys, axis1=1, axis2=2).sum()), 0.0)

    if not np.isfinite(seen).all():
        return None, np.zeros(3)
    whole = float(np.trace(queries @ keys, axis1=1, axis2=2).sum())
    before = missing(identity, identity)
    try:
        turns = best_pair(
            seen[:, 0, 0].sum(0), seen[:, 1, 0].sum(0), np.argsort(~stays, kind="stable")
        )[0]
    except np.linalg.LinAlgError:  # numbers are beyond what factorisations take
        return None, np.array([whole, before, before])
    after = missing(*turns)
    return (turns if after < before else None), np.array([whole, before, min(before, after)])


def moments_in(family: Family, twins: Sequence[Twin], moments: Mapping[Part, Floats]) -> Floats:
    """(pairs, queries or keys, fitted to or held out, channels, channels)."""
    return np.array([_both(pair, family.averaged, twins, moments) for pair in family.pairs])


def _both(
    pair: Pair, averaged: bool, twins: Sequence[Twin], moments: Mapping[Part, Floats]
) -> tuple[Floats, Floats]:
    """The moments of queries and keys, or of averages and the rows of what reads them."""
    first, second = pair
    if not averaged:
        return moments[first], moments[second]
    twin = twins[second.twin]
    rows = matrix_of(twin.dense)[list(second.columns)][:, twin.small.results]
    return moments[second], np.array([rows @ rows.T] * 2)


def best_pair(queries: Floats, keys: Floats, order: Ints) -> tuple[Turns, Floats]:
    """A and B of all channels.

    Args:
        order: the channels, from the one that is to say most to the one that says least.

    Returns:
        Those, and what each channel says then: the sum of squares of scores; (channels,).

    Raises:
        LinAlgError: numbers are beyond what factorisations take.
    """
    size = len(order)
    floor = FLOOR * np.trace(keys) / size or 1.0
    root = np.linalg.cholesky(keys + floor * np.eye(size))
    values, leading = np.linalg.eigh(root.T @ queries @ root)
    vectors, said = np.empty_like(leading), np.empty_like(values)
    vectors[:, order], said[order] = leading[:, ::-1], np.maximum(values[::-1], 0)
    first, second = root @ vectors, np.linalg.solve(root.T, vectors)
    balance = np.sqrt(np.linalg.norm(second, axis=0) / np.linalg.norm(first, axis=0))
    return (first * balance, second / balance), said
