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

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np

from spa_graph.frontends.onnx.reader import read
from spa_graph.passes.calibrated import Calibrated
from spa_graph.passes.network import Analysis, Pruned
from spa_graph.passes.options import Options
from spa_graph.passes.reconstruct.heads.fit import search, solve
from spa_graph.passes.reconstruct.heads.parts import Family, Turns
from spa_graph.passes.reconstruct.heads.turning import accepted_turns, take_over
from spa_graph.passes.reconstruct.repair import Repair
from spa_graph.passes.reconstruct.sites import Adapt
from spa_graph.passes.statistics.moments import Floats

__all__ = ["turn"]


def turn(
    analysis: Analysis,
    pruned: Pruned,
    calibrated: Calibrated,
    options: Options,
    adapt: Adapt,
) -> tuple[Analysis, list[Repair]]:
    """Fit what is left of attention heads for each other in the pruned network, in place.

    Args:
        adapt: what of the pruned network may change.

    Returns:
        A dense network that computes what the given one does, and of which the pruned one has what
        is left; and what became of each product.
    """
    twins, families, moments = search(analysis, pruned, calibrated, options, adapt)
    found = {family: solve(family, twins, moments) for family in families}
    helpful = {family: turns for family, (turns, _) in found.items() if turns is not None}
    accepted, model, sites = accepted_turns(analysis, calibrated, twins, helpful)
    if not accepted:
        return analysis, []
    for number, site in sites.items():
        take_over(pruned.model, site, twins[number].small)
    coupling = replace(analysis.coupling, graph=read(model, options.input_shapes))
    return replace(analysis, model=model, coupling=coupling), list(_repairs(found, accepted))


def _repairs(
    found: Mapping[Family, tuple[Turns | None, Floats]], accepted: Collection[str]
) -> Iterator[Repair]:
    """What became of each product."""
    sums: dict[str, Floats] = defaultdict(lambda: np.zeros(3))
    for family, (_, error) in found.items():
        sums[family.operator] += error
    for operator, (whole, *lost) in sums.items():
        before, after = (float(each / (whole or 1.0)) for each in lost)
        made = operator in accepted
        yield Repair(
            f"heads in {operator}", before, after if made else before, 0.0 if made else np.inf
        )
