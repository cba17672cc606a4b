"""Sensitivity: what the network's outputs lose when a group loses channels, for every count.

Two measurements are joined for each group.
* The *shape* of its curve follows from the Gram matrices of the layers that read it: the error that
  is left at their results when the others have taken over, for every count at once
  (`readers.error_curve`).
* Its *height* is measured: the network is pruned in that group alone, to a few counts, the layers
  that read it are refitted, and it is run on data that was not fitted to.

Allocation adds such curves up (`allocate.allocate_by_distortion`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spa_graph.coupling.analysis import ChannelGroup
from spa_graph.frontends.onnx.masking import mask
from spa_graph.passes.network import Analysis
from spa_graph.passes.probing import few, open_whole
from spa_graph.passes.reconstruct.heads.orient import Oriented
from spa_graph.passes.reconstruct.sites import (
    Site,
    add_to_bias,
    find_sites,
    left_of,
    matching,
    set_weight,
)
from spa_graph.passes.rewrite import plan_edits
from spa_graph.passes.statistics.distortion import Outputs, distortion
from spa_graph.passes.statistics.layers import LEVELS, Layer
from spa_graph.passes.statistics.padding import Padding, blanked
from spa_graph.passes.statistics.readers import Layers, error_curve, readers, taken_over
from spa_graph.plan import Kept
from spa_graph.runtime.calibration import Calibration
from spa_graph.runtime.sessions import Feeds, run

Floats = NDArray[np.float64]

ALL = 1.0
"""The distortion of outputs that say no more than a constant."""
EFFORT = 16
LEAST_SAMPLES = 8


@dataclass(frozen=True, slots=True)
class Probe:
    """One measurement: the outputs' distortion without some channels of one group."""

    group: int
    removed: int
    distortion: float


@dataclass(slots=True)
class Sensitivity:
    """The distortion of the outputs for every group and count.

    curves: per group, without 0, 1, ... of its channels, the least important first; (size + 1,).
    whole: the groups whose curves weren't measured, as they stay whole; (groups,).
    """

    curves: list[Floats]
    whole: NDArray[np.bool_]
    probes: list[Probe] = field(default_factory=list)


def measure(
    analysis: Analysis,
    scores: Floats,
    layers: Layers,
    held_out: Calibration,
    whole: NDArray[np.bool_],
    progress: Callable[[int, int], None] | None = None,
    levels: Sequence[float] = LEVELS,
    padding: Padding | None = None,
    known: Sensitivity | None = None,
    oriented: Oriented | None = None,
) -> Sensitivity:
    """Measure all groups but those that stay whole; `scores` are those of the channels.

    Args:
        known: what was measured before, by the same scores; it isn't measured again.
        held_out: calibration data that the layers' statistics were not taken of.
        levels: the shares of a group's channels without which the network is run.
        padding: which positions of the data are without meaning.
        oriented: how the network is measured where its groups are refitted for each other.
    """
    if known is not None:
        whole = whole & known.whole
    runs = len(levels) * int((~whole).sum())
    data, said = _few(held_out, runs), oriented.said if oriented else {}
    probing = _Probing(analysis, layers, data, padding)
    turned = _Probing(oriented.analysis, layers, data, padding) if oriented and said else probing
    found = Sensitivity([], whole, list(known.probes) if known else [])
    for number, group in enumerate(analysis.groups):
        if known is not None and not known.whole[number]:
            found.curves.append(known.curves[number])
            continue
        own = scores[group.start : group.stop]
        order = np.argsort(own, kind="stable")
        shape = _shape(layers, group, order, said.get(number, own))
        if whole[number] or group.size - group.least < 1:
            found.curves.append(shape)
            continue
        probe, heights = turned if number in said else probing, {}
        for removed in sorted(counts(group, levels)):
            heights[removed] = probe.distortion(group.start + order[:removed])
            found.probes.append(Probe(number, removed, heights[removed]))
        found.curves.append(scaled(shape, heights))
        if progress:
            progress(number + 1, len(analysis.groups))
    return found


