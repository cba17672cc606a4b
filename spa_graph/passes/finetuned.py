"""Fine-tuning of an ONNX network: done by torch, where that is installed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from spa_graph.errors import OptionError
from spa_graph.passes.network import Analysis, Pruned
from spa_graph.passes.options import Options, StepProgress

ENGINE = "spa_graph.torch.onnx_finetuning"
"""Named, not imported: nothing else on the way of an ONNX network needs torch."""


Finetune = Callable[[Analysis, Pruned, Options, StepProgress], list[float]]
"""Trains a pruned network in place; the mean loss of each epoch."""


def finetuner() -> Finetune:
    """What trains a pruned network.

    Raises:
        OptionError: torch isn't installed.
    """
    try:
        engine = import_module(ENGINE)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise OptionError(
            "--finetune trains the network in torch: pip install 'spa-prune[torch]'"
        ) from error
    found: Finetune = engine.finetune_onnx
    return found
