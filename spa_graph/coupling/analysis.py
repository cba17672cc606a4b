"""`analyze`: a graph -> its coupled channels, and what must follow when they are removed."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling import rules as _rules  # noqa: F401  (registers every rule)
from spa_graph.coupling import rules_aten as _rules_aten  # noqa: F401
from spa_graph.coupling.exactness import Exactness
from spa_graph.coupling.guide import Guide, keep_to, only_guided
from spa_graph.coupling.positions import follow
from spa_graph.coupling.registry import find_rule
from spa_graph.coupling.relations import Axis, Relations
from spa_graph.coupling.rules.shape import copied_axes
from spa_graph.coupling.scope import Block, Facts, Scope
from spa_graph.coupling.solver import Channels, solve, without
from spa_graph.graph import Graph, Known, Operator

Ints = NDArray[np.int64]
NOTHING: Ints = np.zeros(0, np.int64)


@dataclass(slots=True, eq=False)
class Member:
    """One parameter axis of a channel group.

    `index[c]` are the positions along `axis` that go with channel c: shape (channels, k).
    """

    parameter: str
    operator: int
    slot: int
    axis: int
    index: Ints


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroup:
    """Coupled channels that run through the same Dims; `start : stop` are their numbers.

    `least`: how many of them must stay.
    """

    name: str
    start: int
    stop: int
    members: tuple[Member, ...]
    exactness: Exactness
    least: int = 1

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def exact(self) -> bool:
        """Whether removing any of the channels equals zeroing its weights."""
        return bool(self.exactness.exact[self.start : self.stop].all())


@dataclass(slots=True, eq=False)
class Coupling:
    """The result of the analysis. A *kept* vector has one boolean per channel."""

    graph: Graph
    relations: Relations
    facts: Facts
    channels: Channels
    exactness: Exactness
    groups: list[ChannelGroup]
    guide: Axis | None = None
    """The axis of the channels of the guide that the analysis kept to."""

    @property
    def count(self) -> int:
        """How many coupled channels there are."""
        return int(self.channels.bounds[-1])

    def size(self, axis: Axis) -> int:
        """The size of an axis before pruning, in the nominal probe; 1 if it depends on data."""
        return max(self.relations.extent(axis).nominal, 1)

    def channel_of(self, axis: Axis) -> Ints | None:
        """The channel of each element of an axis (-1: frozen), or None if none can go."""
        return self.channels.of_element.get(self.relations.dim(axis))

    def kept_elements(self, axis: Axis, kept: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        """Which elements of an axis stay, or None if all do."""
        channel = self.channel_of(axis)
        if channel is None:
            return None
        stays = np.append(kept, True)[channel]
        return None if stays.all() else stays

    @property
    def frozen_reasons(self) -> dict[str, str]:
        """Parameter axes that can't be pruned, as `name:axis`, with the reason."""
        return {
            f"{use.parameter}:{position}": reason
            for use in self.relations.uses
            for position, axis in enumerate(use.axes)
            if (reason := self.relations.reason(axis)) and self.size(axis) > 1
        }


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause Python's search for cycles, which many thousand live tuples would start again and again
    for nothing: a tenth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_collection()
def analyze(
    graph: Graph,
    exclude: Mapping[str, str] | None = None,
    *,
    only_exact: bool = False,
    within: Collection[Block] = (),
    guide: Guide | None = None,
) -> Coupling:
    """Find the channel groups of a graph.

    Args:
        graph: the network.
        exclude: parameters that must stay as they are, each with the reason.
        only_exact: keep only channels whose removal equals zeroing their weights.
        within: blocks that keep their number; what they are made of is pruned instead.
        guide: the channels of another view of the network, which these must be unions of.
    """
    inseparable: set[Axis] = set()
    while True:
        relations, facts = _relate(graph, exclude or {}, within, inseparable)
        axis = keep_to(relations, guide) if guide is not None else None
        channels = solve(relations, _reach_parameter(relations))
        tied = _tied_blocks(relations, facts, channels)
        if not tied:
            break
        inseparable |= tied
    unused = _unused(relations, channels)
    if unused.any():
        channels = without(channels, unused)
    if axis is not None:
        channels = only_guided(channels, channels.of_element.get(relations.dim(axis), NOTHING))
    exactness = Exactness(graph, relations, facts, channels)
    if only_exact and not exactness.exact.all():
        channels = without(channels, ~exactness.exact)
        exactness = Exactness(graph, relations, facts, channels)
    groups = _groups(relations, channels, exactness, _least(relations, facts, channels))
    return Coupling(graph, relations, facts, channels, exactness, groups, axis)


