"""Functions of the user's own, by `package.module:function`."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from spa_graph.errors import OptionError

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""`package.module:function`."""


def beside_results() -> redirect_stdout[TextIO]:
    """What is printed meanwhile goes to stderr: where --json is, nothing else may be said."""
    return redirect_stdout(sys.stderr)


def imported(spec: str) -> Any:
    """What `package.module:function` names; modules in the current folder are found.

    Raises:
        OptionError: it can't be imported.
    """
    if not FUNCTION.fullmatch(spec):
        raise OptionError(f"{spec} is not of the form package.module:function")
    module, _, name = spec.partition(":")
    with _importing_from_here():
        try:
            with beside_results():
                found: Any = importlib.import_module(module)
        except (Exception, SystemExit) as error:  # whatever the module does when it is imported
            raise OptionError(f"{spec}: can't import {module}: {said(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise OptionError(f"{spec}: {module} has no `{name}`")
        found = getattr(found, part)
    return found


@contextmanager
def _importing_from_here() -> Iterator[None]:
    """A module in the current folder is found, as with `python -m`."""
    here = os.getcwd()  # noqa: PTH109 (sys.path holds strings)
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def said(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
