"""A module in training or evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def same_modes(model: nn.Module) -> Iterator[None]:
    """Afterwards every part of the module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """All parts in one mode, and afterwards in those that they were in."""
    with same_modes(model):
        model.train(training)
        yield