def _relate(
    graph: Graph, exclude: Mapping[str, str], within: Collection[Block], inseparable: set[Axis]
) -> tuple[Relations, Facts]:
    """What the rules say of every operator, and what is frozen besides."""
    relations, facts = Relations(graph), Facts(stored={"", *graph.parameters})
    for operator in graph.operators:
        _apply_rule(operator, relations, facts)
    _freeze_but_experts(relations, facts)
    _freeze_interface(graph, relations, facts)
    for name, reason in exclude.items():
        _freeze_parameter(relations, name, reason)
    for block, axis in facts.blocks:
        if block in within:
            relations.freeze((axis,), f"{block} are pruned within")
    relations.freeze(inseparable, "blocks that are all tied together are pruned within")
    return relations, facts


def _reach_parameter(relations: Relations) -> set[Axis]:
    """The Dims that a weight has."""
    return {
        relations.dim(axis)
        for use in relations.uses
        if relations.graph.parameters[use.parameter].dtype.kind not in "?US"
        for axis in use.axes
    }


def _tied_blocks(relations: Relations, facts: Facts, channels: Channels) -> set[Axis]:
    """Blocks of which none can leave without all others (groups between channel shuffles).

    The axes of a network are numbered alike each time that it is analysed.
    """
    found = {axis: channels.of_element.get(relations.dim(axis)) for _, axis in facts.blocks}
    return {
        axis
        for axis, own in found.items()
        if own is not None and own[0] >= 0 and (own == own[0]).all()
    }


def _unused(relations: Relations, channels: Channels) -> NDArray[np.bool_]:
    """Channels that no value has: parts of a constant that nobody takes out."""
    graph, dim = relations.graph, relations.dim
    unused = np.zeros(int(channels.bounds[-1]), bool)
    for use in relations.uses:
        if graph.operators[use.operator].op_type in ("Slice", "Split", "Gather"):
            for axis in use.axes:
                own = channels.of_element.get(dim(axis), NOTHING)
                unused[own[own >= 0]] = True
    if unused.any():
        outputs = (name for operator in graph.operators for name in operator.outputs if name)
        dims = {dim(axis) for name in outputs for axis in relations.value(name) or ()}
        for value in dims:
            own = channels.of_element.get(value, NOTHING)
            unused[own[own >= 0]] = False
    return unused


def _freeze_but_experts(relations: Relations, facts: Facts) -> None:
    experts = {relations.dim(axis) for block, axis in facts.blocks if block == "experts"}
    ranked = {*facts.ranked.values()}
    for axis, (operator, why) in facts.only_experts:
        if relations.dim(axis) not in experts:
            reason = f"{why}; only experts that one weight stacks can go"
            if axis in ranked:
                reason += ": one that is a module of its own would take its operators with it"
            relations.freeze((axis,), operator, reason)
    for axis, computed in facts.computed_with:
        relations.freeze((axis,), *computed)


def _apply_rule(operator: Operator, relations: Relations, facts: Facts) -> None:
    graph = relations.graph
    outputs = [name for name in operator.outputs if name]
    if facts.stored.issuperset(operator.inputs) and not operator.captures:
        facts.stored.update(outputs)
    known = all(map(graph.known.__contains__, outputs))
    if known:
        wide = not relations.narrow.issuperset(operator.inputs + operator.outputs)
        if wide:
            _freeze_known(operator, relations, facts)
        if all(graph.known[name].nominal.dtype.kind in "iub" for name in outputs):
            return _freeze_integers(operator, relations, facts)  # no features pass here
    elif not graph.known.keys().isdisjoint(operator.inputs):
        _freeze_sizes_used_as_numbers(operator, relations, facts)
    scope = Scope(operator, relations, facts)
    rule, reason = find_rule(operator)
    if rule is None or reason:
        if not known:  # else there is nothing to report
            scope.freeze_all(reason or f"no rule for {operator.kind}")
    elif unshaped := _unshaped(operator, graph):
        scope.freeze_all(f"unknown shape of `{unshaped}` ({graph.unshaped[unshaped]})")
    else:
        rule(scope)
    _freeze_integers(operator, relations, facts)
    scope.freeze_unmentioned()
    follow(scope)


def _unshaped(operator: Operator, graph: Graph) -> str | None:
    """An operand of unknown shape."""
    if not graph.unshaped:
        return None
    return next((n for n in operator.inputs + operator.outputs if n in graph.unshaped), None)


