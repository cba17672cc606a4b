"""The unpruned network as a teacher of the pruned one: its outputs, and what inner layers give.

Outputs: Hinton, Vinyals & Dean, arXiv 1503.02531, the cross entropy at temperature T, times T^2;
here as a Kullback-Leibler divergence, which differs by a constant. Inner layers: the squared
distance of features, relative to their power (FitNets, Romero et al., arXiv 1412.6550, without a
regressor: the channels of a pruned layer are some of the teacher's).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from spa_graph.errors import OptionError
from spa_graph.torch.api import plan_of, was_pruned
from spa_graph.torch.modes import in_mode
from spa_graph.torch.objective import is_pair, per_class, single

Compared = Literal["logits", "values"]


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """Who teaches, and how much.

    model: the unpruned module; it isn't trained.
    weight: of the teacher's outputs; the loss on the targets has the rest.
    temperature: of the softmax over classes.
    compare: "logits" of classes, or "values", whose squared distance is taken.
    features: names of layers whose outputs are compared as well.
    feature_weight: of each of them.
    """

    model: nn.Module
    weight: float = 0.5
    temperature: float = 2.0
    compare: Compared = "logits"
    features: Sequence[str] = ()
    feature_weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise OptionError(f"the teacher's weight must lie between 0 and 1, not {self.weight}")
        if not self.temperature > 0:
            raise OptionError(f"temperature must be positive, not {self.temperature}")
        if self.compare not in get_args(Compared):
            raise OptionError(
                f"compare {self.compare}: choose among {', '.join(get_args(Compared))}"
            )


@dataclass(slots=True, eq=False)
class Heard:
    """What a module was last called with, what it gave, and what its layers gave."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    features: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def heard(model: nn.Module, features: Sequence[str]) -> Iterator[Heard]:
    """Listen to a module.

    Raises:
        OptionError: it has no such layer.
    """
    found, layers = Heard(), dict(model.named_modules())

    def whole(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        found.args, found.kwargs, found.output = args, kwargs, output

    def layer(name: str) -> Any:
        def take(_: nn.Module, __: Any, output: Any) -> None:
            found.features[name] = output[0] if isinstance(output, tuple) else output

        return take

    missing = [name for name in features if name not in layers]
    if missing:
        raise OptionError(f"{type(model).__name__} has no layer `{missing[0]}` to compare")
    hooks = [model.register_forward_hook(whole, with_kwargs=True)]
    hooks += [layers[name].register_forward_hook(layer(name)) for name in features]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class Lesson:
    """Adds to a loss what the teacher says of the same batch."""

    def __init__(self, teacher: Teacher, student: nn.Module, own: Heard, others: Heard) -> None:
        self._teacher, self._own, self._others = teacher, own, others
        self._plan = plan_of(student) if was_pruned(student) else None

    def loss(self, task: Tensor, batch: Any) -> Tensor:
        """The loss with the teacher; `task` is the one on the targets, just computed."""
        teacher, own = self._teacher, self._own
        with torch.no_grad():
            teacher.model(*own.args, **own.kwargs)
        pairs = ((logits(heard.output), batch) for heard in (own, self._others))
        total = (1 - teacher.weight) * task
        if teacher.weight:
            total = total + teacher.weight * self._outputs(*(_per_class(*pair) for pair in pairs))
        for name in teacher.features:
            total = total + teacher.feature_weight * self._features(name)
        return total

    def _outputs(self, own: Tensor, wanted: Tensor) -> Tensor:
        if own.shape != wanted.shape:
            raise OptionError(
                f"the teacher gives {list(wanted.shape)}, the module {list(own.shape)}"
            )
        if self._teacher.compare == "values":
            return functional.mse_loss(own, wanted)
        heat = self._teacher.temperature
        first, second = (functional.log_softmax(x / heat, 1) for x in (own, wanted))
        rows = first.numel() // first.shape[1]
        return functional.kl_div(first, second, reduction="sum", log_target=True) * heat**2 / rows

    def _features(self, name: str) -> Tensor:
        own, wanted = self._own.features[name], self._others.features[name]
        wanted = self._kept(name, wanted, own)
        return functional.mse_loss(own, wanted) / wanted.square().mean().clamp_min(1e-12)

    def _kept(self, name: str, wanted: Tensor, own: Tensor) -> Tensor:
        """The teacher's features, of the channels that the student has."""
        axes = [i for i, size in enumerate(own.shape) if wanted.shape[i] != size]
        if not axes:
            return wanted
        kept = {} if self._plan is None else self._plan.kept.get(f"{name}.weight", {})
        if len(axes) != 1 or own.ndim != wanted.ndim or len(kept.get(0, ())) != own.shape[axes[0]]:
            raise OptionError(
                f"layer `{name}` gives {list(own.shape)}, the teacher's {list(wanted.shape)}: name "
                "a layer that wasn't pruned, or one with a weight (convolution, linear, norm)"
            )
        return wanted.index_select(axes[0], torch.from_numpy(kept[0]).to(wanted.device))


def logits(output: Any) -> Tensor:
    """The logits among a module's outputs: the entry of that name, or the only tensor."""
    named = output.get("logits") if isinstance(output, Mapping) else None
    return named if isinstance(named, Tensor) else single(output)


def _per_class(found: Tensor, batch: Any) -> Tensor:
    """Classes as the second axis; where targets don't tell, they are the last."""
    targets = batch[1] if is_pair(batch) else None
    if isinstance(targets, Tensor) and not targets.is_floating_point():
        return per_class(found, targets.to(found.device))
    return found.movedim(-1, 1) if found.ndim > 1 else found


@contextmanager
def lesson(teacher: Teacher, student: nn.Module) -> Iterator[Lesson]:
    """A teacher who listens, in evaluation mode; its modes are as before afterwards."""
    with (
        heard(student, teacher.features) as own,
        heard(teacher.model, teacher.features) as others,
        in_mode(teacher.model, training=False),
    ):
        yield Lesson(teacher, student, own, others)
