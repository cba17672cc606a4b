"""Calibration samples made from the network alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from spa_graph.errors import OptionError
from spa_graph.graph import Graph
from spa_graph.runtime.calibration import matching, noise, sampling
from spa_graph.runtime.calibration.batches import (
    Calibration,
    Group,
    Indices,
    Kind,
    batch_size,
    in_units,
)
from spa_graph.runtime.calibration.images import image_shape
from spa_graph.runtime.calibration.looks import (
    BYTES,
    PLAIN,
    STANDARDISED,
    Look,
    image_looks,
    mixes,
    scales,
    sound_looks,
)
from spa_graph.runtime.calibration.matching import Layer, Probe
from spa_graph.runtime.calibration.roles import Role, role
from spa_graph.runtime.calibration.wanted import Array, Wanted
from spa_graph.runtime.inputs import Feeds, table_size

METHODS = ("structured", "gaussian", "uniform", "matched")
STRUCTURED = ("structured", "matched")
"""What looks like images, sounds, sequences; `matched` is moved from there, by whoever can."""
TRIED = 8
"""Each look is judged by so many samples."""
_FEW_KINDS = 4
"""Tables of at most so many rows tell segments apart; everything is of the first."""


class Synthetic:
    """Makes samples by their number: a sample is always the same, whatever batch it is in."""

    def __init__(
        self,
        graph: Graph,
        wants: Sequence[Wanted],
        method: str,
        looks: Mapping[str, Look],
        seed: int,
    ) -> None:
        self._wants, self._seed = tuple(wants), seed
        self._makers = {
            want.name: _maker(graph, want, role(graph, want), method, looks.get(want.name))
            for want in wants
        }

    def read(self, indices: Indices) -> Feeds:
        """Feeds for one run."""
        return {
            want.name: self._make(number, want, indices) for number, want in enumerate(self._wants)
        }

    def _make(self, number: int, want: Wanted, indices: Indices) -> Array:
        shape, make = list(want.nominal), self._makers[want.name]
        if want.axis is None:
            return make(tuple(shape), self._rng(number, 0)).astype(want.dtype)
        del shape[want.axis]
        rows = [make(tuple(shape), self._rng(number, index)) for index in indices.tolist()]
        return np.stack(rows, axis=want.axis).astype(want.dtype)

    def _rng(self, number: int, index: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, number, index])


Maker = Callable[[tuple[int, ...], np.random.Generator], Array]


def _maker(graph: Graph, want: Wanted, kind: Role, method: str, look: Look | None) -> Maker:
    """What makes one sample of an input, of its shape without the sample axis."""
    if kind == "tokens":
        return _token_maker(want, _vocabulary(graph, want))
    if kind in ("mask", "flag"):
        return lambda shape, _: np.ones(shape)
    if kind == "state":
        return lambda shape, _: np.zeros(shape)
    if method == "gaussian" and want.floating:
        return lambda shape, rng: rng.standard_normal(shape)
    if method == "uniform" and want.floating:
        return lambda shape, rng: rng.random(shape)
    if kind == "image":
        return _image_maker(want, look or (STANDARDISED if want.floating else BYTES))
    if kind == "sound":
        return _sound_maker(look or PLAIN)
    if kind == "texture":
        return noise.texture
    return lambda shape, rng: rng.standard_normal(shape)


def _vocabulary(graph: Graph, want: Wanted) -> int:
    return table_size(graph, want.name) or 1


def draws_tokens(graph: Graph, wants: Iterable[Wanted]) -> bool:
    """Whether samples that are made from the network alone are drawn from a vocabulary.

    Not those of which a part is more than that: images beside a label.
    """
    roles = {want: role(graph, want) for want in wants}
    if {"image", "sound"} & {*roles.values()}:
        return False
    drawn = [
        want
        for want, kind in roles.items()
        if kind == "tokens" and _vocabulary(graph, want) > _FEW_KINDS
    ]
    return not all(map(_is_position, drawn))


def _is_position(want: Wanted) -> bool:
    return "position" in want.name.lower()


def _token_maker(want: Wanted, vocabulary: int) -> Maker:
    """Uniform over the vocabulary: drawing few tokens often, as texts do, measured no better."""
    if vocabulary <= _FEW_KINDS:
        return lambda shape, _: np.zeros(shape)
    if _is_position(want):
        return lambda shape, _: np.broadcast_to(np.arange(shape[-1]) % vocabulary, shape)
    return lambda shape, rng: rng.integers(0, vocabulary, shape)


def _image_maker(want: Wanted, look: Look) -> Maker:
    kind = image_shape(want)
    assert kind is not None
    names, weights = list(look.mix), np.array(list(look.mix.values()))
    offset, gain = (np.array(each)[:, None, None] for each in (look.offset, look.gain))

    def make(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        chosen = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        made = offset + gain * noise.IMAGES[chosen]((kind.channels, kind.height, kind.width), rng)
        return (made.transpose(1, 2, 0) if kind.layout == "nhwc" else made).reshape(shape)

    return make


def _sound_maker(look: Look) -> Maker:
    def make(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        channels = int(np.prod(shape[:-1], dtype=int))
        made = look.offset[0] + look.gain[0] * noise.sound((channels, shape[-1]), rng)
        return made.reshape(shape)

    return make


# --- the whole -----------------------------------------------------------------------------------


def method_named(method: str) -> str:
    """One of METHODS; the first if none is named.

    Raises:
        OptionError: there is no such method.
    """
    if method and method not in METHODS:
        raise OptionError(f"data-free:{method}: choose among {', '.join(METHODS)}")
    return method or METHODS[0]


def data_free(
    graph: Graph,
    wants: tuple[Wanted, ...],
    method: str,
    *,
    samples: int,
    seed: int,
    batch: int | None,
    probe: Probe | None = None,
) -> Calibration:
    """Samples made from the network alone.

    Args:
        method: one of METHODS, or empty for the first.
        probe: runs the network; without it, images and sounds are standardised and tokens random.

    Raises:
        OptionError: there is no such method.
    """
    method = method_named(method)
    size, unit = batch_size(graph, wants, batch)
    groups = (Group(in_units(np.arange(samples), unit), size),)
    looks: dict[str, Look] = {}
    if probe is not None and method in STRUCTURED:
        looks = _choose_looks(graph, wants, probe, seed, unit)
    made = Synthetic(graph, wants, method, looks, seed)
    label = f"data-free: {_described(graph, wants, method, looks)}"
    found = sampling.decoder(graph, wants, probe) if method in STRUCTURED and probe else None
    if probe is None or found is None:
        kind: Kind = "random tokens" if draws_tokens(graph, wants) else "data-free"
        return Calibration(label, kind, made, groups, unit, seed)
    reader = sampling.Sampled(made, found, groups[0], probe, seed)
    label = "data-free: sequences sampled from the network"
    return Calibration(label, "data-free", reader, groups, unit, seed)


def _described(
    graph: Graph, wants: Sequence[Wanted], method: str, looks: Mapping[str, Look]
) -> str:
    """What is made, and what was found out about the network's inputs."""
    kinds = dict.fromkeys(filter(None, (_kind(want, role(graph, want)) for want in wants)))
    chosen = "".join(f", {look.name}" for look in looks.values())
    return f"{method} {' and '.join(kinds) or 'noise'}{chosen}"


