"""The OBSPA sweep: column by column, with downdates of the inverse Hessian; the paper's form.

SPA, arXiv 2403.18955, OBSPA: walking the layers of the network that is pruned so far, the removed
inputs q of a layer go one after the other, and the weights that are left follow by the OBS formula

    M <- M - H^-1[:, q] M[q] / H^-1[q, q]        H^-1 <- H^-1 - H^-1[:, q] H^-1[q] / H^-1[q, q]

with H = E[x x']. For one layer that is the closed form of `regression.py` without its bias, its
damping towards the weights and its targets from the dense network: those are what `ls` adds.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spa_graph.frontends.onnx.editor import operator_nodes
from spa_graph.frontends.onnx.weights import store_tensor, stored_tensor
from spa_graph.passes.calibrated import Calibrated
from spa_graph.passes.network import Analysis, Pruned
from spa_graph.passes.options import Options, StepProgress
from spa_graph.passes.reconstruct.repair import Repair, stages
from spa_graph.passes.reconstruct.sites import Adapt, Site, anything, find_sites, set_weight
from spa_graph.passes.statistics.layers import Layer, pick, positions_wanted
from spa_graph.passes.statistics.moments import Floats
from spa_graph.passes.statistics.padding import Places, places_in
from spa_graph.passes.statistics.runner import Runner

DAMPING = 1e-2
"""A share of the mean diagonal of H, as in OBC and GPTQ."""
BLOCK = 64
"""Columns that are removed in one step; the result is the same, and it takes less time."""


def remove_inputs(matrix: Floats, hessian: Floats, gone: NDArray[np.int64]) -> Floats:
    """The matrix (inputs, outputs) without some inputs, whose rows are zero; the others follow.

    Args:
        hessian: E[x x'], damped; (inputs, inputs).
    """
    matrix, inverse = matrix.copy(), np.linalg.inv(hessian)
    for start in range(0, len(gone), BLOCK):
        block = gone[start : start + BLOCK]
        columns = inverse[:, block]
        corner = columns[block]
        matrix -= columns @ np.linalg.solve(corner, matrix[block])
        inverse -= columns @ np.linalg.solve(corner, columns.T)
    matrix[gone] = 0
    return matrix


def sweep(
    analysis: Analysis,
    pruned: Pruned,
    calibrated: Calibrated,
    options: Options,
    folder: Path,
    progress: StepProgress | None = None,
    adapt: Adapt = anything,
) -> list[Repair]:
    """Refit the pruned network's weights, in place; `folder` is for features beyond the limit."""
    model = analysis.model.clone()
    model.meta.update(analysis.model.meta)
    nodes = operator_nodes(model, analysis.graph)
    walk = Runner(model, calibrated.batches, options.memory_limit // 2, folder)
    fitting = len(calibrated.fitting)
    places = places_in(calibrated.padding, calibrated.batches)
    sites = find_sites(analysis.coupling, pruned.model, pruned.graph, pruned.kept, adapt)
    sites = [site for site in sites if not site.reads_dense]
    done: list[Repair] = []
    for stage in stages(sites, walk, lambda site: [nodes[site.layers[0].operator.index]]):
        walk.advance([site.sources[0] for site in stage])
        for site in stage:
            layer = site.layers[0]
            matrix, outcome = _swept(site, layer, walk, fitting, places)
            value = nodes[layer.operator.index].inputs[layer.linear.slots[1]]
            assert value is not None
            dtype = stored_tensor(value).dtype.numpy()
            store_tensor(value, ir.Tensor(layer.map.weight(matrix).astype(dtype), name=value.name))
            set_weight(site, site.left(matrix))
            done.append(outcome)
            if progress:
                progress(len(done), len(sites), str(done[-1]))
    return done


def _swept(
    site: Site, layer: Layer, walk: Runner, fitting: int, places: Places
) -> tuple[Floats, Repair]:
    """The full matrices, zero where inputs are gone, and how well they do on held-out data."""
    generator = np.random.default_rng(0)
    grams = [np.zeros((layer.map.groups, layer.map.inputs, layer.map.inputs)) for _ in range(2)]
    counts = [0, 0]
    total = sum(
        math.prod(layer.map.positions(walk.value(layer.source, b))) for b in range(walk.batches)
    )
    share = min(1.0, positions_wanted(layer.map) / total)
    for batch in range(walk.batches):
        features = walk.value(layer.source, batch)
        count = math.prod(layer.map.positions(features))
        among = places(layer, batch)
        count = count if among is None else len(among)
        rows = layer.map.rows(features, pick(generator, count, round(share * count), among))
        held = int(batch >= fitting)
        grams[held] += rows.transpose(0, 2, 1) @ rows
        counts[held] += rows.shape[1]
    old = layer.matrix.astype(np.float64)
    new = old.copy()
    for group, gram in enumerate(grams[0] / counts[0]):
        if not site.rows[group].any():  # it computes what was lost, for those behind it
            continue
        damping = DAMPING * (float(np.trace(gram)) / len(gram) or 1.0)
        hessian = gram + damping * np.eye(len(gram))
        new[group] = remove_inputs(old[group], hessian, np.flatnonzero(~site.rows[group]))
    test = grams[1] / max(counts[1], 1)
    sliced = site.without_lost_inputs().astype(np.float64)
    errors = [float(((old - m) * (test @ (old - m))).sum()) for m in (sliced, new)]
    spread = float((old * (test @ old)).sum()) or 1.0
    if errors[1] >= errors[0]:
        return sliced, Repair(site.name, errors[0] / spread, errors[0] / spread, np.inf)
    return new, Repair(site.name, errors[0] / spread, errors[1] / spread, DAMPING)