def _freeze_integers(operator: Operator, relations: Relations, facts: Facts) -> None:
    """Integer constants are positions, sizes or codes, unless they are quantised weights.

    Those are narrow, or the rule gave them a role (the int32 bias of a quantised convolution).
    """
    if relations.integers.isdisjoint(operator.inputs):
        return
    for slot, name in enumerate(operator.inputs):
        if name not in relations.integers:
            continue
        dtype = relations.graph.parameters[name].dtype
        quantised = dtype.kind != "b" and dtype.itemsize < 4
        if not quantised and facts.roles.get((operator.index, slot), "table") == "table":
            axes = relations.operand(operator, slot) or ()
            relations.freeze(axes, operator, "holds positions or sizes")


CASTS = frozenset({"Cast", "CastLike", "Identity"})


def _freeze_known(operator: Operator, relations: Relations, facts: Facts) -> None:
    """Values that follow from shapes are data about axes, not features.

    One repeated value (zeros, ones) can still take any size that its consumers need; the operator's
    rule says how that size comes about. So can an axis that repeats a value, also in another type.
    Most of these values are single numbers, which have nothing to freeze.
    """
    why = (operator, "is computed from sizes and constants")
    for name in filter(None, operator.outputs):
        if relations.graph.known[name].uniform:
            continue
        if operator.op_type in CASTS and operator.inputs[0] in facts.copies:
            copied = relations.operand(operator, 0) or ()
            relations.same(copied, relations.value(name) or (), operator)
            facts.copies[name] = facts.copies[operator.inputs[0]]
            continue
        if operator.op_type == "Expand":
            axes, copied = relations.value(name) or (), relations.operand(operator, 0) or ()
            free = {*copied_axes(relations, copied, axes)}
            relations.freeze([axis for axis in axes if axis not in free], *why)
            facts.copies[name] = operator.inputs[0]
        elif name not in relations.narrow:
            relations.freeze(relations.value(name) or (), *why)
        if operator.op_type not in ("Shape", "Size"):
            for slot, operand in enumerate(operator.inputs):
                if operand not in relations.narrow:
                    relations.freeze(relations.operand(operator, slot) or (), *why)


# Inputs that hold sizes: what they name may change, the rewriting puts the new sizes in.
SIZE_SLOTS = {
    "Reshape": (1,), "Expand": (1,), "Slice": (1, 2), "Split": (1,), "ConstantOfShape": (0,),
    "Resize": (3,), "Upsample": (1,), "Tile": (1,),
}  # fmt: skip


def _freeze_sizes_used_as_numbers(operator: Operator, relations: Relations, facts: Facts) -> None:
    """`x / sqrt(x.shape[1])` computes with a size: removing channels would change its value.

    How many copies there are of a number doesn't.
    """
    for slot, name in enumerate(operator.inputs):
        known: Known | None = relations.graph.known.get(facts.copies.get(name, name))
        if known is not None and slot not in SIZE_SLOTS.get(operator.op_type, ()):
            _freeze_origins(relations, known, operator, "computes with the size of this axis")


def _freeze_interface(graph: Graph, relations: Relations, facts: Facts) -> None:
    for kind, names in (("input", graph.inputs), ("output", graph.outputs)):
        for name in names:
            _freeze_value(relations, facts, name, f"is graph {kind} `{name}`")
    for operator in graph.operators:
        for name in operator.captures:
            _freeze_value(relations, facts, name, f"is used inside a subgraph of {operator}")


def _freeze_value(relations: Relations, facts: Facts, name: str, reason: str) -> None:
    """A value that others see must stay as it is, and so must what it was made of.

    Those are the sizes that it was computed from, and the axis that it holds positions in.
    """
    if name in facts.positions:
        relations.freeze((facts.positions[name],), f"positions in this axis: {reason}")
    known = relations.graph.known.get(name)
    if known is not None:
        _freeze_origins(relations, known, reason)
    if name not in relations.graph.parameters:
        relations.freeze(relations.value(name) or (), reason)
    _freeze_parameter(relations, name, reason)


def _freeze_origins(relations: Relations, known: Known, *why: object) -> None:
    """The axes whose sizes a number was computed from."""
    if not known.fill:
        relations.freeze(relations.origins(known), *why)


def _freeze_parameter(relations: Relations, name: str, reason: str) -> None:
    for use in relations.uses:
        if use.parameter == name:
            relations.freeze(use.axes, reason)


