"""What torch does for ONNX networks, where it is installed: gradients, training."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from spa_graph.errors import OptionError


def torch_engine(name: str, needed: str) -> ModuleType:
    """A module of `spa_graph.torch`.

    Named, not imported: nothing else on the way of an ONNX network needs torch.

    Args:
        needed: what torch is needed for, as the beginning of a sentence.

    Raises:
        OptionError: torch isn't installed.
    """
    try:
        return import_module(f"spa_graph.torch.{name}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise OptionError(f"{needed}: pip install 'spa-prune[torch]'") from error
