"""Layer by layer, from the inputs on: make each layer compute again what it did before pruning.

The dense and the pruned network run beside each other over the calibration data (`walks.py`). A
layer sees what the repaired part before it computes, and is fitted to what the dense network
computes there, so that errors of earlier layers are corrected as well: those of its inputs, and
those of what its results are added to (`addends.py`). On data that was made up, errors of earlier
layers say little of those on real data: there a layer makes up for its own inputs only. Padding
isn't looked at. Part of the data is held out: a repair that doesn't help there is not made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spa_graph.passes.calibrated import Calibrated
from spa_graph.passes.network import Analysis, Pruned
from spa_graph.passes.options import Method, Options, StepProgress
from spa_graph.passes.reconstruct.channelwise import BatchNormRegression, BiasRegression
from spa_graph.passes.reconstruct.regression import GramRegression, RowRegression
from spa_graph.passes.reconstruct.sites import Adapt, Site, anything, find_sites
from spa_graph.passes.reconstruct.trial import Outcome
from spa_graph.passes.reconstruct.walks import Beside, Following
from spa_graph.passes.statistics.layers import pick, positions_wanted
from spa_graph.passes.statistics.linear_map import Rows
from spa_graph.passes.statistics.runner import Runner


@dataclass(frozen=True, slots=True)
class Repair:
    """What became of one layer.

    before, after: the error of its results on held-out data, as shares of their variance.
    damping: of the regression; infinite where the layer stayed as it was.
    """

    layer: str
    before: float
    after: float
    damping: float

    def __str__(self) -> str:
        return f"{self.layer}: error {self.before:.3g} -> {self.after:.3g}"


class Regression(Protocol):
    """What takes in rows and residuals, batch by batch, and finds the update."""

    def add(self, rows: Rows, residual: Rows, *, held_out: bool) -> None: ...

    def solve(self) -> Outcome: ...


def repair(
    analysis: Analysis,
    pruned: Pruned,
    calibrated: Calibrated,
    options: Options,
    folder: Path,
    progress: StepProgress | None = None,
    adapt: Adapt = anything,
) -> list[Repair]:
    """Refit the pruned network's weights, in place; `folder` is for features beyond the limit."""
    kind = Beside if calibrated.fitting.kind == "data" else Following
    walk = kind(analysis, pruned, calibrated, options.memory_limit // 4, folder)
    found = find_sites(analysis.coupling, pruned.model, pruned.graph, pruned.kept, adapt)
    sites = list(walk.fitting_sites(found))
    if options.params is not None:
        sites = [site.without_new_bias() for site in sites]  # it would cost parameters
    done: list[Repair] = []
    waiting = sites
    for stage in stages(sites, walk.small, lambda site: site.nodes):
        waiting = [site for site in waiting if site not in stage]
        walk.advance(stage, waiting)
        for site in stage:
            done.append(_repair(walk, site, options.method))
            if progress:
                progress(len(done), len(sites), str(done[-1]))
    return done


def stages(
    sites: Sequence[Site], network: Runner, nodes: Callable[[Site], Sequence[ir.Node]]
) -> Iterator[list[Site]]:
    """Sites of which none reads what another one computes, together, in the network's order.

    Args:
        nodes: a site's operators in this network.
    """
    waiting = list(sites)
    while waiting:
        unrepaired = {id(node) for site in waiting for node in nodes(site)}
        behind = network.behind(unrepaired)
        yield [site for site in waiting if site.waits_for not in behind]
        waiting = [site for site in waiting if site.waits_for in behind]


def _repair(walk: Beside, site: Site, method: Method) -> Repair:
    batches = range(walk.dense.batches)
    counts = [[walk.count(site, layer, batch) for batch in batches] for layer in site.layers]
    share = min(1.0, positions_wanted(site.pruned) / sum(map(sum, counts)))
    seen = round(share * sum(sum(own[: walk.fitting]) for own in counts))
    matrix = walk.matrix(site)
    task = _regression(method, site, matrix, seen)
    spread = _Spread()
    generator = np.random.default_rng(0)
    for layer, own in zip(site.layers, counts, strict=True):
        for batch, count in enumerate(own):
            among = walk.places(layer, batch)
            positions = pick(generator, count, round(share * count), among)
            rows, wanted = walk.look(site, layer, batch, positions)
            task.add(rows, wanted - rows @ matrix, held_out=batch >= walk.fitting)
            spread.add(wanted)
    outcome = task.solve()
    walk.update(site, outcome.update)
    total = spread.variance or 1.0
    return Repair(site.name, outcome.before / total, outcome.after / total, outcome.damping)


def _regression(method: Method, site: Site, matrix: Rows, seen: int) -> Regression:
    """The cheapest form for a layer of which `seen` positions are fitted to."""
    bias = site.bias is not None
    if method == "bias":
        return BiasRegression(matrix, bias=bias)
    if method == "bn":
        return BatchNormRegression(matrix, bias=bias)
    if site.pruned.groups == 1 and seen < site.pruned.inputs:
        return RowRegression(bias=bias)
    return GramRegression(bias=bias)


class _Spread:
    """The variance of what is wanted, summed over the results."""

    def __init__(self) -> None:
        self._count = 0
        self._shift: Any = None
        self._sum: Any = 0.0
        self._squares: Any = 0.0

    def add(self, wanted: NDArray[np.float32]) -> None:
        if self._shift is None:
            self._shift = wanted.mean(1, keepdims=True)
        moved = wanted - self._shift
        self._count += moved.shape[1]
        self._sum = self._sum + moved.sum(1, dtype=np.float64)
        self._squares = self._squares + np.square(moved).sum(1, dtype=np.float64)

    @property
    def variance(self) -> float:
        return float((self._squares / self._count - (self._sum / self._count) ** 2).sum())