def counts(group: ChannelGroup, levels: Sequence[float]) -> dict[int, float]:
    """How many of its channels a group goes without, and which level each count stands for.

    Small groups have fewer counts than there are levels: each stands for the nearest of its own.
    """
    found: dict[int, float] = {}
    for level in levels:
        removed = min(max(1, round(level * group.size)), group.size - group.least)
        share = removed / group.size
        found[removed] = min(found.get(removed, level), level, key=lambda each: abs(each - share))
    return found


def _few(data: Calibration, probes: int) -> Calibration:
    """So few samples that all probes together run about `EFFORT` times the held-out data."""
    return few(data, max(LEAST_SAMPLES, EFFORT * data.count // max(probes, 1)))


def _shape(layers: Layers, group: ChannelGroup, order: NDArray[np.int64], scores: Floats) -> Floats:
    """The relative error of every count; by the scores alone where no linear layer reads them."""
    found = readers(layers, group)
    if found:
        return error_curve(found, order)
    return np.append(0.0, np.cumsum(np.maximum(scores[order], 0)))


def scaled(curve: Floats, heights: Mapping[int, float]) -> Floats:
    """The curve that has the measured heights at some counts; it never falls.

    Where outputs are lost, that more channels lose no more of them is no reason to remove more:
    from there on the curve is at least what the last ratio makes of it.
    """
    at = np.array(sorted(heights))
    measured = np.array([heights[count] for count in at.tolist()])
    floor = 1e-9 * max(float(curve[-1]), 1e-30)
    ratios = measured / np.maximum(curve[at], floor)
    for i in range(1, len(ratios)):
        if measured[i] >= ALL:
            ratios[i] = max(ratios[i], ratios[i - 1])
    result = curve * np.interp(np.arange(len(curve)), at, ratios)
    return np.maximum.accumulate(result)


class _Probing:
    """Masks channels, refits what reads them, and runs the network.

    The masked network computes what the pruned one does (`frontends/onnx/masking.py`), and is built
    in a fraction of the time.
    """

    def __init__(
        self,
        analysis: Analysis,
        layers: Layers,
        batches: Iterable[Feeds],
        padding: Padding | None,
    ) -> None:
        self._analysis = analysis
        self._layers = layers
        self._batches = list(batches)
        self._padding = padding
        self._want = self._run(analysis.model)

    def distortion(self, gone: NDArray[np.int64]) -> float:
        """The outputs' distortion without some channels."""
        coupling, graph = self._analysis.coupling, self._analysis.graph
        kept = np.ones(coupling.count, bool)
        kept[gone] = False
        model = self._analysis.model.clone()
        sites = find_sites(coupling, model, graph, np.ones_like(kept))
        mask(model, coupling, kept, plan_edits(coupling, kept))
        for site, layer in matching(sites, self._layers):
            self._take_over(model, site, layer, kept)
        found = distortion(self._want, self._run(model))
        return found if np.isfinite(found) else np.inf

    def _take_over(self, model: ir.Model, site: Site, layer: Layer, kept: Kept) -> None:
        """Let the other channels take over in a layer that reads some of those that are gone."""
        coupling = self._analysis.coupling
        results, rows = left_of(coupling, layer, kept)
        if rows.all():
            return
        stays = rows.reshape(layer.map.groups, -1, layer.map.window)[..., 0]
        if len(set(stays.sum(1).tolist())) > 1:
            return  # whole groups are gone; nothing reads their channels
        matrix, bias = taken_over(layer, stays)
        full = np.zeros(layer.matrix.shape)
        full[np.repeat(stays, layer.map.window, axis=1)] = matrix.reshape(-1, matrix.shape[-1])
        computed = layer.map.grouped(results)  # the others are masked
        set_weight(site, full * computed[:, None, :])
        if site.bias is not None:
            add_to_bias(model, site, bias * computed)

    def _run(self, model: ir.Model) -> Outputs:
        session = open_whole(self._analysis, model, self._batches[0])
        return [blanked(self._padding, feeds, run(session, feeds)) for feeds in self._batches]
