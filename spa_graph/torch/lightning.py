"""Pruning under Lightning: `pip install 'spa-prune[lightning]'`."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn

from spa_graph.errors import OptionError
from spa_graph.torch.objective import moved
from spa_graph.torch.schedules import Pace, Schedule


class PruningCallback(pl.Callback):
    """Prunes a part of a LightningModule in place, after epochs of its training.

    The optimizer and its schedulers go on; DistributedDataParallel is wrapped anew. With more
    than one process, the plan is that of the first.
    """

    def __init__(
        self, module: str, example_inputs: Any, *, start: int = 0, every: int = 1, **options: Any
    ) -> None:
        """Prepare to prune.

        Args:
            module: the attribute of the LightningModule that holds the network.
            example_inputs: of that network, as of `prune`.
            start: the first epoch after which it is pruned, counted from 0.
            every: how many epochs of training lie between two steps.
            options: of `Schedule`: flops or params, steps, ramp, criterion, ...
        """
        self.schedule: Schedule | None = None
        self._module, self._inputs, self._options = module, example_inputs, options
        self._pace = Pace(start, every)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Try the last step, so that what can't work is told before the training."""
        network = getattr(pl_module, self._module, None)
        if not isinstance(network, nn.Module):
            raise OptionError(f"{type(pl_module).__name__} has no module `{self._module}`")
        if len(trainer.optimizers) != 1:
            raise OptionError(f"there must be one optimizer, not {len(trainer.optimizers)}")
        if not isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy):
            name = type(trainer.strategy).__name__
            raise OptionError(f"{name} shards parameters: train on one device, or with ddp")
        self.schedule = Schedule(
            network,
            moved(self._inputs, pl_module.device),
            optimizer=trainer.optimizers[0],
            **self._options,
        )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prune, if it is time to."""
        assert self.schedule is not None  # the training has started
        if not self._pace.is_due(trainer.current_epoch):
            return
        self.schedule.step()
        if isinstance(trainer.strategy, DDPStrategy):
            trainer.strategy.model = pl_module
            trainer.strategy.configure_ddp()
