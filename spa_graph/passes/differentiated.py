"""Gradients of an ONNX network: computed by torch, where that is installed."""

from __future__ import annotations

from spa_graph.passes.network import Analysis
from spa_graph.passes.options import Options
from spa_graph.passes.pipeline import NetworkWithout
from spa_graph.passes.torch_engine import torch_engine


def differentiable(analysis: Analysis, options: Options) -> NetworkWithout:
    """The network, with derivatives of the loss in the options.

    Raises:
        OptionError: torch isn't installed, or the data doesn't fit.
        ModelError: the network has an operator that torch doesn't run.
    """
    needed = f"criterion `{options.criterion_name}` needs torch for its gradients"
    engine = torch_engine("onnx_gradients", needed)
    return engine.network(analysis, options)
