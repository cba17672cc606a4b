"""The errors that spa_graph raises on purpose; their text is one line for a person."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any


def root_cause(error: BaseException) -> BaseException:
    """What an error was raised from in the first place."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class SpaError(Exception):
    """Base of every error that the package raises on purpose."""


class SpaWarning(UserWarning):
    """What may not be what was meant, though it can be done; one line, as an error's text."""


@contextmanager
def warnings_told(tell: Callable[[str], None]) -> Iterator[None]:
    """Warnings of ours are told in one line; others are shown as ever."""
    with warnings.catch_warnings():
        warnings.showwarning = partial(_show, tell, warnings.showwarning)
        yield


def _show(
    tell: Callable[[str], None],
    otherwise: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    *where: Any,
    **more: Any,
) -> None:
    if issubclass(category, SpaWarning):
        tell(" ".join(str(message).split()))
    else:
        otherwise(message, category, *where, **more)


class ModelError(SpaError):
    """The model can't be read, or is not one that can be pruned: what, where, how to fix."""


class OptionError(SpaError):
    """An option, a plan or a path that can't be used."""


class BudgetError(SpaError):
    """The budget can't be met; the text names the smallest ratio that can."""


class RewriteError(SpaError):
    """The smaller network could not be built consistently; nothing was written."""


class VerificationError(SpaError):
    """The pruned network does not do what the plan says; nothing was written."""
