"""Networks whose heads are multiplied with matrices, and whether they compute what they did."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from spa_graph.frontends.onnx import files
from spa_graph.passes.calibrated import Calibrated
from spa_graph.passes.network import Analysis
from spa_graph.passes.reconstruct.heads.parts import (
    Family,
    Part,
    Turns,
    Twin,
    dense_sites,
    matrix_of,
)
from spa_graph.passes.reconstruct.sites import Site, add_to_bias, bias_of, set_weight
from spa_graph.passes.statistics.distortion import distortion
from spa_graph.passes.statistics.moments import Floats
from spa_graph.runtime.inputs import random_inputs
from spa_graph.runtime.sessions import open_session, run
from spa_graph.runtime.verify import Array

ALIKE = 1e-4
"""Outputs whose distortion is less are the same."""
TRIES = 32
"""So many sets of products are tried, to find those that can be turned."""


def _turned(
    analysis: Analysis,
    twins: Sequence[Twin],
    turns: Mapping[Family, Turns],
    operators: Collection[str],
) -> tuple[ir.Model, dict[int, Site]]:
    """A copy of the dense network with some products turned, and its changed operators."""
    model = analysis.model.clone()
    model.meta.update(analysis.model.meta)
    sites = dense_sites(analysis, model)
    todo: dict[int, list[tuple[Part, Floats]]] = defaultdict(list)
    for family, own in turns.items():
        if family.operator in operators:
            for parts, matrix in zip(family.sides, own, strict=True):
                for part in parts:
                    todo[part.twin].append((part, matrix))
    changed = {number: sites[twins[number].dense.layers[0].key] for number in todo}
    for number, site in changed.items():
        _multiply(model, site, todo[number])
    return model, changed


def _multiply(model: ir.Model, site: Site, todo: Sequence[tuple[Part, Floats]]) -> None:
    """Multiply an operator's results, and what reads its features, with (channels, channels)."""
    matrix, bias = matrix_of(site).copy(), bias_of(site)
    change = np.zeros(matrix.shape[1])
    for part, turn_ in todo:
        where = list(part.columns)
        if part.reads:
            matrix[where] = turn_.T @ matrix[where]
            continue
        matrix[:, where] = matrix[:, where] @ turn_
        if bias is not None:
            change[where] = bias[where] @ turn_ - bias[where]
    set_weight(site, matrix[None])
    if bias is not None:
        add_to_bias(model, site, change[None])


def take_over(model: ir.Model, dense: Site, small: Site) -> None:
    """Give the pruned network what is left of an operator that was turned."""
    set_weight(small, small.left(matrix_of(dense)[None]))
    wanted, bias = bias_of(dense), bias_of(small)
    if wanted is not None and bias is not None:
        add_to_bias(model, small, (wanted[small.results] - bias)[None])


def accepted_turns(
    analysis: Analysis,
    calibrated: Calibrated,
    twins: Sequence[Twin],
    turns: Mapping[Family, Turns],
) -> tuple[list[str], ir.Model, dict[int, Site]]:
    """The products that can be turned, the dense network so, and its changed operators."""
    if not turns:
        return [], analysis.model, {}
    operators = list(dict.fromkeys(family.operator for family in turns))
    accepted = _Compared(analysis, calibrated).accepted(
        operators, lambda some: _turned(analysis, twins, turns, some)[0]
    )
    return accepted, *_turned(analysis, twins, turns, accepted)


class _Compared:
    """Tells whether turned networks compute what the dense one does."""

    def __init__(self, analysis: Analysis, calibrated: Calibrated) -> None:
        self._feeds = random_inputs(analysis.graph, seed=1), next(iter(calibrated.batches))
        self._path, self._tries = calibrated.folder / "turned.onnx", TRIES
        self._wanted = self._outputs(analysis.model)

    def accepted(
        self, operators: Sequence[str], turned: Callable[[Sequence[str]], ir.Model]
    ) -> list[str]:
        """The products, as many as are found, that can be turned together."""
        if not operators or not self._tries:
            return []
        self._tries -= 1
        if self._alike(self._outputs(turned(operators))):
            return list(operators)
        middle = len(operators) // 2
        halves = operators[:middle], operators[middle:]
        first, second = (self.accepted(half, turned) if middle else [] for half in halves)
        if first and second and not self._alike(self._outputs(turned([*first, *second]))):
            return first
        return [*first, *second]

    def _outputs(self, model: ir.Model) -> list[Sequence[Array]]:
        files.write(model, self._path)
        with files.openable(self._path) as opened:
            session = open_session(opened)
            return [run(session, feeds) for feeds in self._feeds]

    def _alike(self, got: Sequence[Sequence[Array]]) -> bool:
        """But for rounding, which deep networks amplify: what isn't exact shows far more."""
        return all(
            distortion([want], [outputs]) < ALIKE
            and all(
                (x == y).mean() > 1 - ALIKE
                for x, y in zip(want, outputs, strict=True)
                if x.dtype.kind != "f" and x.size
            )
            for want, outputs in zip(self._wanted, got, strict=True)
        )
