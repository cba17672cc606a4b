"""Fine-tuning of pruned ONNX networks: as modules, in torch, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from spa_graph.graph import Graph
from spa_graph.passes.agreement import check_agreement
from spa_graph.passes.network import Analysis, Pruned
from spa_graph.passes.options import Options, StepProgress
from spa_graph.runtime.inputs import random_inputs
from spa_graph.torch.finetuning import finetune
from spa_graph.torch.onnx_gradients import BATCH, Arrays, cut, in_memory
from spa_graph.torch.onnx_module import OnnxModule


def finetune_onnx(
    analysis: Analysis, pruned: Pruned, options: Options, progress: StepProgress
) -> list[float]:
    """Train a pruned network in place, by `finetuning.finetune`.

    The batches of a file, or of arrays, are drawn anew in each epoch.

    Returns:
        The mean loss of each epoch.

    Raises:
        ModelError: the network has an operator that torch doesn't run, or the loss isn't finite.
        OptionError: the data can't be read, or doesn't fit the network.
        VerificationError: the network that was written isn't the one that was trained.
    """
    epochs = options.finetune
    assert epochs is not None
    given = in_memory(options.data)
    loader = _Shuffled(given, pruned.graph, options.seed) if isinstance(given, Mapping) else given
    module = OnnxModule(pruned.model, graph=pruned.graph)
    teacher = OnnxModule(analysis.model, graph=analysis.graph) if options.teacher else None
    losses = finetune(
        module,
        loader,
        options.loss,
        epochs,
        lr=options.learning_rate,
        teacher=teacher,
        progress=lambda done, loss: progress(done, epochs, f"loss {loss:.4g}"),
    )
    pruned.model = module.to_onnx()
    _check(module, pruned)
    return losses


class _Shuffled:
    """Batches of arrays, in another order each time."""

    def __init__(self, arrays: Arrays, graph: Graph, seed: int) -> None:
        self._arrays, self._graph = arrays, graph
        self._generator = np.random.default_rng(seed)
        next(cut(arrays, graph), None)  # says what doesn't fit
        count = max((len(each) for each in arrays.values()), default=0)
        # a batch of one sample has no statistics
        self._count = count - 1 if count % BATCH == 1 and count > 1 else count

    def __len__(self) -> int:
        return -(-self._count // BATCH)

    def __iter__(self) -> Iterator[Any]:
        order = self._generator.permutation(max(map(len, self._arrays.values())))[: self._count]
        return cut(self._arrays, self._graph, order)


def _check(module: OnnxModule, pruned: Pruned) -> None:
    """What is written computes what was trained, on random inputs."""
    feeds = random_inputs(pruned.graph)
    with torch.no_grad():
        found = module(**{name: torch.from_numpy(np.array(each)) for name, each in feeds.items()})
    got = [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]
    complaint = "torch and ONNX Runtime disagree about the fine-tuned network"
    check_agreement(pruned.model, feeds, got, complaint)
