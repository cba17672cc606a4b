"""Reconstruction: refit the weights that are left, so that layers compute what they did.

* `bias`: results get back their mean; `bn`: their mean and variance (`channelwise.py`).
* `ls`: least squares, from what the repaired part of the network computes, to what the dense
  network does (`regression.py`).
* `obspa`: the paper's sweep over columns (`sweep.py`), as a reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from spa_graph.coupling.analysis import analyze
from spa_graph.frontends.onnx import files
from spa_graph.frontends.onnx.reader import read
from spa_graph.passes.calibrated import Calibrated
from spa_graph.passes.cost import CostModel
from spa_graph.passes.network import Analysis, Pruned
from spa_graph.passes.options import Options, StepProgress
from spa_graph.passes.reconstruct.repair import Repair, repair
from spa_graph.passes.reconstruct.sites import Adapt, anything
from spa_graph.passes.reconstruct.sweep import sweep
from spa_graph.passes.statistics.distortion import Outputs, alignment, distortion
from spa_graph.passes.statistics.padding import blanked
from spa_graph.runtime.sessions import open_session, run

__all__ = ["Reconstruction", "Repair", "reconstruct"]

LOST = 0.01
"""A repair may not cost the outputs more of their correlation with the dense network's. One that
makes them constant lowers their error, where it was above their variance, and ruins the network."""


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What became of the network.

    before, after: the distortion of its outputs on held-out data (`statistics.distortion`).
    undone: whether all repairs were taken back, because together they did not help there.
    """

    layers: list[Repair]
    before: float
    after: float
    undone: bool


def reconstruct(
    analysis: Analysis,
    pruned: Pruned,
    calibrated: Calibrated,
    options: Options,
    folder: Path,
    progress: StepProgress | None = None,
    adapt: Adapt = anything,
) -> Reconstruction:
    """Refit the pruned network's weights; they stay as they are if that doesn't help.

    Args:
        folder: for files that are needed meanwhile.
        adapt: what may change.
    """
    sliced = pruned.model.clone()
    sliced.meta.update(pruned.model.meta)
    method = sweep if options.method == "obspa" else repair
    layers = method(analysis, pruned, calibrated, options, folder, progress, adapt)
    want = _outputs(analysis.model, calibrated, folder)

    def judge(model: ir.Model) -> tuple[float, float]:
        got = _outputs(model, calibrated, folder)  # of one network at a time
        return distortion(want, got), alignment(want, got)

    (before, aligned), (after, still) = judge(sliced), judge(pruned.model)
    undone = not (after < before and aligned - still < LOST)
    if undone:
        pruned.model = sliced
    pruned.graph = read(pruned.model, options.input_shapes)
    pruned.after = CostModel(analyze(pruned.graph))
    return Reconstruction(layers, before, before if undone else after, undone)


def _outputs(model: ir.Model, calibrated: Calibrated, folder: Path) -> Outputs:
    """All outputs on the held-out data."""
    path = folder / "compared.onnx"
    files.write(model, path)
    with files.openable(path) as opened:
        session = open_session(opened)
        return [
            blanked(calibrated.padding, feeds, run(session, feeds)) for feeds in calibrated.held_out
        ]
