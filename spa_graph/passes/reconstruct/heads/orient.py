"""What heads lose by channels, when what is left of queries and keys is refitted for each other."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from spa_graph.passes.calibrated import Calibrated
from spa_graph.passes.network import Analysis, rewrite
from spa_graph.passes.options import Options, Timer
from spa_graph.passes.reconstruct.heads.fit import Search, best_pair, moments_in, search
from spa_graph.passes.reconstruct.heads.parts import Family, Ints, Turns, products_of
from spa_graph.passes.reconstruct.heads.turning import accepted_turns
from spa_graph.passes.reconstruct.sites import anything, results_axis
from spa_graph.passes.statistics.moments import Floats


class Oriented(NamedTuple):
    """The dense network, whose queries and keys are turned so that channels can go one by one.

    said: what the channels of such groups say then, by the group's number; (channels,).
    """

    analysis: Analysis
    said: dict[int, Floats]


def orient(
    analysis: Analysis, scores: Floats, calibrated: Calibrated, options: Options
) -> Oriented:
    """Turn queries and keys so that the channels of highest scores say most.

    The best for r channels are the r that say most, so that the network without the others computes
    what it does after `turn`, however many go.

    Args:
        scores: of all channels; (channels,).
    """
    found = _search(analysis, scores, calibrated, options)
    turns: dict[Family, Turns] = {}
    said: dict[int, Floats] = {}
    of_group: dict[str, set[int]] = defaultdict(set)
    for family in found.families:
        if family.averaged:
            continue
        number, channels = _channels(analysis, family, found)
        group = analysis.groups[number]
        if channels.min() < group.start or channels.max() >= group.stop:
            continue  # some of its channels are frozen, or of another group
        queries, keys = moments_in(family, found.twins, found.moments)[:, :, 0].sum(0)
        order = np.argsort(-scores[channels], kind="stable")
        try:
            turns[family], own = best_pair(queries, keys, order)
        except np.linalg.LinAlgError:  # numbers are beyond what factorisations take
            continue
        said.setdefault(number, np.zeros(group.size))[channels - group.start] += own
        of_group[family.operator].add(number)
    accepted, model, _ = accepted_turns(analysis, calibrated, found.twins, turns)
    kept = set().union(*(of_group[operator] for operator in accepted))
    return Oriented(
        replace(analysis, model=model), {n: own for n, own in said.items() if n in kept}
    )


def _search(analysis: Analysis, scores: Floats, calibrated: Calibrated, options: Options) -> Search:
    """The families of the network without half of the channels that scores are sums over."""
    coupling, halved = analysis.coupling, np.ones(analysis.coupling.count, bool)
    for group in analysis.groups:
        order = np.argsort(-scores[group.start : group.stop], kind="stable")
        halved[group.start + order[max(group.least, group.size // 2) :]] = False
    kept = np.ones_like(halved)
    for product in products_of(analysis, halved):
        channels = coupling.channel_of(product.axis)
        if product.sums and channels is not None:
            own = np.unique(channels[channels >= 0])
            kept[own] = halved[own]
    if kept.all():
        return Search([], [], {})
    pruned = rewrite(analysis, kept, options, Timer())
    return search(analysis, pruned, calibrated, options, anything)


def _channels(analysis: Analysis, family: Family, found: Search) -> tuple[int, Ints]:
    """The number of a family's group, and the channels that its results are; (channels,)."""
    part = family.pairs[0][0]
    layer = found.twins[part.twin].dense.layers[0]
    of_results = analysis.coupling.channel_of(results_axis(analysis.coupling, layer))
    assert of_results is not None
    channels = of_results[list(part.columns)]
    starts = [group.start for group in analysis.groups]
    return int(np.searchsorted(starts, channels.max(), side="right")) - 1, channels
