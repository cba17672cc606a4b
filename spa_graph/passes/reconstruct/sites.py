"""Sites: the stored weights of linear operators, before and after pruning, that can be refitted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spa_graph.coupling.analysis import Coupling
from spa_graph.coupling.relations import Axis
from spa_graph.frontends.onnx.editor import operator_nodes
from spa_graph.frontends.onnx.pieces import is_stored
from spa_graph.frontends.onnx.weights import add_initializer, store_tensor, stored_tensor
from spa_graph.graph import Graph, Operator
from spa_graph.passes.reconstruct.addends import Addend, Uses, find_addend
from spa_graph.passes.statistics.cell_map import CellMap, linear_map
from spa_graph.passes.statistics.layers import Layer, features_axes, linear_layers, source_of
from spa_graph.passes.statistics.linear_map import LinearMap, Rows
from spa_graph.passes.statistics.readers import Layers

Kept = NDArray[np.bool_]
Array = NDArray[Any]
Place = tuple[ir.Node, int]
"""A node's input."""


@dataclass(slots=True, eq=False)
class Site:
    """One stored weight of the pruned network, and the dense layer that it came from.

    layers: its uses, of the dense network; nodes: the same of the pruned one.
    results: which of the dense results stay; (channels,).
    rows: which rows of the dense matrices stay; (groups, inputs).
    bias: where its bias is or may be put; None if it has no place.
    crops: per layer, which positions stay along axes of its features that are not summed over.
    addend: what the results are added to, if only one operator uses the weight.
    """

    name: str
    layers: list[Layer]
    nodes: list[ir.Node]
    pruned: LinearMap
    results: NDArray[np.bool_]
    rows: NDArray[np.bool_]
    bias: Place | None
    crops: list[dict[int, Kept]]
    addend: Addend | None

    @property
    def sources(self) -> list[str]:
        return [layer.source for layer in self.layers]

    @property
    def shared(self) -> bool:
        """Whether several operators use the weight (siamese branches, unrolled steps)."""
        return len(self.layers) > 1

    @property
    def reads_dense(self) -> bool:
        """Whether it is fitted on what the dense network computes.

        What the pruned one computes for it may depend on the weight itself: in later uses of a
        shared one, and in a recurrent cell.
        """
        return self.shared or self.pruned.linear.recurs

    @property
    def waits_for(self) -> str:
        """The value that has to be repaired before."""
        recurs = self.pruned.linear.recurs
        return self.layers[0].operator.inputs[0] if recurs else self.sources[0]

    @property
    def weight(self) -> ir.Value:
        value = self.nodes[0].inputs[self.pruned.linear.slots[1]]
        assert value is not None
        return value

    @property
    def matrix(self) -> Rows:
        """The weight that is left, as it is now; (groups, inputs, outputs)."""
        return self.pruned.matrix(stored_tensor(self.weight).numpy())

    @property
    def inputs_left(self) -> Rows:
        """What is left of the dense weight, with all its results; (groups, inputs, results)."""
        every = zip(self.layers[0].matrix, self.rows, strict=True)
        return np.stack([own[rows] for own, rows in every if rows.any()])

    def without_lost_inputs(self) -> Rows:
        """The dense weight, zero where it met inputs that are lost; (groups, inputs, results).

        Groups that are gone stay as they are: what they compute says what was lost behind them.
        """
        whole_groups = ~self.rows.any(1, keepdims=True)
        return np.where((self.rows | whole_groups)[:, :, None], self.layers[0].matrix, 0)

    @property
    def bias_value(self) -> ir.Value | None:
        """What stands in the place of a bias; None if nothing does, or there is no such place."""
        return None if self.bias is None else _at(self.bias)

    def without_new_bias(self) -> Site:
        """The site, which has no place for a bias unless it has one already."""
        return self if self.bias_value is not None else replace(self, bias=None)

    def left(self, matrix: Array) -> Array:
        """What is left of the dense layer's matrices (groups, inputs, outputs)."""
        results = self.layers[0].map.grouped(self.results)
        every = zip(matrix, self.rows, results, strict=True)
        return np.stack([own[rows][:, outs] for own, rows, outs in every if rows.any()])

    def cropped(self, layer: Layer, features: Array) -> Array:
        """A dense layer's features, at the positions that the pruned one has."""
        for axis, stays in self.crops[self.layers.index(layer)].items():
            features = np.compress(stays, features, axis)
        return features

    def wanted(self, layer: Layer, features: Array, positions: Array) -> Rows:
        """What the dense layer computes, in the results that stay; (groups, positions, outputs)."""
        rows = layer.map.rows(features, positions)
        if len(rows) == 1:  # what is lost needn't be computed
            flat = rows[0] @ layer.matrix[0][:, self.results]
        else:
            flat = (rows @ layer.matrix).transpose(1, 0, 2).reshape(len(positions), -1)
            flat = flat[:, self.results]
        return np.asarray(self.pruned.grouped(flat))

    def lost(self, dense: Array, pruned: Array, positions: Array) -> Rows:
        """What the results can make up for of an addend's loss; (groups, positions, outputs)."""
        assert self.addend is not None, f"{self.name} is added to nothing"
        lost = self.addend.lost(dense, pruned, self.results, positions)
        return np.asarray(self.pruned.grouped(lost))

    def seen(self, layer: Layer, features: Array, positions: Array) -> Rows:
        """What is left of what the dense layer sees; (groups, positions, inputs)."""
        rows = layer.map.rows(features, positions).transpose(1, 0, 2)[:, self.rows]
        return rows.reshape(len(positions), self.pruned.groups, -1).transpose(1, 0, 2)


