"""What a criterion is, and how its numbers become one importance per channel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.analysis import ChannelGroup, Coupling, Member
from spa_graph.coupling.scope import Role
from spa_graph.errors import ModelError, OptionError
from spa_graph.passes.importance.decode import loader
from spa_graph.passes.statistics.layers import Layer
from spa_graph.passes.statistics.readers import Layers, Reader, readers

Floats = NDArray[np.float64]
Weights = NDArray[np.floating]

CHUNK = 1 << 22
"""Weights are read this many elements at a time, so that memory stays small."""


@dataclass(frozen=True, slots=True, eq=False)
class ParameterAxis:
    """One parameter axis of a group: all that a criterion sees.

    `index[c]` are the positions along `axis` of channel c, shape (channels, k). `layer` is the
    linear operator whose weight it is, with what that saw of calibration data; None if it is no
    such weight, or there is no data.
    """

    name: str
    load: Callable[[], Weights]
    axis: int
    index: NDArray[np.int64]
    role: Role
    shared: dict[str, Floats]
    """What was computed of all positions, for every group that has some of them."""
    member: Member
    layer: Layer | None = None

    @property
    def weights(self) -> Weights:
        """The whole parameter."""
        return self.load()

    def of_positions(
        self, what: str, start: float, merge: Callable[[Floats, NDArray[np.float32]], Floats]
    ) -> Floats:
        """A number per position along the axis, computed once for all groups.

        In a DenseNet, dozens of groups run through the input axis of one convolution.

        Args:
            what: a name for these numbers.
            start: what each number is at first.
            merge: the numbers and a block of weights (before, positions, behind) -> the numbers.
        """
        if what not in self.shared:
            weights = self.weights
            numbers = np.full(weights.shape[self.axis], start, np.float64)
            with np.errstate(invalid="ignore", over="ignore"):  # NaN is reported by name
                for where, block in _blocks(weights, self.axis):
                    numbers[where] = merge(numbers[where], block)
            self.shared[what] = numbers
        return self.shared[what]


def _blocks(weights: Weights, axis: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """The weights as (before, positions, behind), in pieces: (which positions, float32)."""
    shape = weights.shape
    before = int(np.prod(shape[:axis], dtype=np.int64))
    behind = int(np.prod(shape[axis + 1 :], dtype=np.int64))
    size = shape[axis]
    view = weights.reshape(before, size, behind)
    if before > 1:
        step = max(1, CHUNK // max(size * behind, 1))
        for start in range(0, before, step):
            yield slice(0, size), view[start : start + step].astype(np.float32, copy=False)
    else:
        step = max(1, CHUNK // max(behind, 1))
        for start in range(0, size, step):
            stop = min(start + step, size)
            yield slice(start, stop), view[:, start:stop].astype(np.float32, copy=False)


class Gated(Protocol):
    """A network with a gate on every channel: at 1 it is the network, at 0 without the channel."""

    @property
    def gated(self) -> NDArray[np.bool_]:
        """Which channels have a gate that does anything; (channels,)."""

    @property
    def groups(self) -> Sequence[slice]:
        """The channels of each group."""

    def distortion(self, gates: Floats) -> float:
        """How far the outputs are from those of the network, with gates (channels,)."""

    def outputs(self, gates: Floats) -> Floats:
        """All outputs as one vector, whose squared distances are distortions."""


class Criterion:
    """Base of all criteria: subclass, give it a `name`, implement `channels`.

    A criterion that `needs_data` sees only the axes along which layers read a group's channels. It
    may implement `rows` instead: the importance of what a layer reads, from `layer.moments`. What
    moments don't tell it can take from the features themselves, batch by batch: `observe`. One that
    `probes` runs the network with gates on its channels. One that `needs_gradients` is a
    `differential.FromGradients`.
    """

    name: ClassVar[str]
    needs_data: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    probes: ClassVar[bool] = False
    reads: ClassVar[bool] = False
    """Whether it looks only at the axes along which linear operators read a group's channels."""
    rounds: ClassVar[int] = 1
    """In so many steps channels are removed, each of which looks anew at what is left."""
    roles: ClassVar[frozenset[Role]] = frozenset({"weight", "scale", "table"})
    """The parameters that it looks at."""

    def channels(self, part: ParameterAxis) -> Floats:
        """The importance of each channel in one parameter axis; shape (channels,)."""
        if part.layer is None:
            raise NotImplementedError
        return part.layer.per_position(self.rows(part.layer))[part.index].sum(1)

    def rows(self, layer: Layer) -> Floats:
        """The importance of the channels that a layer reads; (groups, channels)."""
        raise NotImplementedError

    def observe(self, layer: Layer, features: NDArray[Any]) -> None:
        """Take in what a layer reads of one batch, as the network computes it."""

    def probe(self, network: Gated, progress: Callable[[int, int], None]) -> None:
        """Run the network as often as needed, for what only its outputs tell."""

    def knows(self, parameter: str) -> bool:  # noqa: ARG002
        """Whether it has numbers for a parameter."""
        return True

    def check(self) -> None:
        """Whether all that it needs was given.

        Raises:
            OptionError: it wasn't.
        """

    def group(self, found: Sequence[Reader], group: ChannelGroup) -> Floats | None:  # noqa: ARG002
        """The importance of all channels of a group at once, for criteria that need it so.

        Args:
            found: the layers that read the channels.
        """
        return None

    def finish(self, scores: Floats) -> Floats:
        """Turn a group's scores, shape (channels,), into the final ones."""
        return scores


