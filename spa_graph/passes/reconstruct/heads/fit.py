"""The best pair of matrices for each family of heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from spa_graph.passes.calibrated import Calibrated
from spa_graph.passes.network import Analysis
from spa_graph.passes.reconstruct.heads.parts import (
    Family,
    Kept,
    Pair,
    Part,
    Turns,
    Twin,
    matrix_of,
)
from spa_graph.passes.statistics.moments import Floats
from spa_graph.passes.statistics.padding import places_in
from spa_graph.passes.statistics.runner import Runner

FLOOR = 1e-4
"""Keys (or a weight's rows) are taken to vary at least so much in every direction, as a share of
their mean: it bounds what numbers are multiplied by."""


def moments_of(
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
        turns = best_pair(seen[:, 0, 0].sum(0), seen[:, 1, 0].sum(0), stays)
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
    rows = matrix_of(twin.dense)[list(second.columns)][:, twin.small.results]
    return moments[second], np.array([rows @ rows.T] * 2)


def best_pair(queries: Floats, keys: Floats, stays: Kept) -> Turns:
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
