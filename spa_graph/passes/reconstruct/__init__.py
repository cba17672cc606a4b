"""Reconstruction: refit the weights that are left, so that layers compute what they did.

* `bias`: results get back their mean; `bn`: their mean and variance (`channelwise.py`).
* `ls`: least squares, from what the repaired part of the network computes, to what the dense
  network does (`regression.py`).
* `obspa`: the paper's sweep over columns (`sweep.py`), as a reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from spa_graph.coupling.analysis import analyze
from spa_graph.frontends.onnx import files
from spa_graph.frontends.onnx.reader import read
from spa_graph.passes.calibrated import Calibrated
from spa_graph.passes.cost import CostModel
from spa_graph.passes.network import Analysis, Pruned
from spa_graph.passes.options import Options, StepProgress
from spa_graph.passes.reconstruct.heads import turn
from spa_graph.passes.reconstruct.repair import Repair, repair
from spa_graph.passes.reconstruct.sites import Adapt, anything
from spa_graph.passes.reconstruct.sweep import sweep
from spa_graph.passes.statistics.distortion import Outputs, alignment, by_sample, distortion
from spa_graph.passes.statistics.moments import Floats
from spa_graph.passes.statistics.padding import blanked
from spa_graph.runtime.sessions import open_session, run

__all__ = ["Reconstruction", "Repair", "reconstruct"]

LOST = 0.01
"""A repair may not cost the outputs more of their correlation with the dense network's. One that
makes them constant lowers their error, where it was above their variance, and ruins the network."""


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What became of the network.

    before, after: the distortion of its outputs (`statistics.distortion`) on data that no fit saw.
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
    *,
    heads: bool = True,
) -> Reconstruction:
    """Refit the pruned network's weights; they stay as they are if that doesn't help.

    Args:
        folder: for files that are needed meanwhile.
        adapt: what may change.
        heads: whether what is left of attention heads is fitted for each other, before other
            repairs; if all together don't help, these are tried without it.
    """
    sliced = pruned.model.clone()
    sliced.meta.update(pruned.model.meta)
    target, layers = analysis, list[Repair]()
    if heads and options.method == "ls":
        target, layers = turn(analysis, pruned, calibrated, options, adapt)
    method = sweep if options.method == "obspa" else repair
    layers += method(target, pruned, calibrated, options, folder, progress, adapt)
    want = _outputs(analysis.model, calibrated, folder)

    first, second = (_outputs(model, calibrated, folder) for model in (sliced, pruned.model))
    undone = not is_better(want, first, second)
    if undone:
        pruned.model = sliced
    if undone and target is not analysis:
        rest = analysis, pruned, calibrated, options, folder, progress, adapt
        return reconstruct(*rest, heads=False)
    pruned.graph = read(pruned.model, options.input_shapes)
    pruned.after = CostModel(analyze(pruned.graph))
    lost = distortion(want, first)
    return Reconstruction(layers, lost, lost if undone else distortion(want, second), undone)


def is_better(want: Outputs, before: Outputs, after: Outputs) -> bool:
    """Whether a repair brings outputs nearer to what they should be.

    Their error falls beyond chance, or falls, and does so beyond chance but for shift and scale:
    where much is lost, outputs of half the size err less than ones that are nearly in proportion.
    """
    error = by_sample(want, before), by_sample(want, after)
    scaled = (by_sample(want, each, scaled=True) for each in (before, after))
    falls = bool(error[1].sum() <= error[0].sum())
    better = helps(*error) or (falls and helps(*scaled))
    return better and alignment(want, before) - alignment(want, after) < LOST


def helps(before: Floats, after: Floats) -> bool:
    """Whether errors of samples fall by more than the standard error of that difference.

    So few samples judge that a repair which does as much harm as good may well do good on them.
    """
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return bool(after.sum() < before.sum())
    gain = before - after
    noise = np.std(gain, ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else 0.0
    return bool(gain.mean() > noise)


def _outputs(model: ir.Model, calibrated: Calibrated, folder: Path) -> Outputs:
    """All outputs on the data that no fit has seen."""
    path = folder / "compared.onnx"
    files.write(model, path)
    with files.openable(path) as opened:
        session = open_session(opened)
        return [
            blanked(calibrated.padding, feeds, run(session, feeds)) for feeds in calibrated.judging
        ]
