"""Derivatives of a loss by the parameters of a module: what criteria ask for, computed by torch.

All is done on a copy of the module, on its device, in its mode of training or evaluation (what
looks at single samples evaluates: a batch of one has no statistics). The module that came in, its
buffers and gradients and the states of random number generators stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from spa_graph.coupling.analysis import Coupling, Member
from spa_graph.errors import ModelError
from spa_graph.frontends.torch.calls import Call
from spa_graph.frontends.torch.editor import zeroed
from spa_graph.passes.importance.base import is_read
from spa_graph.plan import Kept, use_slices
from spa_graph.torch.modes import same_modes
from spa_graph.torch.objective import Objective, run
from spa_graph.torch.relevance import Rules, explained
from spa_graph.torch.watching import Around, Operands, Run

Arrays = dict[str, NDArray[Any]]
Floats = NDArray[np.float64]
Tensors = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Differentiated:
    """A module, what is known of it, and a way to look into it.

    watched: makes a module that computes the same in evaluation mode, with someone around each
        operator of `coupling`; its parameters have the same names.
    example: arguments that it takes.
    """

    model: nn.Module
    coupling: Coupling
    watched: Callable[[Around], nn.Module]
    example: Call


class Gradients:
    """See `passes.importance.differential.Differentiable`."""

    def __init__(
        self, network: Differentiated, objective: Objective | None, kept: Kept, *, seed: int = 0
    ) -> None:
        self._network, self._objective, self._kept, self._seed = network, objective, kept, seed
        self._model = self._prepared(copy.deepcopy(network.model))
        self.members = _distinct(m for group in network.coupling.groups for m in group.members)

    def weights(self) -> Arrays:
        return _arrays(_parameters(self._model))

    def gradient(self) -> Arrays:
        parameters = _parameters(self._model)
        total = {name: torch.zeros_like(wide(each)) for name, each in parameters.items()}
        with self._running():
            for loss, share in self._losses():
                for name, slope in _slopes(loss, parameters).items():
                    total[name] += share * wide(slope)
        return _arrays(_finite(total))

    def squares(self) -> Arrays:
        parameters = _parameters(self._model)
        total = {name: torch.zeros_like(wide(each)) for name, each in parameters.items()}
        with self._running(evaluating=True):
            for number, sample in self._data.samples():
                loss = self._data.of(self._model, number, sample)
                for name, slope in _slopes(loss, parameters).items():
                    total[name] += wide(slope).square() / self._data.count
        return _arrays(_finite(total))

    def product(self, vector: Mapping[str, NDArray[Any]]) -> Arrays:
        parameters = _parameters(self._model)
        direction = {n: torch.from_numpy(vector[n]).to(each) for n, each in parameters.items()}
        total = {name: torch.zeros_like(wide(each)) for name, each in parameters.items()}
        with self._running(), _twice():
            for loss, share in self._losses():
                slopes = _slopes(loss, parameters, again=True)
                along = torch.stack([(slopes[n] * direction[n]).sum() for n in parameters]).sum()
                if along.requires_grad:  # else the gradient is the same everywhere
                    for name, curved in _slopes(along, parameters).items():
                        total[name] += share * wide(curved)
        return _arrays(_finite(total))

    def effects(self, each: Literal["sample", "batch"]) -> Iterator[list[Floats]]:
        data = self._data
        batches = data.samples() if each == "sample" else enumerate(data.batches)
        with self._running(evaluating=each == "sample"):
            for number, batch in batches:
                yield self._effects(self._model, data.of(self._model, number, batch))

    def relevances(self) -> Iterator[list[Floats]]:
        model = self._prepared(self._network.watched(Rules(self._network.coupling)))
        with self._running():
            for number, batch, share in self._data.shares():
                output = run(model, number, batch, explained)
                found = self._effects(model, output)
                yield [each * share * len(self._data.batches) for each in found]

    def powers(self) -> dict[Member, Floats]:
        coupling = self._network.coupling
        meter = _Meter(coupling)
        model = self._prepared(self._network.watched(meter))
        with self._running(), torch.no_grad():
            for number, batch, _ in self._data.shares():
                self._data.of(model, number, batch)
        return {
            member: meter.power(member.operator, len_of(coupling, member))
            for member in self.members
            if is_read(coupling, member) and member.operator in meter.sums
        }

    def flow(self) -> Arrays:
        model = copy.deepcopy(self._model).double().eval()
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.abs_()
        ones = self._network.example.map(_ones)

        def total(_: nn.Module, batch: Call) -> Tensor:
            found = pytree.tree_leaves(model(*batch.args, **batch.kwargs))
            return torch.stack([o.sum() for o in found if _is_float(o)]).sum()

        with self._running():
            output = run(model, 0, ones, total)
            if not torch.isfinite(output):
                raise ModelError(
                    "criterion `synflow` can't be used: the sum of the outputs overflows where "
                    "all weights are positive"
                )
            return _arrays(_slopes(output, _parameters(model)))

    # --- how ----------------------------------------------------------------------------------

    @property
    def _data(self) -> Objective:
        assert self._objective is not None, "this criterion needs no loss"
        return self._objective

    def _losses(self) -> Iterator[tuple[Tensor, float]]:
        for number, batch, share in self._data.shares():
            yield self._data.of(self._model, number, batch), share

    def _prepared(self, model: nn.Module) -> nn.Module:
        """A copy, with gradients for all weights, of which the channels that are gone are zero."""
        coupling = self._network.coupling
        parameters = dict(model.named_parameters())
        for parameter in parameters.values():
            parameter.requires_grad_(parameter.is_floating_point())
        if not self._kept.all():
            for use in coupling.relations.uses:
                slices = use_slices(coupling, use, self._kept)
                if slices and use.parameter in parameters:
                    held = parameters[use.parameter].data
                    parameters[use.parameter].data = zeroed(held, slices)
        return model

    @contextmanager
    def _running(self, *, evaluating: bool = False) -> Iterator[None]:
        """Random numbers from the seed, and the generators as before afterwards."""
        devices = {p.device for p in self._model.parameters() if p.device.type == "cuda"}
        forked = torch.random.fork_rng(sorted(d.index for d in devices))
        with forked, same_modes(self._model), torch.enable_grad():
            torch.manual_seed(self._seed)
            if evaluating:
                self._model.eval()
            yield

    def _effects(self, model: nn.Module, output: Tensor) -> list[Floats]:
        """For each member, the sum of w d(output)/dw over each channel."""
        parameters = _parameters(model)
        products = {
            name: wide(parameters[name]) * wide(slope)
            for name, slope in _slopes(output, parameters).items()
        }
        _finite(products)
        return [_channels(products.get(member.parameter), member) for member in self.members]


def _finite(total: Tensors) -> Tensors:
    """Sums over the data, if they are numbers.

    Raises:
        ModelError: one isn't, though the loss is.
    """
    for name, each in total.items():
        if not torch.isfinite(each).all():
            raise ModelError(
                f"the derivative of the loss by `{name}` is NaN or infinite, though the loss isn't:"
                " check the loss, such as a square root or a logarithm near 0"
            )
    return total


def _channels(products: Tensor | None, member: Member) -> Floats:
    if products is None:  # not differentiable; no criterion looks at it
        return np.zeros(len(member.index))
    others = [axis for axis in range(products.ndim) if axis != member.axis]
    sums = products.detach().sum(others) if others else products.detach()
    return sums.cpu().numpy().astype(np.float64)[member.index].sum(1)


def len_of(coupling: Coupling, member: Member) -> int:
    """How many positions a member's axis has."""
    return coupling.graph.parameters[member.parameter].shape[member.axis]


