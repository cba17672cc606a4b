"""Relevance: what a channel contributed to the output for the right class.

Yeom, Seegerer, Lapuschkin, Binder, Wiedemann, Müller & Samek, "Pruning by Explaining: A Novel
Criterion for Deep Neural Network Pruning", Pattern Recognition 2021, section 3: the output is
traced back by layer-wise relevance propagation, which shares it out to the channels that each
layer reads; relevance is added up over positions and averaged over samples. The rules are stated
in `spa_graph/torch/relevance.py`. Looked at where layers read a channel.
"""

from __future__ import annotations

from collections.abc import Iterator

from spa_graph.passes.importance.base import Floats, criterion
from spa_graph.passes.importance.differential import Differentiable, Effects, PerChannel


@criterion
class Relevance(PerChannel):
    """Mean relevance of a channel."""

    name = "relevance"
    reads = True

    def effects(self, network: Differentiable) -> Iterator[Effects]:
        return network.relevances()

    def of(self, effects: Floats) -> Floats:
        return effects
