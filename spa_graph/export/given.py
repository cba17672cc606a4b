"""What was given to an export: the framework's model, and the package that it needs."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from spa_graph.errors import OptionError


def framework(name: str, needed_by: str, package: str) -> ModuleType:
    """The framework's module.

    Args:
        package: what pip installs it by.

    Raises:
        OptionError: it isn't installed, or lacks what it needs itself, as Keras does without a
            backend.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        raise OptionError(f"{needed_by} needs {missing}: pip install '{package}'") from error


def check_type(model: object, kinds: type | tuple[type, ...], takes: str) -> None:
    """Whether a model is what the function takes.

    Args:
        takes: says so, as the beginning of a sentence, and how to get one.

    Raises:
        OptionError: it isn't.
    """
    if not isinstance(model, kinds):
        raise OptionError(f"{takes}; what was given is a {type(model).__name__}")
