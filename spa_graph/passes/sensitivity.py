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

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spa_graph.coupling.analysis import ChannelGroup
from spa_graph.frontends.onnx import files
from spa_graph.frontends.onnx.sizes import InputShapes
from spa_graph.passes.network import Analysis, cut
from spa_graph.passes.reconstruct.sites import Site, add_to_bias, find_sites, matching, set_weight
from spa_graph.passes.statistics.distortion import Outputs, distortion
from spa_graph.passes.statistics.layers import LEVELS, Layer
from spa_graph.passes.statistics.readers import Layers, error_curve, readers, taken_over
from spa_graph.runtime.sessions import Feeds, open_session, run

Floats = NDArray[np.float64]


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
    """

    curves: list[Floats]
    probes: list[Probe] = field(default_factory=list)


def measure(
    analysis: Analysis,
    input_shapes: InputShapes,
    scores: Floats,
    layers: Layers,
    held_out: Iterable[Feeds],
    folder: Path,
    whole: NDArray[np.bool_],
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """Measure all groups but those that stay whole; `scores` are those of the channels.

    Args:
        held_out: calibration data that the layers' statistics were not taken of.
        folder: where pruned networks may be written.
    """
    probing = _Probing(analysis, input_shapes, layers, held_out, folder)
    found = Sensitivity([])
    for number, group in enumerate(analysis.groups):
        own = scores[group.start : group.stop]
        order = np.argsort(own, kind="stable")
        shape = _shape(layers, group, order, own)
        if whole[number] or group.size < 2:
            found.curves.append(shape)
            continue
        most = group.size - 1
        counts = sorted({min(max(1, round(level * group.size)), most) for level in LEVELS})
        heights = {}
        for removed in counts:
            heights[removed] = probing.distortion(group.start + order[:removed])
            found.probes.append(Probe(number, removed, heights[removed]))
        found.curves.append(scaled(shape, heights))
        if progress:
            progress(number + 1, len(analysis.groups))
    return found


def _shape(layers: Layers, group: ChannelGroup, order: NDArray[np.int64], scores: Floats) -> Floats:
    """The relative error of every count; by the scores alone where no linear layer reads them."""
    found = readers(layers, group)
    if found:
        return error_curve(found, order)
    return np.append(0.0, np.cumsum(np.maximum(scores[order], 0)))


def scaled(curve: Floats, heights: Mapping[int, float]) -> Floats:
    """The curve that has the measured heights at some counts; it never falls."""
    at = np.array(sorted(heights))
    measured = np.array([heights[count] for count in at.tolist()])
    floor = 1e-9 * max(float(curve[-1]), 1e-30)
    ratios = measured / np.maximum(curve[at], floor)
    result = curve * np.interp(np.arange(len(curve)), at, ratios)
    return np.maximum.accumulate(result)


class _Probing:
    """Prunes single groups, refits what reads them, and runs the network."""

    def __init__(
        self,
        analysis: Analysis,
        input_shapes: InputShapes,
        layers: Layers,
        batches: Iterable[Feeds],
        folder: Path,
    ) -> None:
        self._analysis = analysis
        self._input_shapes = input_shapes
        self._by_result = {layer.operator.outputs[0]: layer for layer in layers.values()}
        self._batches = list(batches)
        self._draft = folder / "probe.onnx"
        self._want = self._run(analysis.model)

    def distortion(self, gone: NDArray[np.int64]) -> float:
        """The outputs' distortion without some channels."""
        kept = np.ones(self._analysis.coupling.count, bool)
        kept[gone] = False
        model, graph, _ = cut(self._analysis, kept, self._input_shapes)
        sites = find_sites(self._analysis.coupling, model, graph, kept)
        for site, layer in matching(sites, self._by_result):
            if not site.rows.all() and site.rows.any(1).all():
                self._take_over(model, site, layer)
        found = distortion(self._want, self._run(model))
        return found if np.isfinite(found) else np.inf

    def _take_over(self, model: ir.Model, site: Site, layer: Layer) -> None:
        if not site.results.all():
            return  # it loses results as well: where a group runs through both sides
        stays = site.rows.reshape(layer.map.groups, -1, layer.map.window)[..., 0]
        matrix, bias = taken_over(layer, stays)
        set_weight(site, matrix)
        if site.bias is not None:
            add_to_bias(model, site, bias)

    def _run(self, model: ir.Model) -> Outputs:
        files.write(model, self._draft)
        with files.openable(self._draft) as path:
            session = open_session(path)
            return [run(session, feeds) for feeds in self._batches]
