"""Biases of layers that have none: a refit may need them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from spa_graph.errors import OptionError
from spa_graph.plan import Plan


def has_room(module: nn.Module, weight: str) -> bool:
    """Whether the layer of a weight has a place for a bias, which is empty."""
    owner, _, leaf = weight.rpartition(".")
    if leaf != "weight":
        return False
    parameters = module.get_submodule(owner)._parameters
    return "bias" in parameters and parameters["bias"] is None


def add_biases(module: nn.Module, biases: Mapping[str, NDArray[Any]]) -> None:
    """Give layers a bias, in place.

    Args:
        biases: by the weights of the layers; (results,).
    """
    for name, array in biases.items():
        layer = module.get_submodule(name.rpartition(".")[0])
        weight = layer.get_parameter("weight")
        values = torch.from_numpy(np.array(array)).to(weight)
        layer.register_parameter("bias", nn.Parameter(values, weight.requires_grad))


def add_zero_biases(module: nn.Module, weights: Iterable[str]) -> None:
    """Give layers a bias of zeros, in place.

    Raises:
        OptionError: a layer has no place for one.
    """
    for name in weights:
        if not has_room(module, name):
            raise OptionError(f"the layer of `{name}` has no place for the bias that was saved")
        count = _results(module.get_submodule(name.rpartition(".")[0]))
        add_biases(module, {name: np.zeros(count, np.float32)})


def new_biases(module: nn.Module, plan: Plan) -> Iterator[tuple[str, nn.Parameter]]:
    """The biases that a refit gave a pruned module, by the weights of their layers."""
    for name in plan.model.get("biases", ()):
        yield name, module.get_parameter(bias_of(name))


def bias_of(weight: str) -> str:
    """The name of the bias of a layer, from that of its weight."""
    owner = weight.rpartition(".")[0]
    return f"{owner}.bias" if owner else "bias"


def _results(layer: nn.Module) -> int:
    """How many results a layer has: what it states."""
    for key in ("out_channels", "out_features"):
        if hasattr(layer, key):
            return int(getattr(layer, key))
    raise OptionError(f"a {type(layer).__name__} doesn't say how many results it has")