def _least(relations: Relations, facts: Facts, channels: Channels) -> list[int]:
    """How many channels of each group stay, so that enough elements of every ranked axis do.

    If an axis runs through several groups, each keeps its share.
    """
    sizes = np.diff(channels.bounds)
    least = np.ones_like(sizes)
    for axis, count in facts.least:
        own = channels.of_element.get(relations.dim(axis), NOTHING)
        groups = np.unique(np.searchsorted(channels.bounds, own[own >= 0], side="right") - 1)
        least[groups] = np.maximum(least[groups], -(-sizes[groups] * count // max(len(own), 1)))
    return np.minimum(least, sizes).tolist()


def _groups(
    relations: Relations, channels: Channels, exactness: Exactness, least: list[int]
) -> list[ChannelGroup]:
    index = _index_matrices(channels)
    members: list[list[Member]] = [[] for _ in range(len(channels.bounds) - 1)]
    dim = relations.dim
    for use in sorted(relations.uses, key=itemgetter(1, 2)):  # by operator and slot
        for position, axis in enumerate(use.axes):
            for group, matrix in index.get(dim(axis), ()):
                member = Member(use.parameter, use.operator, use.slot, position, matrix)
                members[group].append(member)
    names = _group_names(members, relations.graph.operators)
    bounds = pairwise(channels.bounds.tolist())
    return [
        ChannelGroup(name, start, stop, tuple(own), exactness, few)
        for name, (start, stop), own, few in zip(names, bounds, members, least, strict=True)
    ]


IndexMatrices = dict[Axis, list[tuple[int, Ints]]]
"""For each Dim: its groups, with the elements of each channel, (channels, k)."""


def _index_matrices(channels: Channels) -> IndexMatrices:
    """Most Dims are one whole group, channel by channel or in a pattern that other layers have too:
    equal patterns share one array."""
    every = np.arange(max(map(len, channels.of_element.values()), default=0))[:, None]
    bounds = channels.bounds.tolist()
    group_of = {start: group for group, start in enumerate(bounds)}
    patterns: dict[tuple[int, bytes], Ints] = {}
    found: IndexMatrices = {}
    others: dict[Axis, Ints] = {}
    for dim, own in channels.of_element.items():
        start, size = int(own[0]), len(own)
        group = group_of.get(start, -1)
        if group_of.get(start + size) == group + 1 > 0 and (own[1:] - own[:-1] == 1).all():
            found[dim] = [(group, every[:size])]
        elif group < 0 or own.min() < start or own.max() >= bounds[group + 1]:
            others[dim] = own
        else:
            width, pattern = bounds[group + 1] - start, own - start
            key = width, pattern.tobytes()
            if key not in patterns:
                patterns[key] = np.argsort(pattern, kind="stable").reshape(width, -1)
            found[dim] = [(group, patterns[key])]
    if others:
        found |= _sorted_elements(others, channels.bounds)
    return found


def _sorted_elements(of_element: dict[Axis, Ints], bounds: Ints) -> IndexMatrices:
    """The elements of all Dims sorted by Dim and channel, and cut where Dim or group change."""
    dims, widths = list(of_element), np.diff(bounds)
    sizes = [len(own) for own in of_element.values()]
    channel = np.concatenate(list(of_element.values()))
    living = np.flatnonzero(channel >= 0)
    channel = channel[living]
    dim = np.repeat(np.arange(len(dims)), sizes)[living]
    element = np.concatenate([np.arange(size) for size in sizes])[living]
    key = dim * (bounds[-1] + 1) + channel
    if (np.diff(key) < 0).any():
        order = np.argsort(key, kind="stable")
        element, channel, dim = element[order], channel[order], dim[order]
    place = dim * len(widths) + np.repeat(np.arange(len(widths)), widths)[channel]
    cuts = np.flatnonzero(np.diff(place, prepend=-1, append=-1))
    found: IndexMatrices = {}
    for start, stop in pairwise(cuts.tolist()):
        at, own = divmod(int(place[start]), len(widths))
        matrix = element[start:stop].reshape(widths[own], -1)
        found.setdefault(dims[at], []).append((own, matrix))
    return found


def _group_names(members: list[list[Member]], operators: list[Operator]) -> list[str]:
    """The parameter axis that produces each group's channels, as people would point at it.

    Where an exporter merged equal weights, several groups have the same first parameter: then the
    operator that uses it is named too. Where an axis holds several groups, so is the first
    position.
    """
    firsts = [next((m for m in own if m.axis != 1), own[0]) for own in members]
    names = [f"{first.parameter}:{first.axis}" for first in firsts]
    users: dict[str, set[int]] = {}
    for name, first in zip(names, firsts, strict=True):
        users.setdefault(name, set()).add(first.operator)
    places = Counter((name, first.operator) for name, first in zip(names, firsts, strict=True))
    return [
        name
        + (f"[{first.index.min()}:]" if places[name, first.operator] > 1 else "")
        + (f" in {operators[first.operator].name}" if len(users[name]) > 1 else "")
        for name, first in zip(names, firsts, strict=True)
    ]
