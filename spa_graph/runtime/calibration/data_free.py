"""Calibration samples made from the network alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from spa_graph.errors import OptionError
from spa_graph.graph import Graph
from spa_graph.runtime.calibration import noise
from spa_graph.runtime.calibration.batches import Calibration, Group, Indices, batch_size, in_units
from spa_graph.runtime.calibration.images import image_shape
from spa_graph.runtime.calibration.roles import Role, role
from spa_graph.runtime.calibration.wanted import Array, Wanted
from spa_graph.runtime.inputs import Feeds, table_size

METHODS = ("structured", "gaussian", "uniform")


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """How made-up images and sounds look to the network: `x = offset + gain * u`.

    offset, gain: one number, or one per channel; u is an image in [0, 1] or a sound of deviation 1.
    mix: how often each kind of image is drawn.
    """

    name: str
    offset: tuple[float, ...] = (0.0,)
    gain: tuple[float, ...] = (1.0,)
    mix: Mapping[str, float] = field(default_factory=lambda: noise.IMAGE_MIX)


# Mean and deviation of the images that `noise` makes, all pixels alike.
_MEAN, _DEVIATION = 0.48, 0.25
STANDARDISED = Look("standardised", (-_MEAN / _DEVIATION,), (1 / _DEVIATION,))
PLAIN = Look("as it is")


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
        vocabulary = table_size(graph, want.name) or 1
        if method == "structured":
            return lambda shape, rng: noise.tokens(shape, vocabulary, rng)
        return lambda shape, rng: rng.integers(0, vocabulary, shape)
    if kind in ("mask", "flag"):
        return lambda shape, _: np.ones(shape)
    if kind == "state":
        return lambda shape, _: np.zeros(shape)
    if kind == "image" and not want.floating:
        look = Look("bytes", (0.0,), (255.0,), look.mix if look else noise.IMAGE_MIX)
    if method == "gaussian":
        return lambda shape, rng: rng.standard_normal(shape)
    if method == "uniform":
        return lambda shape, rng: rng.random(shape)
    if kind == "image":
        return _image_maker(want, look or STANDARDISED)
    if kind == "sound":
        return _sound_maker(look or PLAIN)
    if kind == "texture":
        return noise.texture
    return lambda shape, rng: rng.standard_normal(shape)


def _image_maker(want: Wanted, look: Look) -> Maker:
    kind = image_shape(want)
    assert kind is not None
    names, weights = list(look.mix), np.array(list(look.mix.values()))
    offset, gain = (np.array(each)[:, None, None] for each in (look.offset, look.gain))

    def make(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        if len(shape) == 4:  # no sample axis
            shape = shape[1:]
        chosen = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        made = offset + gain * noise.IMAGES[chosen]((kind.channels, kind.height, kind.width), rng)
        return made.transpose(1, 2, 0) if kind.layout == "nhwc" else made

    return make


def _sound_maker(look: Look) -> Maker:
    def make(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        channels = shape[0] if len(shape) == 2 else 1
        made = look.offset[0] + look.gain[0] * noise.sound((channels, shape[-1]), rng)
        return made.reshape(shape)

    return make


def data_free(
    graph: Graph,
    wants: tuple[Wanted, ...],
    method: str,
    *,
    samples: int,
    seed: int,
    batch: int | None,
) -> Calibration:
    """Samples made from the network alone.

    Raises:
        OptionError: there is no such method.
    """
    method = method or METHODS[0]
    if method not in METHODS:
        raise OptionError(f"data-free:{method}: choose among {', '.join(METHODS)}")
    size, unit = batch_size(graph, wants, batch)
    reader = Synthetic(graph, wants, method, {}, seed)
    indices = in_units(np.arange(samples), unit)
    label = f"data-free: {_described(graph, wants, method)}"
    return Calibration(label, "data-free", reader, (Group(indices, size),), unit, seed)


def _described(graph: Graph, wants: Sequence[Wanted], method: str) -> str:
    names = {"image": "images", "sound": "sounds", "tokens": "tokens"}
    kinds = dict.fromkeys(names[kind] for want in wants if (kind := role(graph, want)) in names)
    return f"{method} {' and '.join(kinds) or 'noise'}"
