"""A loss over some data: what gradients are taken of.

Batches are what a loader yields:

* a pair (inputs, targets): the module is called with the inputs (a tensor, a tuple of arguments or
  a mapping of named ones), the loss as `loss(outputs, targets)`,
* anything else, such as a mapping: `loss(model, batch)`, which calls the module itself.

The loss is the mean over its batch. Batches are kept, so that every pass sees the same data and
a generator will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from spa_graph.errors import ModelError, OptionError
from spa_graph.frontends.torch.calls import as_call
from spa_graph.frontends.torch.tracing import short, where

SAMPLES = 512
"""About so many samples are looked at unless the user says."""
Loss = Callable[[Any, Any], Tensor]
_EMPTY = (
    "data yields no batch: is the dataset empty, or the iterator used up? Give a loader with at "
    "least one sample"
)


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """A loss and its data.

    batches: each a mapping, or whatever the loader gives.
    """

    batches: Sequence[Any]
    loss: Loss

    @property
    def count(self) -> int:
        """How many samples there are."""
        return sum(map(batch_size, self.batches))

    def shares(self) -> Iterator[tuple[int, Any, float]]:
        """All batches with their number, and which share of the samples is in each."""
        total = self.count
        for number, batch in enumerate(self.batches):
            yield number, batch, batch_size(batch) / total

    def samples(self) -> Iterator[tuple[int, Any]]:
        """All samples as batches of one, with the number of the batch that each is from."""
        for number, batch in enumerate(self.batches):
            for place in range(batch_size(batch)):
                yield number, sample(batch, place)

    def of(self, model: nn.Module, number: int, batch: Any) -> Tensor:
        """The loss of one batch.

        Raises:
            ModelError: the module or the loss fails, or the loss is not finite.
            OptionError: the loss is no single number, or no weight has any influence on it.
        """
        loss = run(model, number, batch, self._loss)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            given = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise OptionError(
                f"the loss must be one number per batch, a tensor of one element, not {given}; "
                "take the mean"
            )
        if not torch.isfinite(loss).all():
            raise ModelError(
                f"the loss of batch {number} is {loss.item()}: check the data and its scale, the "
                "learning rate, and that the network's outputs are finite"
            )
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise OptionError(
                "the loss has no gradient by any weight: it must be computed from what the "
                "module returns, without detach() or no_grad()"
            )
        return loss.reshape(())

    def _loss(self, model: nn.Module, batch: Any) -> Tensor:
        if not is_pair(batch):
            if self.loss in LOSSES.values():
                raise OptionError(
                    f"a loss that is named takes batches of (inputs, targets), not a "
                    f"{type(batch).__name__}: give such pairs, or a function loss(model, batch)"
                )
            return self.loss(model, batch)
        return self.loss(outputs(model, batch), batch[1])


def make_objective(data: Any, loss: Any, samples: int | None) -> Objective:
    """A loss over the first samples of some data.

    Args:
        data: an iterable of batches.
        loss: a function, see above, or the name of one of `LOSSES`.

    Raises:
        OptionError: there is no batch, or no such loss.
    """
    check(data, loss)
    return Objective(_first(data, samples or SAMPLES), loss_function(loss))


def loss_function(loss: Any) -> Loss:
    """A loss, or the one of this name.

    Raises:
        OptionError: there is no such loss.
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise OptionError(f"unknown loss `{loss}`; there are: {', '.join(sorted(LOSSES))}")
        return LOSSES[loss]
    if not callable(loss):
        raise OptionError(f"loss must be a function or a name, not a {type(loss).__name__}")
    function: Loss = loss
    return function


def check(data: Any, loss: Any) -> None:
    """All that can be said against data and a loss before a batch is drawn.

    Raises:
        OptionError: data yields no batches, or there is no such loss.
    """
    loss_function(loss)
    if isinstance(data, Tensor | Mapping | str) or not isinstance(data, Iterable):
        raise OptionError(
            f"data must yield batches, as a DataLoader or a list of them does, which a "
            f"{type(data).__name__} doesn't"
        )
    if length_hint(data, 1) == 0:  # a loader of an IterableDataset has no length
        raise OptionError(_EMPTY)