Adapt = Callable[[Site], Site | None]
"""Tells what of a site may change; None if nothing."""


def anything(site: Site) -> Site:
    """All that is found may change."""
    return site


def find_sites(
    coupling: Coupling, model: ir.Model, graph: Graph, kept: Kept, adapt: Adapt = anything
) -> list[Site]:
    """The sites of a pruned network, in the order in which it computes them.

    Args:
        coupling: of the dense network.
        model, graph: the pruned one, in which these channels are `kept`.
    """
    twins = {_first_output(operator): operator for operator in graph.operators}
    nodes = operator_nodes(model, graph)
    by_weight: dict[int, list[tuple[Layer, Operator]]] = {}
    for layer in linear_layers(coupling):
        twin = twins.get(_first_output(layer.operator))
        value = nodes[twin.index].inputs[layer.linear.slots[1]] if twin is not None else None
        moved = twin is None or source_of(layer.linear, twin) != layer.source
        if twin and not moved and value is not None and value.name in graph.parameters:
            by_weight.setdefault(id(value), []).append((layer, twin))
    readers = graph.uses()
    found = (_site(coupling, graph, kept, uses, nodes, readers) for uses in by_weight.values())
    adapted = (adapt(site) for site in found if site is not None)
    return [site for site in adapted if site is not None]


def _first_output(operator: Operator) -> str:
    """An output that there is; a cell may give its last state only."""
    return next(filter(None, operator.outputs), "")


def _site(
    coupling: Coupling,
    graph: Graph,
    kept: Kept,
    uses: Sequence[tuple[Layer, Operator]],
    nodes: Sequence[ir.Node],
    readers: Uses,
) -> Site | None:
    """The site of a weight; None if it can't be changed for these uses alone, and all alike."""
    layer, twin = uses[0]
    linear = layer.linear
    pruned = linear_map(linear, twin, graph.parameters[twin.inputs[linear.slots[1]]].shape)
    results, rows = left_of(coupling, layer, kept)
    if not _belongs_to(nodes, uses) or not all(
        each.weight == layer.weight
        and each.linear[1:] == linear[1:]
        and each.map.groups == layer.map.groups
        and all(map(np.array_equal, left_of(coupling, each, kept), (results, rows)))
        for each, _ in uses[1:]
    ):
        return None
    crops = [_crops(coupling, each, kept) for each, _ in uses]
    axis = linear.result if len(uses) == 1 and not crops[0] else None
    addend = find_addend(twin.outputs[0], axis, graph, readers) if axis is not None else None
    places = [_bias(nodes[twin.index], pruned, graph) for _, twin in uses]
    return Site(
        layer.weight,
        [each for each, _ in uses],
        [nodes[other.index] for _, other in uses],
        pruned,
        results,
        rows,
        places[0] if len({_stored_in(place) for place in places}) == 1 else None,
        crops,
        addend,
    )


def _belongs_to(nodes: Sequence[ir.Node], uses: Sequence[tuple[Layer, Operator]]) -> bool:
    """Whether a weight is stored, and read by nothing but these operators."""
    places = {(id(nodes[twin.index]), layer.linear.slots[1]) for layer, twin in uses}
    layer, twin = uses[0]
    value = nodes[twin.index].inputs[layer.linear.slots[1]]
    assert value is not None
    users = {(id(use.node), use.idx) for use in value.uses()}
    return is_stored(value) and users == places and not value.is_graph_output()


def left_of(coupling: Coupling, layer: Layer, kept: Kept) -> tuple[Kept, Kept]:
    """Which of a layer's results stay, and which rows of its matrices."""
    inputs = _stays(coupling, features_axes(coupling, layer)[layer.linear.features], kept)
    results = _stays(coupling, results_axis(coupling, layer), kept)
    return results[layer.map.results], inputs[layer.map.elements]


def results_axis(coupling: Coupling, layer: Layer) -> Axis:
    """The axis of a layer's results: of what it gives, or where that stays inside, its weight's."""
    if layer.linear.result is not None:
        return (coupling.relations.value(layer.operator.outputs[0]) or ())[layer.linear.result]
    weight = coupling.relations.operand(layer.operator, layer.linear.slots[1]) or ()
    return weight[layer.linear.outputs]


