"""What kind of structure each channel group is: heads, experts, hidden units, residual width.

The coupling doesn't need to know: a group is whatever must go together. People do, since they
choose what to prune in these words. The rules say which axes count heads, experts or hidden units
of a recurrent layer; a residual width and a pre-norm are seen in the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from spa_graph.coupling.analysis import Coupling
from spa_graph.coupling.relations import Axis, Product
from spa_graph.coupling.scope import Block
from spa_graph.graph import Graph, Operator

Kind = Literal["heads", "ffn", "residual", "conv", "rnn", "experts"]
"""heads: of attention, or what a head is made of; ffn: hidden widths of linear layers, and whatever
is none of the others; residual: widths that run through residual sums; conv: channels of
convolutions; rnn: hidden units of recurrent layers; experts: of a mixture."""
KINDS: tuple[Kind, ...] = get_args(Kind)

LINEAR = ("MatMul", "Einsum")
SUMS = ("Add", "Sum", "QLinearAdd", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization")


@dataclass(frozen=True, slots=True)
class Structure:
    """The kind of a channel group.

    pre_norm: a residual width that every branch normalises before it reads it. All layers of a
        pre-norm transformer share it, so that it is the last thing to take channels from.
    """

    kind: Kind
    pre_norm: bool = False


def structures(coupling: Coupling) -> list[Structure]:
    """The structure of every channel group, in their order."""
    features = _features(coupling.graph)
    operands = _residual_operands(coupling, features)
    pre_norm = set(_pre_norm_dims(coupling, features, operands))
    # A Dim may be several of these: the first one names it.
    marked: list[tuple[Kind, set[Axis]]] = [
        ("rnn", {coupling.relations.dim(axis) for axis in coupling.facts.hidden_units}),
        ("heads", _blocks(coupling, "heads")),
        ("experts", _blocks(coupling, "experts")),
        ("residual", set(_residual_dims(coupling, features, operands))),
        ("heads", set(_inside_heads(coupling))),
    ]
    found = []
    for group, dims in zip(coupling.groups, _dims_of_groups(coupling), strict=True):
        operators = (coupling.graph.operators[member.operator] for member in group.members)
        convolves = any("Conv" in operator.op_type for operator in operators)
        kinds = (kind for kind, own in marked if dims & own)
        kind = next(kinds, "conv" if convolves else "ffn")
        found.append(Structure(kind, kind == "residual" and bool(dims & pre_norm)))
    return found


def _blocks(coupling: Coupling, block: Block) -> set[Axis]:
    """The Dims that count such blocks, and those that a count is merged from: batch x heads."""
    dim = coupling.relations.dim
    found = {dim(axis) for kind, axis in coupling.facts.blocks if kind == block}
    for item in coupling.relations.items:
        if isinstance(item, Product) and dim(item.whole) in found:
            found.update(map(dim, item.factors))
    return found


def _inside_heads(coupling: Coupling) -> Iterator[Axis]:
    """The Dims that heads are made of: merged with them, or beside them in a weight."""
    dim, operators = coupling.relations.dim, coupling.graph.operators
    weights = (use for use in coupling.relations.uses if operators[use.operator].op_type in LINEAR)
    stored = {dim(axis) for use in weights for axis in use.axes}
    for own, axes in coupling.facts.inside_blocks:
        if not stored.isdisjoint(map(dim, own)):
            yield from map(dim, axes)
    blocks = _blocks(coupling, "heads")
    for item in coupling.relations.items:
        if isinstance(item, Product):
            dims = [coupling.relations.dim(axis) for axis in item.factors]
            if not blocks.isdisjoint(dims):
                yield from dims


def _dims_of_groups(coupling: Coupling) -> list[set[Axis]]:
    bounds = coupling.channels.bounds
    dims: list[set[Axis]] = [set() for _ in coupling.groups]
    for dim, own in coupling.channels.of_element.items():
        for group in np.unique(np.searchsorted(bounds, own[own >= 0], side="right") - 1).tolist():
            dims[group].add(dim)
    return dims


def _features(graph: Graph) -> list[list[str]]:
    """Per operator, its inputs that are computed from the network's inputs."""
    computed = set(graph.inputs)
    found = []
    for operator in graph.operators:
        found.append([name for name in dict.fromkeys(operator.inputs) if name in computed])
        if found[-1]:
            computed.update(name for name in operator.outputs if name not in graph.known)
    return found


def _origins(coupling: Coupling, features: list[list[str]]) -> dict[str, str]:
    """For each feature the one that it is a function of, without weights that mix channels.

    Itself, if it is a layer's result, or made of several.
    """
    computing = {cost.operator for cost in coupling.facts.costs}
    found: dict[str, str] = {}
    for operator in coupling.graph.operators:
        own = {found.get(name, name) for name in features[operator.index]}
        if len(own) == 1 and operator.index not in computing:
            found.update(dict.fromkeys(filter(None, operator.outputs), own.pop()))
    return found


def _residual_operands(coupling: Coupling, features: list[list[str]]) -> dict[str, Operator]:
    """Features that are added to what was computed from them, each with such a sum.

    Of the two operands of `x + f(x)`, x is the one that others read too. An activation function
    that is written out (`x + 0.04 x^3`) is no branch.
    """
    graph, origins = coupling.graph, _origins(coupling, features)
    readers = Counter(name for operator in graph.operators for name in set(operator.inputs))
    found = {}
    for operator in graph.operators:
        names = features[operator.index]
        if operator.op_type in SUMS and len({origins.get(name, name) for name in names}) > 1:
            found.update({name: operator for name in names if readers[name] > 1})
            if operator.op_type.startswith("Skip") and len(operator.outputs) > 3:
                found[operator.outputs[3]] = operator  # the sum itself, for the next one
    return found


def _residual_dims(
    coupling: Coupling, features: list[list[str]], operands: dict[str, Operator]
) -> Iterator[Axis]:
    """The Dims that both operands of a residual sum have in the same place."""
    relations = coupling.relations
    for operator in {sum_.index: sum_ for sum_ in operands.values()}.values():
        first, second, *_ = (relations.value(name) or () for name in features[operator.index])
        for a, b in zip(first[::-1], second[::-1], strict=False):
            if relations.dim(a) == relations.dim(b):
                yield relations.dim(a)


def _pre_norm_dims(
    coupling: Coupling, features: list[list[str]], operands: dict[str, Operator]
) -> Iterator[Axis]:
    """The Dims along which a residual operand is normalised by a branch that reads it."""
    graph, relations = coupling.graph, coupling.relations
    computing = {cost.operator for cost in coupling.facts.costs}  # a branch of its own starts there
    elementwise = {
        name: operator
        for operator in graph.operators
        if operator.index not in computing
        for name in operator.outputs
    }
    for index, axis in coupling.facts.renormalised:
        dim, operator = relations.dim(axis), graph.operators[index]
        if operator.op_type.startswith("Skip") and not operands.keys().isdisjoint(operator.outputs):
            yield dim
        reader: Operator | None = operator
        while reader is not None:  # back through the steps of a decomposed normalisation
            names = features[reader.index]
            axes = relations.value(names[0]) or () if len(names) == 1 else ()
            if dim not in map(relations.dim, axes):
                break
            if names[0] in operands:
                yield dim
                break
            reader = elementwise.get(names[0])
