"""Made-up samples on which a network's inner statistics are those that it remembers of training.

Each BatchNormalization keeps the mean m and the variance v of its channels. A batch of samples is
moved by gradients until those of its own, n and w, are alike: what falls is the divergence of two
normal distributions, KL = (log(v / w) + (w + (n - m)^2) / v - 1) / 2, averaged over channels, its
logarithm over layers. That is how ZeroQ (Cai et al., CVPR 2020, arXiv 2001.00281) and DeepInversion
(Yin et al., CVPR 2020, arXiv 1912.08795) make their images; those start from noise, these from
images and sounds that are chosen by the same distance (`runtime/calibration/matching.py`), so that
few steps do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spa_graph.errors import OptionError
from spa_graph.graph import Graph
from spa_graph.passes.network import Analysis
from spa_graph.passes.options import StepProgress
from spa_graph.runtime.calibration.batches import Calibration, Indices, Reader, value_sizes
from spa_graph.runtime.calibration.matching import Layer, normalised
from spa_graph.runtime.calibration.roles import role
from spa_graph.runtime.calibration.wanted import Array, Wanted, wanted
from spa_graph.runtime.inputs import Feeds
from spa_graph.torch.onnx_module import OnnxModule
from spa_graph.torch.watching import Operands, Run

STEPS = 20
RATE = 0.05
"""How far Adam goes at first, in deviations of the samples; it slows down to nothing."""
LEAST, MOST = 8, 64
"""How many samples are moved together: of fewer, statistics say little."""
_STARTS = ("image", "sound", "texture", "numbers")


def match(
    analysis: Analysis, data: Calibration, limit: int, folder: Path, progress: StepProgress
) -> Calibration:
    """The same samples, moved; what isn't real numbers stays.

    Args:
        data: samples that were made up.
        limit: of memory, in bytes; half of it is for features.
        folder: where the samples are kept.

    Raises:
        OptionError: the network has no statistics to match, nothing that can be moved, or takes too
            few samples at once.
        ModelError: it has an operator that torch doesn't run.
    """
    graph = analysis.graph
    moved = [
        want
        for want in wanted(graph, analysis.model)
        if want.dtype.kind == "f" and want.axis is not None and role(graph, want) in _STARTS
    ]
    layers = {layer.value: layer for layer in normalised(graph)}
    _check(moved, layers)
    matcher = _Matcher(analysis, moved, layers)
    batches = _batches(data, _most(graph, moved, limit))
    stored = {
        want.name: _stored(want, 1 + max(int(b.max()) for b in batches), folder / f"{number}.npy")
        for number, want in enumerate(moved)
    }
    for number, indices in enumerate(batches):
        feeds = data.reader.read(indices)
        for step in matcher.steps(feeds):
            progress(number * STEPS + step, len(batches) * STEPS)
        for want in moved:
            assert want.axis is not None
            stored[want.name][indices] = np.moveaxis(feeds[want.name], want.axis, 0)
    return replace(data, reader=_Moved(data.reader, moved, stored))


def _check(moved: Sequence[Wanted], layers: Mapping[str, Layer]) -> None:
    if not layers:
        raise OptionError(
            "data-free:matched: the network has no BatchNormalization, whose statistics samples "
            "could match; exporters may have merged them into convolutions. Export it without "
            "constant folding, or give --calibrate data-free"
        )
    if not moved:
        raise OptionError(
            "data-free:matched: the network takes no images, sounds or other real numbers; give "
            "--calibrate data-free"
        )
    fixed = [want for want in moved if want.batch is not None and want.batch < LEAST]
    if fixed:
        raise OptionError(
            f"data-free:matched: the network takes {fixed[0].batch} at once, too few for "
            f"statistics: export it with a free batch, or one of at least {LEAST}"
        )


class _Moved:
    """Reads samples as another reader does, but for those that were moved."""

    def __init__(
        self, reader: Reader, moved: Sequence[Wanted], stored: Mapping[str, Array]
    ) -> None:
        self._reader, self._moved, self._stored = reader, moved, stored

    def read(self, indices: Indices) -> Feeds:
        """Feeds for one run."""
        feeds = dict(self._reader.read(indices))
        for want in self._moved:
            assert want.axis is not None
            rows = np.moveaxis(self._stored[want.name][indices], 0, want.axis)
            feeds[want.name] = np.ascontiguousarray(rows)
        return feeds


class _Matcher:
    """Moves batches of samples."""

    def __init__(
        self, analysis: Analysis, moved: Sequence[Wanted], layers: Mapping[str, Layer]
    ) -> None:
        graph, self._moved = analysis.graph, moved
        self._seen: list[tuple[Tensor, Layer]] = []
        by_index = {
            operator.index: layers[operator.inputs[0]]
            for operator in graph.operators
            if operator.op_type == "BatchNormalization" and operator.inputs[0] in layers
        }

        def around(index: int, operands: Operands, run: Run) -> Any:
            if index in by_index:
                self._seen.append((operands[0], by_index[index]))
            return run(operands)

        self._module = OnnxModule(analysis.model, graph=graph).requires_grad_(False).watched(around)

    def steps(self, feeds: Feeds) -> Iterator[int]:
        """Move the samples of one run, in place; yields after each step."""
        given = {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}
        leaves = {w.name: given[w.name].float().requires_grad_() for w in self._moved}
        bounds = {name: (leaf.min().item(), leaf.max().item()) for name, leaf in leaves.items()}
        optimizer = torch.optim.Adam(
            [
                {"params": [leaf], "lr": RATE * float(leaf.detach().std())}
                for leaf in leaves.values()
            ]
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        for step in range(STEPS):
            self._seen.clear()
            cast = {name: leaf.to(given[name].dtype) for name, leaf in leaves.items()}
            self._module(**(given | cast))
            optimizer.zero_grad()
            distance = torch.stack([_distance(*pair) for pair in self._seen]).mean()
            torch.autograd.backward(distance)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for name, leaf in leaves.items():
                    leaf.clamp_(*bounds[name])
            yield step + 1
        for name, leaf in leaves.items():
            feeds[name] = leaf.detach().to(given[name].dtype).numpy()


def _distance(value: Tensor, layer: Layer) -> Tensor:
    """`Layer.distance` of a value, with a gradient."""
    value = value.float()
    axes = [axis for axis in range(value.ndim) if axis != layer.axis]
    variance, mean = torch.var_mean(value, axes, correction=0)
    mean_then, deviation = (
        torch.from_numpy(np.asarray(each, np.float32)) for each in (layer.mean, layer.deviation)
    )
    ratio = (variance + 1e-12) / deviation**2
    shift = ((mean - mean_then) / deviation) ** 2
    return torch.log1p(((ratio + shift - 1 - torch.log(ratio)) / 2).mean())


def _stored(want: Wanted, count: int, path: Path) -> Array:
    """A place for an input's samples, along the first axis."""
    shape = list(want.nominal)
    assert want.axis is not None
    del shape[want.axis]
    array: Array = np.lib.format.open_memmap(path, "w+", want.dtype, (count, *shape))
    return array


def _batches(data: Calibration, most: int) -> list[Indices]:
    """The samples that are moved together; a network of fixed batch takes as many as it takes."""
    if data.unit > 1:
        return [indices for group in data.groups for indices in group.batches()]
    every = np.concatenate([group.indices for group in data.groups])
    return np.array_split(every, -(-len(every) // most))


def _most(graph: Graph, wants: Sequence[Wanted], limit: int) -> int:
    """How many samples may be moved at once, as all features wait for the way back."""
    return int(np.clip(limit / 2 / max(sum(value_sizes(graph, wants)), 1), LEAST, MOST))
