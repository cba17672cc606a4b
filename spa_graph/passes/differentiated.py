"""Gradients of an ONNX network: computed by torch, where that is installed."""

from __future__ import annotations

from importlib import import_module

from spa_graph.errors import OptionError
from spa_graph.passes.network import Analysis
from spa_graph.passes.options import Options
from spa_graph.passes.pipeline import NetworkWithout

ENGINE = "spa_graph.torch.onnx_gradients"
"""Named, not imported: nothing else on the way of an ONNX network needs torch."""


def differentiable(analysis: Analysis, options: Options) -> NetworkWithout:
    """The network, with derivatives of the loss in the options.

    Raises:
        OptionError: torch isn't installed, or the data doesn't fit.
        ModelError: the network has an operator that torch doesn't run.
    """
    try:
        engine = import_module(ENGINE)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise OptionError(
            f"criterion `{options.criterion_name}` needs torch for its gradients: "
            "pip install 'spa-prune[torch]'"
        ) from error
    return engine.network(analysis, options)
