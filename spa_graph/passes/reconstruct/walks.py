"""Two networks beside each other on their way through calibration data, for layers to be fitted.

What a layer of the pruned network is fitted to is either

* what the dense network computes there (`Beside`): then it also makes up for errors of layers
  before it. What such errors look like depends on the data: this takes samples of the network's
  own kind.
* what the whole layer would make of what the repaired layers before it compute (`Following`), as
  in the paper's sweep: then it makes up for its own lost inputs only, by what the others say of
  them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spa_graph.passes.calibrated import Calibrated
from spa_graph.passes.network import Analysis, Pruned
from spa_graph.passes.reconstruct.sites import Site, add_to_bias, find_sites, set_weight
from spa_graph.passes.reconstruct.trial import Update
from spa_graph.passes.statistics.layers import Ints, Layer
from spa_graph.passes.statistics.linear_map import Rows
from spa_graph.passes.statistics.padding import places_in
from spa_graph.passes.statistics.runner import Runner

Array = NDArray[Any]


class Beside:
    """The pruned network beside the dense one.

    dense, small: the two, run as far as they are needed.
    wholes: the networks of full width that sites may be fitted to (`whole`).
    fitting: so many batches are fitted to; the others are held out.
    places: which positions count.

    Args:
        limit: bytes of features that are kept in memory, of each network.
        folder: where others are kept.
    """

    def __init__(
        self,
        analysis: Analysis,
        pruned: Pruned,
        calibrated: Calibrated,
        limit: int,
        folder: Path,
    ) -> None:
        def start(model: ir.Model) -> Runner:
            return Runner(model, calibrated.batches, limit, folder)

        self.model = pruned.model
        self.dense, self.small = start(analysis.model), start(pruned.model)
        self.wholes = [self.dense, *map(start, self._followed(analysis))]
        self.fitting = len(calibrated.fitting)
        self.places = places_in(calibrated.padding, calibrated.batches)
        self._addends: dict[Site, str] = {}  # what results are added to, if both have computed it

    def fitting_sites(self, sites: Iterable[Site]) -> Iterator[Site]:
        """The sites that can be fitted here, with the bias that can be."""
        yield from sites

    def whole(self, site: Site) -> Runner:  # noqa: ARG002
        """The network whose whole layer a site is fitted to."""
        return self.dense

    def advance(self, stage: Sequence[Site], waiting: Sequence[Site]) -> None:
        """Run up to the sites of a stage; others still wait."""
        unknown = self.small.behind(
            {id(node) for site in (*stage, *waiting) for node in site.nodes}
        )
        found = ((site, site.addend.value) for site in stage if site.addend)
        self._addends = {site: addend for site, addend in found if addend not in unknown}
        added = [*self._addends.values()]
        for network in self.wholes:
            # all uses of a shared weight are looked at, and layers that wait may lie between them
            now, later = (
                [source for site in sites if self.whole(site) is network for source in site.sources]
                for sites in (stage, waiting)
            )
            network.advance([*now, *added], later)
        self.small.advance([site.waits_for for site in stage] + added)

    def count(self, site: Site, layer: Layer, batch: int) -> int:
        """How many positions of a batch count."""
        some = self.places(layer, batch)
        if some is not None:
            return len(some)
        features = site.cropped(layer, self.whole(site).value(layer.source, batch))
        return math.prod(layer.map.positions(features))

    def matrix(self, site: Site) -> Rows:
        """What an update is added to; (groups, inputs, outputs)."""
        return site.matrix

    def look(self, site: Site, layer: Layer, batch: int, positions: Ints) -> tuple[Rows, Rows]:
        """What the pruned layer sees of a batch at some positions, and what it should make of it.

        Returns:
            (groups, positions, inputs) and (groups, positions, outputs).
        """
        features = site.cropped(layer, self.whole(site).value(layer.source, batch))
        wanted = self._wanted(site, layer, features, positions)
        if site in self._addends:
            addend = self._addends[site]
            both = self.dense.value(addend, batch), self.small.value(addend, batch)
            wanted = wanted + site.lost(*both, positions)
        if site.reads_dense:
            return site.seen(layer, features, positions), wanted
        return site.pruned.rows(self.small.value(layer.source, batch), positions), wanted

    def update(self, site: Site, update: Update | None) -> None:
        """Change the weights, if there is something to change."""
        if update is None:
            return
        set_weight(site, site.matrix + update.matrix)
        if site.bias is not None:
            add_to_bias(self.model, site, update.bias)

    def _followed(self, analysis: Analysis) -> list[ir.Model]:  # noqa: ARG002
        """Other networks of full width that are run."""
        return []

    def _wanted(self, site: Site, layer: Layer, features: Array, positions: Ints) -> Rows:
        return site.wanted(layer, features, positions)


class Following(Beside):
    """The pruned network beside a dense one whose layers are repaired as well.

    That one keeps the channels that are gone, computed from those that
    stay: so it has all results of a layer, and where a layer lost no inputs both compute the same.
    Sites that can't be fitted on it (`Site.reads_dense`) are fitted on the dense network.
    """

    def _followed(self, analysis: Analysis) -> list[ir.Model]:
        model = analysis.model.clone()
        model.meta.update(analysis.model.meta)
        every = np.ones(analysis.coupling.count, bool)
        sites = find_sites(analysis.coupling, model, analysis.graph, every)
        self._repaired = {site.layers[0].key: site for site in sites}
        self._repaired_model = model
        return [model]

    def fitting_sites(self, sites: Iterable[Site]) -> Iterator[Site]:
        for site in sites:
            twin = self._repaired.get(site.layers[0].key)
            if twin is not None and len(twin.layers) == len(site.layers):
                # what it is added to is the same in both
                yield replace(site, bias=site.bias if twin.bias else None, addend=None)

    def whole(self, site: Site) -> Runner:
        return self.wholes[0 if site.reads_dense else 1]

    def matrix(self, site: Site) -> Rows:
        return site.inputs_left

    def update(self, site: Site, update: Update | None) -> None:
        if update is None and site.rows.all():
            return
        twin, matrix = self._repaired[site.layers[0].key], site.without_lost_inputs()
        if update is not None:
            matrix[site.rows] += update.matrix.reshape(-1, matrix.shape[-1])
        set_weight(twin, matrix)
        set_weight(site, site.left(matrix))
        if update is not None and site.bias is not None:
            bias = np.zeros(matrix.shape[::2])
            bias[site.rows.any(1)] = update.bias
            add_to_bias(self._repaired_model, twin, bias)
            add_to_bias(self.model, site, site.pruned.grouped(bias.reshape(-1)[site.results]))

    def _wanted(self, site: Site, layer: Layer, features: Array, positions: Ints) -> Rows:
        results = layer.map.rows(features, positions) @ layer.matrix
        return results[site.rows.any(1)]