CRITERIA: dict[str, Callable[[int], Criterion]] = {}
"""How to make each criterion, by name, from a seed."""


def criterion(cls: type[Criterion]) -> type[Criterion]:
    """Register a criterion; `seed` goes to those whose constructor takes one."""
    if cls.name in CRITERIA:
        raise ValueError(f"two criteria are called {cls.name}")
    takes_seed = "seed" in signature(cls).parameters
    CRITERIA[cls.name] = (lambda seed: cls(seed)) if takes_seed else (lambda _seed: cls())  # type: ignore[call-arg]
    return cls


def _unit(values: Floats, divisor: float) -> Floats:
    return values / divisor if divisor > 0 else values


NORMALIZERS: dict[str, Callable[[Floats], Floats]] = {
    "none": lambda v: v,
    "sum": lambda v: _unit(v, float(np.abs(v).sum())),
    "mean": lambda v: _unit(v, float(np.abs(v).mean())),
    "max": lambda v: _unit(v, float(np.abs(v).max())),
    "gaussian": lambda v: _unit(v - v.mean(), float(v.std())),
}
"""Applied to each parameter axis within its group, so that layers can be compared. An importance
may be negative: what counts is its size."""

AGGREGATES: dict[str, Callable[[Floats], Floats]] = {
    "sum": lambda m: m.sum(0),
    "mean": lambda m: m.mean(0),
    "max": lambda m: m.max(0),
    "prod": lambda m: m.prod(0),
    "l2": lambda m: np.sqrt((m**2).sum(0)),
}
"""How the vectors of a group's parameters, shape (parameters, channels), become one."""


def make_criterion(name: str, seed: int = 0) -> Criterion:
    """A criterion by its name.

    Raises:
        OptionError: there is none of this name.
    """
    _check(name, "criterion", CRITERIA)
    return CRITERIA[name](seed)