def _kind(want: Wanted, kind: Role) -> str | None:
    """What is made for an input; of images their size as well, which may be a guess."""
    shape = image_shape(want)
    if kind == "image" and shape:
        return f"images of {shape.height} x {shape.width}"
    return {"sound": "sounds", "tokens": "tokens"}.get(kind)


# --- the scale and kind of images and sounds -----------------------------------------------------


def _choose_looks(
    graph: Graph, wants: Sequence[Wanted], probe: Probe, seed: int, unit: int
) -> dict[str, Look]:
    """For each image or sound, the look whose inner statistics are most as in training."""
    layers, chosen = matching.layers(graph), dict[str, Look]()
    for want in wants if layers else ():
        kind = role(graph, want)
        if kind not in ("image", "sound") or not want.floating:
            continue
        search = _Search(graph, wants, want.name, chosen, layers, probe, seed, unit)
        shape = image_shape(want)
        looks = image_looks(shape.channels) if kind == "image" and shape else sound_looks()
        best = search.best(looks)
        if layers[0].mean is not None:  # what is folded doesn't tell as much
            if kind == "image":
                best = search.best(mixes(best))
            best = search.best(scales(best))
        chosen[want.name] = best
    return chosen


class _Search:
    """Judges looks of one input."""

    def __init__(
        self,
        graph: Graph,
        wants: Sequence[Wanted],
        name: str,
        others: Mapping[str, Look],
        layers: Sequence[Layer],
        probe: Probe,
        seed: int,
        unit: int,
    ) -> None:
        self._graph, self._wants, self._name, self._others = graph, wants, name, dict(others)
        self._layers, self._probe, self._seed, self._unit = layers, probe, seed, unit

    def best(self, looks: Iterable[Look]) -> Look:
        """The look of the smallest distance; the first of equals."""
        return min(looks, key=self._distance)

    def _distance(self, look: Look) -> float:
        distance = matching.distance(self._layers, self._batches(look), self._probe)
        return distance if np.isfinite(distance) else np.inf

    def _batches(self, look: Look) -> Iterator[Feeds]:
        looks = {**self._others, self._name: look}
        made = Synthetic(self._graph, self._wants, METHODS[0], looks, self._seed)
        size = self._unit if self._unit > 1 else batch_size(self._graph, self._wants)[0]
        yield from map(made.read, Group(in_units(np.arange(TRIED), self._unit), size).batches())
