"""Fine-tuning of an ONNX network: done by torch, where that is installed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from spa_graph.errors import OptionError
from spa_graph.passes.network import Analysis, Pruned
from spa_graph.passes.options import Options, StepProgress
from spa_graph.passes.torch_engine import torch_engine

Finetune = Callable[[Analysis, Pruned, Options, StepProgress], list[float]]
"""Trains a pruned network in place; the mean loss of each epoch."""


def check_training(options: Options) -> None:
    """All that can be said against data, loss and training before the network is read.

    Raises:
        OptionError: torch isn't installed, or there is no such file or loss.
    """
    if options.finetune is not None:
        finetuner()
    if options.data is None:
        return
    if isinstance(options.data, str | os.PathLike) and not Path(options.data).is_file():
        raise OptionError(f"cannot read --data {options.data}: there is no such file")
    torch_engine("objective", "a loss over --data needs torch").loss_function(options.loss)


def finetuner() -> Finetune:
    """What trains a pruned network.

    Raises:
        OptionError: torch isn't installed.
    """
    engine = torch_engine("onnx_finetuning", "--finetune trains the network in torch")
    found: Finetune = engine.finetune_onnx
    return found