def score(
    coupling: Coupling,
    criterion: str | Criterion = "l1",
    *,
    aggregate: str = "mean",
    normalize: str = "mean",
    seed: int = 0,
    layers: Layers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Floats:
    """The importance of every coupled channel; shape (channels,).

    Args:
        criterion: its name, or the criterion itself if it has observed features.
        layers: the linear operators with what they see of calibration data, if there is any.

    Raises:
        OptionError: an unknown criterion, aggregation or normalisation.
        ModelError: a weight is NaN or infinite.
    """
    chosen = make_criterion(criterion, seed) if isinstance(criterion, str) else criterion
    _check(aggregate, "aggregate", AGGREGATES)
    _check(normalize, "normalize", NORMALIZERS)
    if chosen.needs_data and layers is None:
        raise OptionError(uncalibrated(chosen.name))
    chosen.check()
    known = layers or {}
    scores = np.zeros(coupling.count)
    shared: Shared = defaultdict(dict)
    for position, group in enumerate(coupling.groups):
        found = chosen.group(readers(known, group), group) if chosen.needs_data else None
        own = [found] if found is not None else _vectors(coupling, group, chosen, shared, known)
        vectors = [NORMALIZERS[normalize](v) for v in own]
        if vectors:
            merged = AGGREGATES[aggregate](np.stack(vectors))
            scores[group.start : group.stop] = chosen.finish(merged)
        if progress:
            progress(position + 1, len(coupling.groups))
    return scores


def uncalibrated(name: str) -> str:
    """What to say where a criterion has no samples to look at."""
    return (
        f"criterion `{name}` needs calibration data: add --calibrate FILE, or --calibrate data-free"
    )


def _check(value: str, what: str, known: Mapping[str, object]) -> None:
    if value not in known:
        raise OptionError(f"unknown {what} `{value}`; there are: {', '.join(sorted(known))}")


Shared = defaultdict[tuple[str, int], dict[str, Floats]]
"""By parameter and axis."""


def _vectors(
    coupling: Coupling, group: ChannelGroup, chosen: Criterion, shared: Shared, layers: Layers
) -> list[Floats]:
    wanted = [m for m in group.members if _sees(coupling, chosen, m, layers)]
    if not wanted:  # for example no normalisation scale, or no layer reads it: look at the weights
        chosen = CRITERIA["l1"](0) if chosen.needs_data or chosen.needs_gradients else chosen
        wanted = [m for m in group.members if _role(coupling, m) in Criterion.roles]
    vectors, seen = [], set()
    for member in wanted or group.members:
        place = (member.parameter, member.axis, member.operator * chosen.needs_data)
        if place in seen:
            continue  # a shared parameter counts once, but each layer sees other features
        seen.add(place)
        vector = chosen.channels(_parameter_axis(coupling, member, shared, layers))
        if not np.isfinite(vector).all():
            if chosen.needs_data:
                raise ModelError(
                    f"what `{member.parameter}` sees of the calibration data is NaN or infinite; "
                    "check the data and its scale"
                )
            raise ModelError(
                f"weight `{member.parameter}` holds NaN or infinity; "
                "the network is broken before pruning: export it again"
            )
        vectors.append(vector)
    return vectors


def _sees(coupling: Coupling, chosen: Criterion, member: Member, layers: Layers) -> bool:
    """Whether a criterion looks at a member of a group."""
    if chosen.needs_data:
        layer = layers.get((member.operator, member.slot))
        return layer is not None and member.axis == layer.linear.inputs
    if not chosen.knows(member.parameter):
        return False
    if chosen.reads:
        return is_read(coupling, member)
    return _role(coupling, member) in chosen.roles


def is_read(coupling: Coupling, member: Member) -> bool:
    """Whether it is the axis along which a linear operator reads."""
    return any(
        (linear.operator, linear.slots[1], linear.inputs)
        == (member.operator, member.slot, member.axis)
        for linear in coupling.facts.linears
    )


def _role(coupling: Coupling, member: Member) -> Role:
    return coupling.facts.roles.get((member.operator, member.slot), "weight")


def _parameter_axis(
    coupling: Coupling, member: Member, shared: Shared, layers: Layers
) -> ParameterAxis:
    return ParameterAxis(
        name=member.parameter,
        load=loader(coupling, member),
        axis=member.axis,
        index=member.index,
        role=_role(coupling, member),
        shared=shared[member.parameter, member.axis],
        member=member,
        layer=layers.get((member.operator, member.slot)),
    )
