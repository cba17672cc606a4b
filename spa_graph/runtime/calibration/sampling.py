"""Sequences sampled from a decoder itself: what it would write is much of what it has read.

Ancestral sampling at temperature 1 draws token t + 1 from softmax(logits[t]): the argument of the
largest logits[t] + Gumbel noise. With the noise drawn once and for all, the whole sequence is the
fixed point of one parallel step, and iterating that step reaches it after at most as many steps as
there are tokens, often far fewer (Jacobi iteration; Song et al., "Accelerating Feedforward
Computation via Parallel Nonlinear Equation Solving", ICML 2021, arXiv 2002.03629).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spa_graph.graph import Graph
from spa_graph.runtime.calibration.batches import Group, Indices, Reader
from spa_graph.runtime.calibration.matching import Probe
from spa_graph.runtime.calibration.wanted import Array, Wanted
from spa_graph.runtime.inputs import Feeds, random_inputs, table_size

MOST_STEPS = 64
"""A longer sequence is exact up to here, and a plausible continuation behind."""


class Decoder(NamedTuple):
    """An input of tokens (batch, length), and the output of logits (batch, length, vocabulary)."""

    tokens: str
    logits: str
    vocabulary: int


def decoder(graph: Graph, wants: Sequence[Wanted], probe: Probe | None) -> Decoder | None:
    """Where a network takes tokens and gives logits of the next ones, if it does."""
    for want in wants:
        vocabulary = table_size(graph, want.name) if want.dtype.kind in "iu" else None
        if probe is None or vocabulary is None or len(want.nominal) != 2 or want.axis != 0:
            continue
        for name in graph.outputs:
            shape = tuple(extent.nominal for extent in graph.shapes.get(name, ()))
            if shape == (*want.nominal, vocabulary) and vocabulary > 2 and want.nominal[1] > 1:
                found = Decoder(want.name, name, vocabulary)
                return found if _causal(graph, found, probe) else None
    return None


def _causal(graph: Graph, found: Decoder, probe: Probe) -> bool:
    """Whether the logits at the first token are blind to the last one."""
    feeds = random_inputs(graph)
    changed = dict(feeds)
    changed[found.tokens] = feeds[found.tokens].copy()
    changed[found.tokens][:, -1] = (changed[found.tokens][:, -1] + 1) % found.vocabulary
    before, after = (probe(each, [found.logits])[0] for each in (feeds, changed))
    moved = np.abs(after - before).max(axis=(0, 2))
    return bool(moved[0] <= 1e-3 * moved[-1])


class Sampled:
    """Reads samples whose tokens were sampled from the network."""

    def __init__(self, made: Reader, found: Decoder, group: Group, probe: Probe, seed: int) -> None:
        self._made, self._found = made, found
        self._rows: dict[int, Array] = {}
        for indices in group.batches():
            sampled = _sample(made.read(indices), indices, found, probe, seed)
            self._rows.update(zip(indices.tolist(), sampled, strict=True))

    def read(self, indices: Indices) -> Feeds:
        """Feeds for one run."""
        feeds = self._made.read(indices)
        feeds[self._found.tokens] = np.stack([self._rows[index] for index in indices.tolist()])
        return feeds


def _sample(feeds: Feeds, indices: Indices, found: Decoder, probe: Probe, seed: int) -> Array:
    """Sequences that start with the first token that was made and go on as the network would."""
    tokens = feeds[found.tokens].copy()
    length = tokens.shape[1]
    for _ in range(min(length, MOST_STEPS)):
        logits = probe({**feeds, found.tokens: tokens}, [found.logits])[0]
        fresh = tokens.copy()
        for row, index in enumerate(indices.tolist()):
            noise = np.random.default_rng([seed, length, index])
            for start in range(0, length - 1, 64):
                part = logits[row, start : min(start + 64, length - 1)].astype(np.float64)
                fresh[row, start + 1 : start + 1 + len(part)] = (
                    part + noise.gumbel(size=part.shape)
                ).argmax(-1)
        if np.array_equal(fresh, tokens):
            break
        tokens = fresh
    return tokens
