"""Criteria from derivatives of a loss, and what they ask of whoever computes derivatives.

Nothing here knows how derivatives come about: `spa_graph/torch/gradients.py` computes them. The
loss L(w) is the mean over all samples of some data. Arrays go by the names of parameters, and have
their shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from spa_graph.coupling.analysis import Member
from spa_graph.errors import OptionError
from spa_graph.passes.importance.base import Criterion, Floats, ParameterAxis

Arrays = Mapping[str, NDArray[Any]]
Progress = Callable[[int, int], None]
Effects = Sequence[Floats]
"""Per member, a number for each of its channels; (channels,)."""


class Differentiable(Protocol):
    """A network with a loss over data, of which derivatives can be had."""

    @property
    def members(self) -> Sequence[Member]:
        """The parameter axes along which channels go, each once."""

    def weights(self) -> Arrays:
        """The parameters that have derivatives."""

    def gradient(self) -> Arrays:
        """dL/dw."""

    def squares(self) -> Arrays:
        """The mean over samples of (dL_n/dw)^2, with L_n the loss of one sample."""

    def product(self, vector: Arrays) -> Arrays:
        """H v with H the Hessian of L by all parameters."""

    def effects(self, each: Literal["sample", "batch"]) -> Iterator[Effects]:
        """By how much the loss of each sample or batch falls, to first order, when the weights of
        a channel in one parameter axis become zero: the sum of w dL/dw over them."""

    def relevances(self) -> Iterator[Effects]:
        """For each batch, the relevance that reaches a channel through one of the layers that read
        it, on average over samples."""

    def powers(self) -> Mapping[Member, Floats]:
        """Root mean square of the features that meet each position of the axes along which linear
        operators read; (positions,)."""

    def flow(self) -> Arrays:
        """dR/d|w| with R the sum of the outputs for inputs of ones, all weights being |w|."""


class FromGradients(Criterion):
    """Base of criteria that need derivatives: implement `differentiate`."""

    needs_gradients = True
    needs_loss: ClassVar[bool] = True

    def __init__(self) -> None:
        self.known: frozenset[str] = frozenset()
        """The parameters that have derivatives."""

    def differentiate(self, network: Differentiable, progress: Progress) -> None:
        """Take from a network whatever derivatives are needed; called before any score is."""
        self.known = frozenset(network.weights())
        self.measure(network, progress)

    def measure(self, network: Differentiable, progress: Progress) -> None:
        raise NotImplementedError

    def knows(self, parameter: str) -> bool:
        return parameter in self.known

    def check(self) -> None:
        if not self.known:
            raise OptionError(missing(self.name))


def missing(name: str) -> str:
    """What to say where there is nothing to take derivatives of."""
    return f"criterion `{name}` needs gradients: give --data and --loss"


class PerWeight(FromGradients):
    """Base of criteria that give every weight a number: implement `saliency`.

    A channel has the sum over its weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.saliencies: Arrays = {}

    def saliency(self, network: Differentiable, progress: Progress) -> Arrays:
        """A number for every weight."""
        raise NotImplementedError

    def measure(self, network: Differentiable, progress: Progress) -> None:
        self.saliencies = self.saliency(network, progress)

    def channels(self, part: ParameterAxis) -> Floats:
        return channel_sums(self.saliencies[part.name], part)


def channel_sums(values: NDArray[Any], part: ParameterAxis) -> Floats:
    """What the weights of each channel add up to; (channels,)."""
    others = tuple(axis for axis in range(values.ndim) if axis != part.axis)
    return values.sum(others, dtype=np.float64)[part.index].sum(1)


class PerChannel(FromGradients):
    """Base of criteria that look at effects of whole channels, sample by sample: implement
    `effects` and `of`. A channel has the mean."""

    def __init__(self) -> None:
        super().__init__()
        self._means: dict[Member, Floats] = {}

    def effects(self, network: Differentiable) -> Iterator[Effects]:
        """The effects that are averaged."""
        raise NotImplementedError

    def of(self, effects: Floats) -> Floats:
        """What is averaged of an effect."""
        raise NotImplementedError

    def measure(self, network: Differentiable, progress: Progress) -> None:  # noqa: ARG002
        totals = {member: np.zeros(len(member.index)) for member in network.members}
        count = 0
        for found in self.effects(network):
            count += 1
            for member, effect in zip(network.members, found, strict=True):
                totals[member] += self.of(effect)
        self._means = {member: total / max(count, 1) for member, total in totals.items()}

    def channels(self, part: ParameterAxis) -> Floats:
        return self._means[part.member]
