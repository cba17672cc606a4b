"""Fine-tuning of an ONNX network: done by torch, where that is installed."""

from __future__ import annotations

from collections.abc import Callable

from spa_graph.passes.network import Analysis, Pruned
from spa_graph.passes.options import Options, StepProgress
from spa_graph.passes.torch_engine import torch_engine

Finetune = Callable[[Analysis, Pruned, Options, StepProgress], list[float]]
"""Trains a pruned network in place; the mean loss of each epoch."""


def finetuner() -> Finetune:
    """What trains a pruned network.

    Raises:
        OptionError: torch isn't installed.
    """
    engine = torch_engine("onnx_finetuning", "--finetune trains the network in torch")
    found: Finetune = engine.finetune_onnx
    return found
