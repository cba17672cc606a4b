"""The errors that spa_graph raises on purpose; their text is one line for a person."""

from __future__ import annotations


def root_cause(error: BaseException) -> BaseException:
    """What an error was raised from in the first place."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class SpaError(Exception):
    """Base of every error that the package raises on purpose."""


class SpaWarning(UserWarning):
    """What may not be what was meant, though it can be done; one line, as an error's text."""


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
