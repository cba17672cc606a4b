"""Pruning under Hugging Face's Trainer: `pip install 'spa-prune[transformers]'`."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from spa_graph.errors import OptionError
from spa_graph.torch.objective import moved
from spa_graph.torch.schedules import Pace, Schedule


class PruningCallback(TrainerCallback):
    """Prunes the model of a Trainer in place, after epochs of its training.

    The optimizer and its scheduler go on. The model's `config` keeps the sizes that it was made
    with, so save the result with `spa_graph.torch.save`, not with `save_pretrained`. Train in one
    process: a Trainer's DistributedDataParallel can't be wrapped anew from a callback.
    """

    def __init__(
        self, example_inputs: Any, *, start: int = 0, every: int = 1, **options: Any
    ) -> None:
        """Prepare to prune.

        Args:
            example_inputs: of the model, as of `prune`; labels aren't needed.
            start: the first epoch after which it is pruned, counted from 0.
            every: how many epochs of training lie between two steps.
            options: of `Schedule`: flops or params, steps, ramp, criterion, ...
        """
        self.schedule: Schedule | None = None
        self._inputs, self._options = example_inputs, options
        self._pace = Pace(start, every)
        self._epoch = 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Try the last step, so that what can't work is told before the training."""
        if args.world_size > 1 or args.n_gpu > 1:
            raise OptionError(
                "the callback prunes in one process on one device: prune before or after a "
                "distributed training, or write its loop with spa_graph.torch.Schedule"
            )
        inputs = moved(self._inputs, args.device)
        self.schedule = Schedule(
            kwargs["model"], inputs, optimizer=kwargs["optimizer"], **self._options
        )
        self._epoch = 0

    def on_epoch_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Prune, if it is time to."""
        assert self.schedule is not None  # the training has begun
        if self._pace.is_due(self._epoch):
            self.schedule.step()
        self._epoch += 1
