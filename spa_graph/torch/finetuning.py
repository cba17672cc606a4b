"""Recovery for people without a trainer: a plain training loop for pruned modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn, optim

from spa_graph.errors import OptionError
from spa_graph.torch.distillation import Lesson, Teacher, lesson
from spa_graph.torch.modes import in_mode
from spa_graph.torch.objective import Loss, Objective, loss_function
from spa_graph.torch.trained_parts import Trained, trainable


def finetune(
    model: nn.Module,
    loader: Iterable[Any],
    loss: Loss | str,
    epochs: int,
    *,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    train: Trained = "all",
    rank: int = 8,
    teacher: nn.Module | Teacher | None = None,
    amp: torch.dtype | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train a module in place: AdamW, with a rate that falls to zero along a cosine.

    Args:
        model: the module, on the device where it is to be trained.
        loader: batches, (inputs, targets) or whatever `loss` takes; read once per epoch.
        loss: `loss(outputs, targets)` for pairs, `loss(model, batch)` for other batches; the mean
            over a batch. Or a name: see `objective.LOSSES`.
        epochs: how often all batches are seen.
        lr: the rate at the beginning.
        train: "all", "norms-and-biases" (all parameters that are vectors), or "lora" (needs peft).
        rank: of LoRA's additions.
        teacher: the unpruned module, or a `Teacher` with options.
        amp: the type for automatic mixed precision, torch.bfloat16 or torch.float16.
        progress: called after each epoch with how many are done, and the loss of this one.

    Returns:
        The mean loss of each epoch, with what the teacher adds.

    Raises:
        OptionError: the loader yields nothing, or an option is wrong.
        ModelError: the loss isn't finite, or the module or the loss fails: on which batch. The
            module keeps what it has learnt until then.
    """
    objective = Objective([], loss_function(loss))
    if epochs < 1 or not lr > 0:
        raise OptionError(f"epochs must be at least 1 and lr positive, not {epochs} and {lr}")
    teacher = Teacher(teacher) if isinstance(teacher, nn.Module) else teacher
    with ExitStack() as stack:
        stack.enter_context(in_mode(model, training=True))
        parameters = stack.enter_context(trainable(model, train, rank))
        taught = stack.enter_context(lesson(teacher, model)) if teacher is not None else None
        loop = _Loop(
            model, objective, taught, amp, optim.AdamW(parameters, lr, weight_decay=weight_decay)
        )
        losses = []
        for number in range(epochs):
            losses.append(loop.epoch(loader, number / epochs, epochs))
            if progress:
                progress(number + 1, losses[-1])
        return losses


class _Loop:
    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        taught: Lesson | None,
        amp: torch.dtype | None,
        optimizer: optim.Optimizer,
    ) -> None:
        self.model, self.objective, self.taught, self.amp = model, objective, taught, amp
        self.optimizer = optimizer
        self.device = next(model.parameters()).device.type
        self.scaler = torch.amp.GradScaler(self.device, enabled=amp is torch.float16)
        self.rates = [group["lr"] for group in optimizer.param_groups]

    def epoch(self, loader: Iterable[Any], start: float, epochs: int) -> float:
        """See all batches once; the mean of their losses. `start` is the share that is done."""
        count = _length(loader)
        losses = []
        for number, batch in enumerate(loader):
            done = start + (number / count / epochs if count else 0.0)
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * (1 + math.cos(math.pi * done)) / 2
            losses.append(self._step(number, batch))
        if not losses:
            raise OptionError(
                f"the loader yields no batch in epoch {round(start * epochs) + 1}: is the dataset "
                "empty, or is it an iterator that is used up? Give a list or a DataLoader"
            )
        return float(torch.stack(losses).mean())

    def _step(self, number: int, batch: Any) -> Tensor:
        self.optimizer.zero_grad()
        with torch.autocast(self.device, self.amp, enabled=self.amp is not None):
            loss = self.objective.of(self.model, number, batch)
            if self.taught is not None:
                loss = self.taught.loss(loss, batch)
        scaled: Any = self.scaler.scale(loss)
        scaled.backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach().float()


def _length(loader: Any) -> int | None:
    """How many batches there are; None if nobody knows."""
    try:
        return len(loader)
    except TypeError:
        return None
