"""Padding: positions of calibration samples that say nothing, because the network ignores them.

Texts of one batch are padded to one length, and a mask says which tokens are padding. Most
positions may be padding, and what layers compute there is alike: without care most of a fit
would go into what nobody reads.

A mask isn't known by its name. It is an input of zeros and ones, with one number for each position
of another input; and what stands at the masked positions must not matter: other values there leave
the outputs as they are, at all other positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.analysis import Coupling
from spa_graph.coupling.relations import Axes
from spa_graph.passes.statistics.layers import Layer
from spa_graph.runtime.sessions import Feeds

Array = NDArray[Any]
Ints = NDArray[np.int64]
Places = Callable[[Layer, int], Ints | None]
"""The positions of a layer that count in a batch; None where all do."""
UNCHANGED = 1e-4
"""Outputs that move by less, as a share of their largest, are the same but for rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Padding:
    """Which positions are padding.

    mask: the input that says so, by the number `ignored`.
    dims: the axes that positions run along.
    """

    coupling: Coupling
    mask: str
    ignored: int
    dims: Axes

    def stays(self, feeds: Feeds) -> NDArray[np.bool_]:
        """Which positions of a batch aren't padding; (samples, ...)."""
        return np.asarray(feeds[self.mask] != self.ignored)

    def covers(self, name: str) -> bool:
        """Whether a value has something for each of these positions, along its first axes."""
        axes = self.coupling.relations.value(name) or ()
        leading = axes[: len(self.dims)]
        return tuple(map(self.coupling.relations.dim, leading)) == self.dims

    def places(self, layer: Layer, feeds: Feeds) -> Ints | None:
        """The positions of a layer's features that aren't padding; None where that isn't known."""
        along_last = not layer.map.kernel and layer.linear.features == -1
        axes = self.coupling.relations.value(layer.source) or ()
        if not along_last or len(axes) != len(self.dims) + 1 or not self.covers(layer.source):
            return None
        return np.flatnonzero(self.stays(feeds))

    def blank(self, feeds: Feeds, outputs: Sequence[Array]) -> list[Array]:
        """A batch's outputs, zero where there is padding."""
        stays = self.stays(feeds)
        blanked = []
        for name, output in zip(self.coupling.graph.outputs, outputs, strict=True):
            fits = output.dtype.kind == "f" and output.shape[: stays.ndim] == stays.shape
            fits = fits and self.covers(name)
            more = (1,) * (output.ndim - stays.ndim)
            blanked.append(output * stays.reshape(*stays.shape, *more) if fits else output)
        return blanked


def blanked(padding: Padding | None, feeds: Feeds, outputs: Sequence[Array]) -> Sequence[Array]:
    """A batch's outputs, zero where there is padding, if there is any."""
    return outputs if padding is None else padding.blank(feeds, outputs)


def places_in(padding: Padding | None, batches: Iterable[Feeds]) -> Places:
    """Which positions of a layer aren't padding, by batch."""
    if padding is None:
        return lambda _layer, _batch: None
    masks = [{padding.mask: feeds[padding.mask]} for feeds in batches]
    return lambda layer, batch: padding.places(layer, masks[batch])


def find_padding(
    coupling: Coupling, batches: Iterable[Feeds], run: Callable[[Feeds], Sequence[Array]]
) -> Padding | None:
    """The padding that a network ignores, if there is a mask and it does.

    Args:
        run: computes the network's outputs.
    """
    pairs = list(_pairs(coupling))
    for feeds in batches if pairs else ():
        telling = [pair for pair in pairs if _has_padding(feeds, *pair)]
        want = run(feeds) if telling else ()
        for mask, padded in telling:
            axes = coupling.relations.value(padded) or ()
            dims = tuple(map(coupling.relations.dim, axes[: feeds[mask].ndim]))
            for ignored in (0, 1):
                found = Padding(coupling, mask, ignored, dims)
                if _is_ignored(found, padded, feeds, want, run):
                    return found
        if telling:
            return None
    return None


def _has_padding(feeds: Feeds, mask: str, padded: str) -> bool:
    fits = feeds[padded].shape[: feeds[mask].ndim] == feeds[mask].shape
    return fits and set(np.unique(feeds[mask]).tolist()) == {0, 1}


def _pairs(coupling: Coupling) -> Iterator[tuple[str, str]]:
    """Inputs that may be the mask of another one: (mask, other)."""
    shapes = coupling.graph.shapes
    for mask in coupling.graph.inputs:
        rank = len(shapes.get(mask, ()))
        for other in coupling.graph.inputs:
            if mask != other and rank > 1 and shapes.get(other, ())[:rank] == shapes[mask]:
                yield mask, other


def _is_ignored(
    padding: Padding,
    padded: str,
    feeds: Feeds,
    outputs: Sequence[Array],
    run: Callable[[Feeds], Sequence[Array]],
) -> bool:
    """Whether other values at masked positions leave the outputs as they are elsewhere."""
    stays = padding.stays(feeds)
    generator = np.random.default_rng(0)
    changed = feeds[padded].copy()
    changed[~stays] = generator.choice(changed[stays], int((~stays).sum()))
    want = padding.blank(feeds, outputs)
    got = padding.blank(feeds, run({**feeds, padded: changed}))
    return all(
        x.shape == y.shape and np.abs(x - y).max(initial=0) <= UNCHANGED * np.abs(x).max(initial=0)
        for x, y in zip(want, got, strict=True)
        if x.dtype.kind == "f"
    )