def _first(data: Any, samples: int) -> list[Any]:
    found: list[Any] = []
    count = 0
    for batch in data:
        found.append(dict(batch) if isinstance(batch, Mapping) else batch)
        count += batch_size(found[-1])
        if count >= samples:
            break
    if not count:
        raise OptionError(_EMPTY)
    return found


# --- batches ----------------------------------------------------------------------------------


def is_pair(batch: Any) -> bool:
    """Whether a batch is (inputs, targets)."""
    return isinstance(batch, tuple | list) and len(batch) == 2


def batch_size(batch: Any) -> int:
    """The length of the first tensor that has an axis."""
    tensors = (leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim)
    first = next(tensors, None)
    return 1 if first is None else len(first)


def sample(batch: Any, place: int) -> Any:
    """A batch of one sample of a batch."""
    size = batch_size(batch)

    def take(leaf: Any) -> Any:
        whole = isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == size
        return leaf[place : place + 1] if whole else leaf

    return pytree.tree_map(take, batch)


def moved(batch: Any, device: torch.device) -> Any:
    """A batch on the device of a module."""
    return pytree.tree_map(
        lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch
    )


def outputs(model: nn.Module, batch: Any) -> Any:
    """What a module gives for the inputs of a pair."""
    call = as_call(batch[0])
    return model(*call.args, **call.kwargs)


def run(
    model: nn.Module, number: int, batch: Any, function: Callable[[nn.Module, Any], Any]
) -> Any:
    """What a function gives for a module and a batch; whatever it raises becomes one line.

    Raises:
        ModelError: it fails.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        return function(model, moved(batch, device))
    except OptionError:
        raise
    except Exception as error:  # whatever the user's module, loss or data raises
        raise ModelError(
            f"the module or the loss fails on batch {number}{where(error)}: {short(error)}"
        ) from error


# --- losses by name ---------------------------------------------------------------------------


def per_class(found: Any, targets: Any) -> Tensor:
    """Outputs with classes as their second axis, as torch's losses take them.

    Raises:
        OptionError: they are no tensor with a class axis that fits the targets.
    """
    tensor = single(found)
    if not isinstance(targets, Tensor):
        raise OptionError(f"targets must be a tensor, not a {type(targets).__name__}")
    shape, wanted = tuple(tensor.shape), tuple(targets.shape)
    if wanted in ((shape[0], *shape[2:]), shape):
        return tensor
    if wanted == shape[:-1]:
        return tensor.movedim(-1, 1)
    raise OptionError(f"outputs {list(shape)} have no axis of classes for targets {list(wanted)}")


def single(found: Any) -> Tensor:
    """The only tensor of a module's outputs.

    Raises:
        OptionError: there are several.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]
    if len(tensors) != 1:
        raise OptionError(
            f"the module returns {len(tensors)} tensors: give a loss function that takes them"
        )
    return tensors[0]


def _cross_entropy(found: Any, targets: Any) -> Tensor:
    return functional.cross_entropy(per_class(found, targets), targets)


def _nll(found: Any, targets: Any) -> Tensor:
    probabilities = per_class(found, targets)
    return functional.nll_loss(probabilities.clamp_min(torch.finfo().tiny).log(), targets)


LOSSES: dict[str, Loss] = {
    "cross-entropy": _cross_entropy,
    "nll": _nll,
    "mse": lambda found, targets: functional.mse_loss(single(found), targets),
    "l1": lambda found, targets: functional.l1_loss(single(found), targets),
    "bce": lambda found, targets: functional.binary_cross_entropy_with_logits(
        single(found), targets
    ),
}
"""Losses by name: cross-entropy of logits, negative log likelihood of probabilities, ..."""