def _crops(coupling: Coupling, layer: Layer, kept: Kept) -> dict[int, Kept]:
    """What stays along the axes of a layer's features that it doesn't sum over."""
    features = features_axes(coupling, layer)
    others = enumerate(features)
    stays = {axis: coupling.kept_elements(dim, kept) for axis, dim in others}
    stays.pop(len(features) + layer.linear.features)
    return {axis: some for axis, some in stays.items() if some is not None}


def _stays(coupling: Coupling, axis: int, kept: Kept) -> Kept:
    stays = coupling.kept_elements(axis, kept)
    return np.ones(coupling.size(axis), bool) if stays is None else stays


def _stored_in(place: Place | None) -> int:
    """What identifies a bias: its value, or the place where one would be put."""
    if place is None:
        return 0
    value = _at(place)
    return id(place[0]) if value is None else id(value)


def _at(place: Place) -> ir.Value | None:
    """What a node reads there, if anything."""
    node, slot = place
    return node.inputs[slot] if slot < len(node.inputs) else None


def _bias(node: ir.Node, pruned: LinearMap, graph: Graph) -> Place | None:
    """The bias of the operator itself, or that of an Add behind it: one number per result."""
    slot = pruned.linear.slots[2]
    if slot is not None:
        place = node, slot
        value = _at(place)
        if value is None:
            return place
    else:
        uses = list(node.outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type != "Add" or node.outputs[0].is_graph_output():
            return None
        place = uses[0].node, 1 - uses[0].idx
        value = place[0].inputs[place[1]]
    if value is None or value.name not in graph.parameters:
        return None
    if isinstance(pruned, CellMap) and len(value.uses()) > 1:
        return None  # it belongs to both weights of a cell, whose other uses may differ
    shape = graph.parameters[value.name].shape
    aligned = slot is not None or pruned.linear.result == -1
    own = pruned.bias(np.empty((pruned.groups, pruned.outputs))).shape
    fits = shape[-len(own) :] == own and math.prod(shape) == math.prod(own)
    return place if aligned and fits else None


# --- changing the pruned network -----------------------------------------------------------------


def set_weight(site: Site, matrix: Array) -> None:
    """Put other matrices in the place of a site's weight."""
    old = stored_tensor(site.weight)
    weight = site.pruned.weight(matrix).astype(old.dtype.numpy())
    store_tensor(site.weight, ir.Tensor(np.ascontiguousarray(weight), name=old.name))


def bias_of(site: Site) -> Array | None:
    """A site's bias, one number per result; None if it has none."""
    value = site.bias_value
    return None if value is None else stored_tensor(value).numpy().reshape(-1)


def shares_bias(site: Site) -> bool:
    """Whether other operators use a site's bias too, so that changing it takes a copy."""
    value = site.bias_value
    return value is not None and (len(value.uses()) > len(site.nodes) or value.is_graph_output())


def add_to_bias(model: ir.Model, site: Site, change: Array) -> None:
    """Add to a site's bias, (groups, outputs); one that others use too is copied first."""
    assert site.bias is not None, f"{site.name} has no place for a bias"
    node, slot = site.bias
    value = site.bias_value
    if value is None:
        dtype = stored_tensor(site.weight).dtype.numpy()
        node.resize_inputs(max(len(node.inputs), slot + 1))
        tensor = ir.Tensor(site.pruned.bias(change).astype(dtype))
        node.replace_input_with(slot, add_initializer(model, f"{site.name}.bias", tensor))
        return
    old = stored_tensor(value)
    changed = old.numpy() + site.pruned.bias(change).reshape(old.numpy().shape)
    tensor = ir.Tensor(changed.astype(old.dtype.numpy()), name=old.name)
    if shares_bias(site) or not is_stored(value):
        copy = add_initializer(model, f"{site.name}.bias", tensor)
        for user, position in _users(site, value):
            user.replace_input_with(position, copy)
    else:
        store_tensor(value, tensor)


def _users(site: Site, value: ir.Value) -> Iterator[Place]:
    """The places at which a site's operators, or the Adds behind them, read a bias."""
    slot = site.pruned.linear.slots[2]
    nodes = {id(node) for node in site.nodes}
    if slot is None:
        nodes = {id(use.node) for node in site.nodes for use in node.outputs[0].uses()}
    for use in list(value.uses()):
        if id(use.node) in nodes and slot in (None, use.idx):
            yield use.node, use.idx


def matching(sites: Sequence[Site], layers: Layers) -> Iterator[tuple[Site, Layer]]:
    """Sites whose weight is still one for all uses, with the layer that was measured."""
    for site in sites:
        slot = site.pruned.linear.slots[1]
        layer = layers.get(site.layers[0].key)
        if layer is not None and all(node.inputs[slot] is site.weight for node in site.nodes):
            yield site, layer
