"""What calibration data says of the dense network: the statistics of its linear layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from spa_graph.passes.importance import Criterion
from spa_graph.passes.network import Analysis
from spa_graph.passes.statistics.layers import Layer, Scratch, linear_layers, observe
from spa_graph.passes.statistics.moments import Moments
from spa_graph.passes.statistics.readers import Layers
from spa_graph.passes.statistics.runner import Runner
from spa_graph.runtime.sessions import Feeds


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """Calibration data, and the dense network's statistics on it.

    batches: inputs of the network; the first `fitting` are fitted to, the others are held out.
    layers: the statistics, of the first ones.
    """

    source: str
    batches: list[Feeds]
    fitting: int
    criterion: Criterion
    layers: Layers

    @property
    def held_out(self) -> list[Feeds]:
        return self.batches[self.fitting :]


def take_statistics(
    analysis: Analysis,
    criterion: Criterion,
    batches: Sequence[Feeds],
    *,
    limit: int,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Layers:
    """Run the dense network over calibration data.

    Args:
        criterion: may want to see features.
        limit: bytes of moments that are kept in memory; the others are kept in `folder`.
    """
    scratch = Scratch(limit, folder)
    layers = [layer for layer in linear_layers(analysis.coupling) if _read(analysis, layer)]
    for layer in layers:
        layer.moments = Moments(scratch.zeros)
    names = list(dict.fromkeys(layer.source for layer in layers))
    generator = np.random.default_rng(0)
    for number, feeds in enumerate(batches):
        runner = Runner(analysis.model, [feeds], limit, folder)
        runner.advance(names)
        for layer in layers:
            features = runner.value(layer.source, 0)
            criterion.observe(layer, features)
            observe(layer, features, len(batches), generator)
        if progress:
            progress(number + 1, len(batches))
    return {(layer.operator.index, layer.linear.slots[1]): layer for layer in layers}


def _read(analysis: Analysis, layer: Layer) -> bool:
    """Whether a layer sums over channels that can go; others lose nothing themselves."""
    features = analysis.coupling.relations.operand(layer.operator, layer.linear.slots[0]) or ()
    return analysis.coupling.channel_of(features[layer.linear.features]) is not None
