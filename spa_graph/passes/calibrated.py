"""Calibration data and what the dense network does on it: the statistics of its linear layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from spa_graph.frontends.onnx import files
from spa_graph.passes.importance import Criterion, make_criterion
from spa_graph.passes.network import Analysis
from spa_graph.passes.options import Options, StepProgress, Timer
from spa_graph.passes.probing import Gates, few, open_whole
from spa_graph.passes.statistics.layers import (
    LEVELS,
    POSITIONS,
    Layer,
    Scratch,
    features_axes,
    linear_layers,
    observe,
)
from spa_graph.passes.statistics.moments import Moments
from spa_graph.passes.statistics.padding import Padding, find_padding, places_in
from spa_graph.passes.statistics.readers import Layers
from spa_graph.passes.statistics.runner import Runner
from spa_graph.passes.torch_engine import torch_engine
from spa_graph.runtime.calibration import MATCHED, Calibration, Prober, calibration, to_be_matched
from spa_graph.runtime.sessions import Feeds, run
from spa_graph.runtime.verify import Array

LEARNED = 0.875
"""The share of the calibration data that weights follow from. By the rest, which no fit has seen,
all repairs together are judged."""
FITTED = 0.75
"""The share of that by which weights are fitted first; by the rest each layer's fit is judged,
before it is made of both."""

PROBED = 32
"""Samples on which criteria that need the network's outputs run it, over and over."""


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """Calibration data, and the dense network's statistics on the part that is fitted to.

    fitting, held_out: see FITTED; judging: see LEARNED.
    folder: for files that are needed meanwhile.
    """

    source: str
    fitting: Calibration
    held_out: Calibration
    judging: Calibration
    criterion: Criterion
    layers: Layers
    folder: Path
    padding: Padding | None = None

    def settle(self, options: Options) -> Options:
        """Options that say how weights are refitted, where the data decides that.

        Random tokens don't: what layers see of them is so far from what they see of texts that
        refits to them did more harm than good (docs/accuracy.md).
        """
        if self.fitting.kind == "random tokens" and options.reconstruct is None:
            return replace(options, reconstruct="none")
        return options

    @property
    def batches(self) -> Iterable[Feeds]:
        """All batches that weights follow from, first those that are fitted to."""
        return chain(self.fitting, self.held_out)


def calibrate(analysis: Analysis, options: Options, timer: Timer, folder: Path) -> Calibrated:
    """Read or make calibration data, and run the dense network on it.

    Args:
        folder: for files that are needed meanwhile.

    Raises:
        OptionError: the data can't be read, or doesn't fit the network.
    """
    with timer.step("calibration data"):
        path = folder / "dense.onnx"
        files.write(analysis.model, path)
        prober = Prober(lambda also: files.openable(path, also), analysis.graph.outputs)
        data = calibration(
            options.calibrate,
            analysis.graph,
            samples=options.samples or default_samples(analysis),
            seed=options.seed,
            preprocess=options.preprocess,
            model=analysis.model,
            probe=prober,
        )
    if to_be_matched(options.calibrate):
        with timer.step("match samples") as progress:
            engine = torch_engine("matched", f"--calibrate {MATCHED} needs gradients")
            data = engine.match(analysis, data, options.memory_limit, folder, progress)
    learning, judging = data.split(LEARNED)
    fitting, held_out = learning.split(FITTED)
    criterion = make_criterion(options.criterion_name, options.seed)
    with timer.step("calibration data"):
        padding = _padding(analysis, fitting)
    with timer.step("statistics") as progress:
        limit = options.memory_limit
        layers = _statistics(analysis, criterion, fitting, padding, limit, folder, progress)
    if criterion.probes:
        with timer.step("probe channels") as progress:
            criterion.probe(Gates(analysis, layers, few(fitting, PROBED), padding), progress)
    return Calibrated(data.source, fitting, held_out, judging, criterion, layers, folder, padding)


def _padding(analysis: Analysis, batches: Calibration) -> Padding | None:
    """The padding of the calibration data, if the network ignores it."""

    def compute(feeds: Feeds) -> Sequence[Array]:
        return run(open_whole(analysis, analysis.model, feeds), feeds)

    return find_padding(analysis.coupling, batches, compute)


def _statistics(
    analysis: Analysis,
    criterion: Criterion,
    batches: Calibration,
    padding: Padding | None,
    limit: int,
    folder: Path,
    progress: StepProgress,
) -> Layers:
    """Run the dense network, from one layer's features to the next one's: all at once may be large.

    Args:
        limit: bytes, of which half may be moments and a quarter features; the rest of both is kept
            in files of `folder`, and the last quarter is for what the work itself takes.
    """
    scratch = Scratch(limit // 2, folder)
    layers = [layer for layer in linear_layers(analysis.coupling) if _loses(analysis, layer)]
    moments: dict[str, Moments] = {}
    readers: dict[str, list[Layer]] = {}
    for layer in layers:  # one update must serve all uses of a weight, so they are seen as one
        layer.moments = moments.setdefault(layer.weight, Moments(scratch.zeros))
        readers.setdefault(layer.source, []).append(layer)
    places = places_in(padding, batches)
    generator = np.random.default_rng(0)
    runner = Runner(analysis.model, batches, limit // 4, folder)
    for number, (source, reading) in enumerate(readers.items()):
        runner.advance([source], keep=list(readers)[number:])
        for batch in range(runner.batches):
            features = runner.value(source, batch)
            for layer in reading:
                # says what is wrong with features
                observe(layer, features, len(batches), generator, places(layer, batch))
                criterion.observe(layer, features)
        progress(number + 1, len(readers))
    return {layer.key: layer for layer in layers}


def _loses(analysis: Analysis, layer: Layer) -> bool:
    """Whether a layer sums over channels that can go."""
    features = features_axes(analysis.coupling, layer)
    return analysis.coupling.channel_of(features[layer.linear.features]) is not None


FEWEST, MOST = 256, 1024
EFFORT = 2.1e12
"""FLOPs of running the dense network over as many samples as are used by default: what 256 images
cost in a ResNet-50."""


def default_samples(analysis: Analysis) -> int:
    """How many samples are used unless the user says: more where the network is small.

    What a repair gains from the fourfold is much at half of the FLOPs (docs/accuracy.md).
    """
    flops = analysis.cost.cost("flops", analysis.cost.full)
    return int(np.clip(EFFORT / max(flops, 1.0), FEWEST, MOST))


FLOP_RATE = 1e11
"""Floating-point operations per second that the algebra is taken to reach, for estimates only:
between products in single precision (3e11 were measured on two cores of 2026's servers) and
factorisations in double (1e10), which take about as long."""


def estimated_seconds(analysis: Analysis, latency: float) -> float:
    """About how long calibration would take, with as many samples as by default.

    Args:
        latency: seconds that the network needs for one sample.
    """
    samples = default_samples(analysis)
    prunable = sum(group.size > 1 for group in analysis.groups)
    runs = 3 + len(LEVELS) * (1 - FITTED) * prunable
    algebra = 0.0
    by_weight = {layer.weight: layer for layer in linear_layers(analysis.coupling)}
    for layer in by_weight.values():  # unrolled steps share one, which is fitted once
        inputs = layer.map.inputs
        algebra += layer.map.groups * 2 * inputs**2 * (POSITIONS * inputs + layer.map.outputs)
    return runs * samples * latency + algebra / FLOP_RATE