class _Meter:
    """Adds up the squares of what linear operators read; see `watching.Around`."""

    def __init__(self, coupling: Coupling) -> None:
        self._linears = {linear.operator: linear for linear in coupling.facts.linears}
        self.sums: dict[int, tuple[Tensor, int]] = {}
        """By operator, over channels; and of how many positions."""

    def __call__(self, index: int, operands: Operands, run: Run) -> Any:
        linear = self._linears.get(index)
        if linear is not None:
            rows = wide(operands[linear.slots[0]].movedim(linear.features, -1)).flatten(0, -2)
            total, count = self.sums.get(index, (0, 0))
            self.sums[index] = total + rows.square().sum(0), count + len(rows)
        return run(operands)

    def power(self, operator: int, size: int) -> Floats:
        """Root mean squares by the positions of a weight's axis, which groups share."""
        total, count = self.sums[operator]
        means = (total / max(count, 1)).reshape(-1, size).mean(0)
        return means.sqrt().cpu().numpy().astype(np.float64)


def _parameters(model: nn.Module) -> Tensors:
    """The floating-point parameters by name."""
    return {n: each for n, each in model.named_parameters() if each.is_floating_point()}


def _slopes(output: Tensor, parameters: Tensors, *, again: bool = False) -> Tensors:
    """The derivative by each parameter; zero where it has no influence."""
    found = torch.autograd.grad(
        output, list(parameters.values()), create_graph=again, materialize_grads=True
    )
    return dict(zip(parameters, found, strict=True))


@contextmanager
def _twice() -> Iterator[None]:
    """Only with implementations that can be differentiated twice."""
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def wide(tensor: Tensor) -> Tensor:
    """At least single precision, to add up in."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _arrays(tensors: Tensors) -> Arrays:
    return {name: wide(each.detach()).cpu().numpy() for name, each in tensors.items()}


def _distinct(members: Iterable[Member]) -> Sequence[Member]:
    return list(dict.fromkeys(members))


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _ones(leaf: Any) -> Any:
    return torch.ones_like(leaf, dtype=torch.float64) if _is_float(leaf) else leaf
