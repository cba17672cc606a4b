"""Probing: running changed copies of a network on few samples, next to the original."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spa_graph.frontends.onnx.editor import operator_nodes
from spa_graph.frontends.onnx.gating import insert_gate
from spa_graph.frontends.onnx.pieces import piece
from spa_graph.passes.network import Analysis
from spa_graph.passes.statistics.distortion import Outputs, distortion, spread
from spa_graph.passes.statistics.padding import Padding, blanked
from spa_graph.passes.statistics.readers import Layers
from spa_graph.runtime.calibration import Calibration
from spa_graph.runtime.sessions import Feeds, Session, open_session, run

Floats = NDArray[np.float64]


def few(data: Calibration, wanted: int) -> Calibration:
    """About so many of the samples, if there are more."""
    return data.split(wanted / data.count)[0] if wanted < data.count else data


def open_whole(analysis: Analysis, model: ir.Model, feeds: Feeds) -> Session:
    """A session of a changed copy of the network that takes these inputs."""
    nodes = [node for node in model.graph if node.op_type != "Constant"]
    kinds = {name: (array.dtype, array.ndim) for name, array in feeds.items()}
    return open_session(piece(model, nodes, kinds, analysis.graph.outputs))


class Gates:
    """The network with a gate on every channel, at each linear layer that sums over it.

    Those layers read gate x channel: as if their weights that meet the channel were scaled. With
    gates of 1 and 0 it is the network whose linear layers don't see some channels.

    gated: which channels such a layer reads; the gates of others are without effect; (channels,).
    """

    def __init__(
        self,
        analysis: Analysis,
        layers: Layers,
        batches: Iterable[Feeds],
        padding: Padding | None = None,
    ) -> None:
        coupling = analysis.coupling
        self.groups = [slice(group.start, group.stop) for group in analysis.groups]
        self.gated = np.zeros(coupling.count, bool)
        self._batches = list(batches)
        self._padding = padding
        self._inputs: dict[str, tuple[NDArray[np.int64], tuple[int, ...], np.dtype]] = {}
        model = analysis.model.clone()
        nodes = operator_nodes(model, analysis.graph)
        for layer in layers.values():
            slot, weight = layer.linear.slots[:2]
            if layer.linear.recurs:  # no place for a gate: a cell's state stays inside
                continue
            axes = coupling.relations.operand(layer.operator, weight) or ()
            features = coupling.relations.operand(layer.operator, slot) or ()
            channels = coupling.channel_of(features[layer.linear.features])
            if channels is not None and coupling.channel_of(axes[layer.linear.inputs]) is not None:
                name = insert_gate(model, nodes[layer.operator.index], slot)
                shape = (-1, *(1,) * (-1 - layer.linear.features))
                dtype = analysis.graph.parameters[layer.weight].dtype
                self._inputs[name] = channels, shape, dtype
                self.gated[channels[channels >= 0]] = True
        whole = np.ones(coupling.count)
        self._session = open_whole(analysis, model, self._feeds(self._batches[0], whole))
        self._want = self._run(whole)
        spreads = [
            spread(batches) if batches[0].dtype.kind == "f" else 0.0
            for batches in zip(*self._want, strict=True)
        ]
        number = sum(batch.dtype.kind == "f" for batch in self._want[0])
        self._scales = [(s * number) ** -0.5 if s > 0 else 0.0 for s in spreads]

    def distortion(self, gates: Floats) -> float:
        """The outputs' distortion with these gates, (channels,); inf if they can't be compared."""
        found = distortion(self._want, self._run(gates))
        return found if np.isfinite(found) else np.inf

    def outputs(self, gates: Floats) -> Floats:
        """All outputs on all samples as one vector, scaled.

        The squared distance to that of gates of 1 is the distortion, where outputs vary.
        """
        return np.concatenate(
            [
                output.astype(np.float64).reshape(-1) * scale
                for batch in self._run(gates)
                for output, scale in zip(batch, self._scales, strict=True)
                if scale
            ]
            or [np.zeros(0)]
        )

    def _feeds(self, feeds: Feeds, gates: Floats) -> Mapping[str, NDArray[np.generic]]:
        opened = np.append(gates, 1.0)  # a channel of -1 is frozen
        own = {
            name: opened[channels].reshape(shape).astype(dtype)
            for name, (channels, shape, dtype) in self._inputs.items()
        }
        return {**feeds, **own}

    def _run(self, gates: Floats) -> Outputs:
        return [
            blanked(self._padding, feeds, run(self._session, self._feeds(feeds, gates)))
            for feeds in self._batches
        ]
